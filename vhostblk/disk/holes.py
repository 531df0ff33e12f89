"""Make ranges of a file or block device empty, make them zero, and find out which are empty."""

import errno
import os
from collections.abc import Iterator

from vhostblk.disk import kernel
from vhostblk.disk.api import Extent

_PROBE_AT = 1 << 20
_PROBE_LENGTH = 4096

# What a file system or device that has not an operation says, according to its age.
_UNABLE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY})


def can_punch(fd: int, size: int) -> bool:
    """
    Find out whether a file's holes can be punched, without changing a byte of it.

    Args:
        fd: A regular file, open for writing.
        size: Its bytes.

    Returns:
        Whether a punch beyond its end, where there is nothing to lose, is carried out: a file
        system that has no punching refuses it there as well (EOPNOTSUPP).
    """
    beyond = (size // _PROBE_AT + 1) * _PROBE_AT
    try:
        kernel.fallocate(fd, kernel.PUNCH_HOLE | kernel.KEEP_SIZE, beyond, _PROBE_LENGTH)
    except OSError:
        return False
    return True


def discard(fd: int, offset: int, length: int, *, block_device: bool) -> None:
    """Give a range back to the file system or the device."""
    if block_device:
        kernel.device_discard(fd, offset, length)
    else:
        kernel.fallocate(fd, kernel.PUNCH_HOLE | kernel.KEEP_SIZE, offset, length)


def zero(fd: int, offset: int, length: int, *, unmap: bool) -> bool:
    """
    Make a range read as zeroes without writing them.

    Args:
        fd: A regular file or block device.
        offset: First byte.
        length: Bytes.
        unmap: A hole is welcome; without it the range stays allocated.

    Returns:
        False where that cannot be done here; nothing has changed then.
    """
    holes = [kernel.PUNCH_HOLE | kernel.KEEP_SIZE] if unmap else []
    for mode in (*holes, kernel.ZERO_RANGE | kernel.KEEP_SIZE):
        try:
            kernel.fallocate(fd, mode, offset, length)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
        else:
            return True
    return False


def extents(fd: int, offset: int, length: int) -> Iterator[Extent]:
    """Yield what is data and what is hole in a range, in order, without gaps."""
    end = offset + length
    while offset < end:
        data = _seek(fd, offset, os.SEEK_DATA, end)
        if data > offset:
            yield Extent(offset, data - offset, hole=True)
        # A hole can be filled between the two questions: never less than what is asked.
        hole = max(_seek(fd, data, os.SEEK_HOLE, end), data) if data < end else end
        if hole > data:
            yield Extent(data, hole - data, hole=False)
        offset = hole if hole > offset else end


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Return where data or a hole begins, *end* where none does before it."""
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
            return end
        if error.errno == errno.EINVAL:  # a block device knows no holes: all of it is data
            return offset if whence == os.SEEK_DATA else end
        raise
