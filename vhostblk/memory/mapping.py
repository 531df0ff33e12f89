"""
One stretch of guest memory, mapped into this process.

The mapping lives as long as anyone holds it: the region table, a request whose disk has not
returned its buffer, a view somebody kept.  Its descriptor is kept beside it and closed with it.

Nothing is populated, locked or advised into huge pages: a touched page of a confidential guest
is a page allocated twice.
"""

import ctypes
import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Callable
from errno import EINVAL

from vhostblk.errors import Refused

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)

_MAP_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = 0x4000
_HUGETLBFS_MAGIC = 0x958458F6
"""f_type of hugetlbfs: <linux/magic.h>."""


def page_size_of(fd: int) -> int:
    """
    Return what offsets and lengths of a mapping of *fd* must be multiples of, in bytes.

    Only hugetlbfs says more than the usual page; f_bsize of other file systems is about I/O.
    """
    # struct statfs begins with two longs: f_type, f_bsize.
    words = (ctypes.c_long * 64)()
    if _libc.fstatfs(fd, words) != 0:
        number = ctypes.get_errno()
        raise Refused(number, f"cannot ask the file system of a region: {os.strerror(number)}")
    return int(words[1]) if words[0] == _HUGETLBFS_MAGIC else mmap.PAGESIZE


def is_in_memory(fd: int) -> bool:
    """
    Tell whether the file behind *fd* is nowhere but in host memory: a memfd, tmpfs or hugetlbfs.

    Only those have seals.  Unlike fstatfs this never asks a file system that may take its time to
    answer, as FUSE and NFS do.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def file_identity(fd: int) -> tuple[int, int]:
    """Return what tells the file behind *fd* from any other."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _check_file(fd: int, end: int) -> None:
    status = os.fstat(fd)
    # A character device (/dev/dax) has no size to compare; its driver refuses the mmap.
    if stat.S_ISCHR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise Refused(EINVAL, "a memory region's descriptor is neither a file nor a device")
    # Touching a page beyond the end would be a SIGBUS later.
    if status.st_size < end:
        raise Refused(
            EINVAL, f"a memory region ends at {end:#x} of a file of {status.st_size:#x} bytes"
        )


def _map(fd: int, offset: int, length: int) -> int:
    address = _libc.mmap(
        None,
        length,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED | _MAP_NORESERVE,
        fd,
        offset,
    )
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise Refused(
            number, f"cannot map {length:#x} bytes of guest memory: {os.strerror(number)}"
        )
    # Guest memory belongs neither into our core dumps nor into our children (a Python disk may
    # start some); failing to say so harms nobody else.
    for advice in (mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK):
        _libc.madvise(address, length, advice)
    return int(address)


def _unmap(address: int, length: int, fd: int, last_words: list[Callable[[], None]]) -> None:
    for callback in last_words:
        callback()
    _libc.munmap(address, length)
    os.close(fd)


class Mapping:
    """
    A part of a file, mapped shared and writable.

    Args:
        fd: Taken over, also when this fails.
        offset: Where the part begins in the file, bytes.
        length: Bytes, at least 1.

    Attributes:
        address: Where its first byte lives in this process.
        length: Bytes.
        page_size: Its page size, in bytes: what a fault may have to replace.
        file: What tells its file from any other.
        in_memory: The file is nowhere but in host memory, so a call about it returns at once.
        offset: Where it begins in the file.

    Raises:
        Refused: The file is too small, of the wrong kind, or cannot be mapped.

    Spec: vhost-user, "Memory region description".
    """

    __slots__ = (
        "__weakref__",
        "_bytes",
        "_fd",
        "_holds",
        "_last_words",
        "address",
        "file",
        "in_memory",
        "length",
        "offset",
        "page_size",
    )

    def __init__(self, fd: int, *, offset: int, length: int) -> None:
        try:
            _check_file(fd, offset + length)
            self.file = file_identity(fd)
            self.in_memory = is_in_memory(fd)
            self.page_size = page_size_of(fd)
            skip = offset % self.page_size
            whole = -(-(skip + length) // self.page_size) * self.page_size
            base = _map(fd, offset - skip, whole)
        except BaseException:
            os.close(fd)
            raise
        self.address = base + skip
        self.length = length
        self.offset = offset
        self._fd = fd
        self._holds = 1
        self._last_words: list[Callable[[], None]] = []
        # The array is the exporter of every view, so it dies after the last of them, and the
        # memory goes with it.
        self._bytes: ctypes.Array[ctypes.c_ubyte] | None
        self._bytes = (ctypes.c_ubyte * length).from_address(self.address)
        end = weakref.finalize(self._bytes, _unmap, base, whole, fd, self._last_words)
        # At exit a worker may still run; the kernel unmaps.
        end.atexit = False

    def before_unmap(self, callback: Callable[[], None]) -> None:
        """Have *callback* called, on whatever thread, just before the memory goes."""
        self._last_words.append(callback)

    def fileno(self) -> int:
        """Return the descriptor, which stays the mapping's."""
        return self._fd

    @property
    def alive(self) -> bool:
        """Whether anyone holds it; a view that was kept keeps the memory, not this."""
        return self._bytes is not None

    def hold(self) -> None:
        """Keep it until one more `release`.  Only who knows it is alive may do so."""
        if self._bytes is None:
            raise ValueError("this mapping was released for good")
        self._holds += 1

    def release(self) -> None:
        """Give one hold back; after the last one the memory goes with the last view."""
        if self._bytes is None:
            raise ValueError("this mapping was released for good")
        self._holds -= 1
        if self._holds == 0:
            self._bytes = None

    def view(self, offset: int, length: int) -> memoryview:
        """
        Return a writable view of a part; the memory outlives it.

        Args:
            offset: First byte, from the beginning of the mapping.
            length: Bytes; the part lies inside.
        """
        if self._bytes is None:
            raise ValueError("this mapping was released for good")
        if not 0 <= offset <= offset + length <= self.length:
            raise ValueError(f"{length} bytes at {offset} of a mapping of {self.length}")
        return memoryview(self._bytes).cast("B")[offset : offset + length]

    def peek(self, offset: int, length: int) -> bytes | None:
        """
        Copy a part through the file, for a look at what may be gone or was never there.

        Unlike a load it allocates no page in a hole and cannot end in a SIGBUS.  Only files in
        memory are looked at: the thread that looks serves all devices, and a file of any other
        kind may keep it waiting.

        Args:
            offset: First byte, from the beginning of the mapping.
            length: Bytes.

        Returns:
            None where not all of it can be read that way: it is gone, or not in such a file.
        """
        if not self.in_memory:
            return None
        try:
            data = os.pread(self._fd, length, self.offset + offset)
        except OSError:
            return None
        return data if len(data) == length else None
