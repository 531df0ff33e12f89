"""
Open a file or block device for service, and measure it.

Every way in which a file cannot be a disk ends here, in one line that says what to do about it.
"""

import errno
import mmap
import os
import shlex
import stat
from dataclasses import dataclass

from vhostblk.disk import holes, kernel, signature
from vhostblk.disk.kernel import Alignment
from vhostblk.errors import VhostBlkError

SECTOR = 512
_LARGEST_BLOCK = 1 << 16
_TRIED = (512, 1024, 2048, 4096)
# As an option of the command and as one of the disk: which was meant is not known here.
_READ_ONLY = "--read-only (file:…,read-only=on)"
_PAGE_CACHE = "--cache writeback (file:…,cache=writeback)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """
    What an open file is, as a disk.

    Args:
        size: Bytes.
        block_size: Bytes of the smallest request it takes.
        physical_block_size: Bytes it writes without reading first; 0: not known.
        optimal_io_size: Bytes; 0: not known.
        discard_alignment: Bytes; 0: not known.
        can_discard: Ranges can be given back.
        block_device: Not a regular file.
        alignment: What its transfers need; 1 and 1 through the page cache.
    """

    size: int
    block_size: int
    physical_block_size: int
    optimal_io_size: int
    discard_alignment: int
    can_discard: bool
    block_device: bool
    alignment: Alignment


def open_image(path: str, *, write: bool, direct: bool) -> int:
    """
    Open a regular file or block device.

    Args:
        path: Its name.
        write: For reading and writing.
        direct: With O_DIRECT.

    Returns:
        A file descriptor, the caller's.

    Raises:
        VhostBlkError: It cannot be opened like that.
    """
    flags = os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY)
    try:
        # Looked at before it is opened: opening a pipe or a tape can wait, or wind.
        mode = os.stat(path).st_mode  # noqa: PTH116 - what has a path here is a str
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise VhostBlkError(f"{path}: not a regular file or block device, cannot be a disk")
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
    except (OSError, ValueError) as error:
        raise VhostBlkError(_why_not(path, error, write=write, direct=direct)) from error
    if write and stat.S_ISBLK(mode) and kernel.get_u32(fd, kernel.BLKROGET):
        os.close(fd)
        raise VhostBlkError(f"{path}: the device is read-only: add {_READ_ONLY}")
    return fd


def measure(fd: int, path: str, *, write: bool, direct: bool) -> Geometry:
    """
    Find out what an open file is, as a disk.

    Args:
        fd: From `open_image`.
        path: Its name, for errors.
        write: It was opened for writing.
        direct: It was opened with O_DIRECT.

    Raises:
        VhostBlkError: Its size makes no disk, or it has no direct I/O.
        OSError: The kernel would not say.
    """
    status = os.fstat(fd)
    device = stat.S_ISBLK(status.st_mode)
    alignment = _alignment(fd, path) if direct else Alignment(memory=1, offset=1)
    logical = kernel.get_u32(fd, kernel.BLKSSZGET) if device else SECTOR
    block = max(SECTOR, logical, alignment.offset)
    size = size_of(fd, block_device=device)
    _check_size(path, size, block, device=device)
    if device:
        limits = kernel.discard_limits(status.st_rdev)
        physical, granularity = kernel.get_u32(fd, kernel.BLKPBSZGET), limits.granularity
        can_discard = write and limits.longest > 0
    else:
        physical = granularity = status.st_blksize
        can_discard = write and holes.can_punch(fd, size)
    return Geometry(
        size=size,
        block_size=block,
        physical_block_size=_hint(physical, block),
        optimal_io_size=kernel.get_u32(fd, kernel.BLKIOOPT) if device else 0,
        discard_alignment=granularity if granularity % block == 0 else 0,
        can_discard=can_discard,
        block_device=device,
        alignment=alignment,
    )


def size_of(fd: int, *, block_device: bool) -> int:
    """Return the size of an open file in bytes, as it is now."""
    return kernel.device_size(fd) if block_device else os.fstat(fd).st_size


def _why_not(path: str, error: OSError | ValueError, *, write: bool, direct: bool) -> str:
    """Say what to do about an open that failed."""
    match error:
        case OSError(errno=errno.ENOENT) if "," in path:
            return f"{path}: no such file; if it has options, write scheme and all: file:{path}"
        case OSError(errno=errno.ENOENT):
            return f"{path}: no such file: create it, e.g. truncate -s 10G {shlex.quote(path)}"
        case OSError(errno=errno.EACCES | errno.EPERM | errno.EROFS) if write:
            return (
                f"{path}: cannot be written ({error.strerror}): "
                f"add {_READ_ONLY}, or change who may write it"
            )
        case OSError(errno=errno.EINVAL) if direct:
            return _no_direct(path)
        case OSError():
            return f"{path}: cannot be opened: {error.strerror}"
        case _:
            return f"{path!r}: cannot be a file's name: {error}"


def _no_direct(path: str) -> str:
    return (
        f"{path}: its file system has no O_DIRECT: "
        f"use {_PAGE_CACHE} (or writethrough for directsync)"
    )


def _check_size(path: str, size: int, block: int, *, device: bool) -> None:
    """Raise unless *size* is that of a disk."""
    if not size and device:
        raise VhostBlkError(f"{path}: the device has no medium or no size")
    if not size:
        raise VhostBlkError(
            f"{path}: is empty: give it a size, e.g. truncate -s 10G {shlex.quote(path)}"
        )
    if not size % block:
        return
    # Not probing: a raw disk is served as it is whatever it holds, but this will not be served.
    if text := signature.mistaken(path, _start(path)):
        raise VhostBlkError(text)
    other = "" if size % SECTOR else f", or use {_PAGE_CACHE}"
    whole = -(-size // block) * block
    remedy = "make it so" if device else f"truncate -s {whole} {shlex.quote(path)} makes it so"
    raise VhostBlkError(
        f"{path}: its {size} bytes are not a multiple of its {block}-byte blocks: {remedy}{other}"
    )


def _start(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - what has a path here is a str
        return file.read(signature.LENGTH)


def _alignment(fd: int, path: str) -> Alignment:
    """Return what O_DIRECT wants: as the kernel says, else by the smallest read that works."""
    try:
        return kernel.direct_alignment(fd) or _probed(fd)
    except OSError as error:
        raise VhostBlkError(_no_direct(path)) from error


def _probed(fd: int) -> Alignment:
    with mmap.mmap(-1, max(_TRIED)) as area, memoryview(area) as buffer:
        for align in _TRIED:
            try:
                with buffer[:align] as piece:
                    # From its own length on, so that an offset of that grain is tried as well.
                    os.preadv(fd, [piece], align)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return Alignment(memory=align, offset=align)
    raise OSError(errno.EINVAL, "no direct read of up to a page works")


def _hint(size: int, block: int) -> int:
    """Return a block size fit to be told to a driver, 0 where it is not."""
    if size & (size - 1) or not block <= size <= _LARGEST_BLOCK:
        return 0
    return size
