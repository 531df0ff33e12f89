"""
qemu-storage-daemon as the back-end: not ours, so what works with it is right.

It is handed a socket that listens already; connecting needs no waiting.
"""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOL = "qemu-storage-daemon"
EXIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Daemon:
    """
    A running export.

    Args:
        path: Its socket.
        image: The file it serves.
        process: The daemon.
    """

    path: Path
    image: Path
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def storage_daemon(directory: Path, size: int, *, queues: int = 4) -> Iterator[Daemon]:
    """
    Serve a new image of *size* bytes until the ``with`` block ends.

    Raises:
        RuntimeError: The tool is not installed.
    """
    tool = shutil.which(TOOL)
    if tool is None:
        raise RuntimeError(f"{TOOL} is missing; .ci/setup installs it (Debian: qemu-utils)")
    image = directory / "disk.img"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(size)
    with socket.socket(socket.AF_UNIX) as listener:
        path = directory / "sock"
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [tool, *_options(image, listener.fileno(), queues)], pass_fds=[listener.fileno()]
        )
    try:
        yield Daemon(path, image, process)
    finally:
        process.terminate()
        try:
            process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _options(image: Path, fd: int, queues: int) -> list[str]:
    export = "type=vhost-user-blk,id=export,node-name=disk,addr.type=fd,writable=on"
    return [
        "--blockdev",
        f"driver=file,filename={image},node-name=disk,discard=unmap",
        "--export",
        f"{export},addr.str={fd},num-queues={queues}",
    ]
