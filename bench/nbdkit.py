"""
What somebody would do without vhostblk: a disk in Python by nbdkit, behind qemu-storage-daemon.

``python -m bench.nbdkit SOCKET SIZE`` starts nbdkit with its Python plugin on `nbdkit_ram`, and
becomes the qemu-storage-daemon that has it as an NBD disk and serves that over vhost-user-blk.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

PLUGIN = Path(__file__).with_name("nbdkit_ram.py")
START_SECONDS = 10


def main() -> None:
    """Start one, become the other: who ends that ends both."""
    socket, size = sys.argv[1:]
    nbd = f"{socket}.nbd"
    # -f: in the foreground; it ends with its parent, which is what this process becomes.
    kit = ["nbdkit", "-f", "--exit-with-parent", "-U", nbd, "python", str(PLUGIN), f"size={size}"]
    subprocess.Popen(kit)
    end = time.monotonic() + START_SECONDS
    while not Path(nbd).exists():
        if time.monotonic() > end:
            raise SystemExit("nbdkit did not start")
        time.sleep(0.01)
    export = "vhost-user-blk,id=export0,node-name=disk0,writable=on,num-queues=1,iothread=thread"
    words = [
        "qemu-storage-daemon",
        *("--object", "iothread,id=thread"),
        *("--blockdev", f"nbd,node-name=disk0,server.type=unix,server.path={nbd}"),
        *("--export", f"{export},addr.type=unix,addr.path={socket}"),
    ]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
