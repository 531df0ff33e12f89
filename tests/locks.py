"""Images that are locked as a device locks them, and what the kernel says of that."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostblk.disk import lock
from vhostblk.errors import VhostBlkError


@contextmanager
def locked(path: Path, *, write: bool) -> Iterator[int]:
    """Hold an image as a device does."""
    fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
    try:
        lock.acquire(fd, str(path), write=write)
        yield fd
    finally:
        os.close(fd)


def refused(path: Path, *, write: bool) -> str:
    """Try to lock an image and return why that was refused."""
    with pytest.raises(VhostBlkError) as caught, locked(path, write=write):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def held_bytes(path: Path) -> set[int]:
    """Return the bytes of a file that are locked, as the kernel lists them."""
    inode = path.stat().st_ino
    held: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "OFDLCK" and words[-3].split(":")[-1] == str(inode):
            held.update(range(int(words[-2]), int(words[-1]) + 1))
    return held
