"""
qemu-storage-daemon as the back-end: not ours, so what works with it is right.

It is handed a socket that listens already; connecting needs no waiting.
"""

import contextlib
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vhostblk.guest import Guest

TOOL = "qemu-storage-daemon"
EXIT_SECONDS = 10
SIZE = 4 << 20
"""Bytes of the disk most tests use."""
SECTORS = SIZE // 512

Connect = Callable[..., Guest]
"""``Guest.connect`` without the path."""


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
    Serve an image of *size* bytes, a new one if there is none, until the ``with`` block ends.

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
        path.unlink(missing_ok=True)
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


def noise(length: int, seed: int = 1) -> bytes:
    """Return *length* bytes that are the same for the same *seed*."""
    return random.Random(seed).randbytes(length)


def exchange(guest: Guest, daemon: Daemon, rounds: int = 8) -> None:
    """Write through every queue, read back through another one, compare with the file."""
    queues = len(guest.queues)
    for i in range(rounds):
        data = noise(4096 * (1 + i % 3), seed=i)
        guest.write(64 * i, data, queue=i % queues)
        assert guest.read(64 * i, len(data), queue=(i + 1) % queues) == data
        assert daemon.image.read_bytes()[64 * i * 512 :][: len(data)] == data
