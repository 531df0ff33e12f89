"""
A sign on an image that requests of somebody's may be under way there.

A process that is killed is gone at once, its I/O goes on; but a lock of an open file lives as long
as the last I/O on it.  QEMU's locks show that of a writer, as nobody else may be one (`lock`).
What readers have under way they hide, and without locks all do.  So here is one byte more for each
region in which such requests are noted: shared by those who use it, and gone when none of them can
have I/O under way.
"""

import fcntl

from vhostblk.disk.lock import FLOCK, held_by_others

BASE = 1 << 62
"""Where these bytes begin, in a file: beyond any image, QEMU's bytes among them."""
SPAN = 1 << 61
"""How many there are; the largest offset is none of them, as a lock up to it has no end."""


def byte_of(number: int) -> int:
    """Return the offset of the byte that is for *number*, any number from 0 on."""
    return BASE + number % SPAN


def put(fd: int, number: int) -> None:
    """
    Put it on, until `take_off` or the end of the last I/O on the open file.

    Raises:
        OSError: The file system has no such locks, or somebody has it locked as a whole.
    """
    _set(fd, fcntl.F_RDLCK, number)


def take_off(fd: int, number: int) -> None:
    """Take it off; OSError as in `put`."""
    _set(fd, fcntl.F_UNLCK, number)


def by_others(fd: int, number: int) -> bool:
    """Say whether it is there and not of this open file; OSError as in `put`."""
    return held_by_others(fd, byte_of(number))


def _set(fd: int, kind: int, number: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, 0, byte_of(number), 1, 0))
