"""
What the demonstration's guest does with its disk, and how that is told to a person.

The guest formats the whole disk, writes files, drops its caches so that nothing but the device
can answer, compares checksums, and checks the file system.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhostblk.cli.guest_vm import Machine, Tools, Vm

SCRIPT = """\
say disk "$(($(cat /sys/block/vda/size) / 2048)) MiB, serial $(cat /sys/block/vda/serial)"
say queues "$(ls /sys/block/vda/mq | wc -l)"
/sbin/mke2fs -q -t ext4 /dev/vda
say formatted ext4
mount -t ext4 /dev/vda /mnt
for n in 1 2 3 4; do
    dd if=/dev/urandom of=/mnt/file$n bs=1M count=2 2>/dev/null
done
cd /mnt
sha256sum file* > /tmp/written
sync
say written "4 files of 2 MiB"
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c -s /tmp/written
say verified "checksums of the files read back from the disk"
cd /
umount /mnt
/sbin/e2fsck -f -n /dev/vda > /tmp/e2fsck 2>&1 || { cat /tmp/e2fsck; exit 1; }
say checked "the file system is clean"
"""

_STORY = {
    "disk": "guest    found the disk: {}",
    "queues": "guest    drives {} queue(s)",
    "formatted": "guest    formatted it as {}",
    "written": "guest    wrote {} and synced",
    "verified": "guest    dropped its caches and verified the {}",
    "checked": "guest    unmounted; {}",
    "exit": "guest    powered off, exit status {}",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What came of it.

    Args:
        said: Everything the guest reported, by name.
        console: Every line of its console.
    """

    said: dict[str, str]
    console: tuple[str, ...]


def run(
    tools: Tools,
    socket_path: Path,
    *,
    queues: int,
    timeout_s: float,
    tell: Callable[[str], None],
) -> Outcome:
    """
    Boot a guest on a served disk and have it use all of it.

    Args:
        tools: What the guest is made of.
        socket_path: Where the disk is served.  Everything on the disk is lost.
        queues: Virtqueues and CPUs of the guest.
        timeout_s: How long the guest may take, its boot included.
        tell: Told one line per step, as it happens.

    Raises:
        GuestError: A step failed; the text ends with the guest's console.
    """

    def on_line(line: str) -> None:
        name, _, value = line.removeprefix("@@ ").partition(" ")
        if line.startswith("@@ ") and name in _STORY:
            tell(_STORY[name].format(value.strip()))

    with tempfile.TemporaryDirectory(prefix="vhostblk-") as directory:
        machine = Machine(socket_path, queues=queues)
        tell(f"qemu     boots Linux ({tools.kernel.name}) on {socket_path}")
        with Vm(tools, machine, SCRIPT, Path(directory), on_line=on_line) as vm:
            return Outcome(vm.wait(timeout_s), tuple(vm.console))
