"""
What the kernel knows of a file or block device, and what it does to one, beyond Python's ``os``.

System calls and ioctls with their numbers, each from the header that is named; no decisions.
"""

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# <linux/fs.h>
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKIOOPT = 0x1279
BLKPBSZGET = 0x127B
BLKGETSIZE64 = 0x80081272

# <linux/falloc.h>
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

# <linux/stat.h>, <linux/fcntl.h>
_STATX_DIOALIGN = 0x2000
_AT_EMPTY_PATH = 0x1000
_STATX_BYTES = 256
_STATX_MASK = struct.Struct("=I")  # stx_mask, at 0
_STATX_DIO = struct.Struct("=II")  # stx_dio_mem_align, stx_dio_offset_align
_STATX_DIO_AT = 0x98

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """
    What O_DIRECT asks for, in bytes.

    Args:
        memory: Of a buffer's address.
        offset: Of a file offset, and of every buffer's length.
    """

    memory: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardLimits:
    """
    What a block device says of discards, in bytes; all 0 where it has none.

    Args:
        granularity: What a useful discard is a multiple of.
        longest: The most it takes at once.
    """

    granularity: int
    longest: int


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """
    Punch, zero or reserve a range of a file; ``os.posix_fallocate`` takes no *mode*.

    Raises:
        OSError: As the system call; EOPNOTSUPP where the file system has not that mode.
    """
    # The 64 of the name: offsets are 64 bits wide in every C library that has it.
    if _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def direct_alignment(fd: int) -> Alignment | None:
    """
    Ask the kernel what O_DIRECT wants of a file (statx, STATX_DIOALIGN, Linux 6.1).

    Returns:
        None where the kernel or the file system does not say.

    Raises:
        OSError: EINVAL: it says that there is no direct I/O on this file.
    """
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if not hasattr(_libc, "statx") or _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer):
        return None
    if not _STATX_MASK.unpack_from(answer)[0] & _STATX_DIOALIGN:
        return None
    memory, offset = _STATX_DIO.unpack_from(answer, _STATX_DIO_AT)
    if not memory or not offset:
        raise OSError(errno.EINVAL, "no direct I/O on this file")
    return Alignment(memory=memory, offset=offset)


def get_u32(fd: int, request: int) -> int:
    """Return what an ioctl of a block device answers in 32 bits."""
    return int(struct.unpack("=I", fcntl.ioctl(fd, request, bytes(4)))[0])


def device_size(fd: int) -> int:
    """Return the bytes of a block device."""
    return int(struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def device_discard(fd: int, offset: int, length: int) -> None:
    """Discard a range of a block device and of its page cache."""
    fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", offset, length))


def discard_limits(rdev: int, sysfs: Path = Path("/sys/dev/block")) -> DiscardLimits:
    """
    Read a block device's discard limits.

    Args:
        rdev: Its device number.
        sysfs: Where devices are listed by number.
    """
    node = sysfs / f"{os.major(rdev)}:{os.minor(rdev)}"
    # A partition has no queue of its own: it is a directory in its disk's.
    for queue in (node / "queue", node / ".." / "queue"):
        with suppress(OSError, ValueError):
            return DiscardLimits(
                granularity=int((queue / "discard_granularity").read_text()),
                longest=int((queue / "discard_max_bytes").read_text()),
            )
    return DiscardLimits(granularity=0, longest=0)
