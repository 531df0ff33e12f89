"""
Regions with the memory behind them: memfds, and our view of them.

Nothing here touches a byte of that memory: a page that was never touched is a hole in its memfd,
and ``holes`` counts on it.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE, Region


@dataclass(frozen=True, slots=True)
class Mapping:
    """
    A region with the memory behind it.

    Args:
        region: Its place in the guest.
        uva: Its address in SET_MEM_TABLE, ADD_MEM_REG and SET_VRING_ADDR.
        fd: The memfd; several mappings may share one.
        offset: Where the region begins in *fd*, in bytes.
        data: The bytes.
        words: The same bytes as native 16-bit words.
    """

    region: Region
    uva: int
    fd: int
    offset: int
    data: memoryview
    words: memoryview

    def punch(self, start: int, length: int) -> None:
        """
        Give pages back to the kernel: a hole in the memfd, without touching them.

        Args:
            start: Bytes from the start of the region, whole pages.
            length: Bytes, whole pages.
        """
        owner = self.data.obj
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_REMOVE, start, length)

    def touched(self) -> Iterator[int]:
        """Yield the GPAs of pages that are no holes in the memfd (see ``holes``)."""
        at, end = self.offset, self.offset + self.region.size
        while at < end:
            start = _seek(self.fd, at, os.SEEK_DATA, end)
            at = _seek(self.fd, start, os.SEEK_HOLE, end)
            base = self.region.gpa - self.offset
            yield from range(base + start, base + at, PAGE)

    def unmap(self) -> None:
        """Give the view back; the memfd stays open."""
        self.words.release()
        owner = self.data.obj
        self.data.release()
        if isinstance(owner, mmap.mmap):
            owner.close()


def make_memfd(size: int, *, hugetlb: bool) -> int:
    """
    Make memory to share.

    Args:
        size: Bytes.
        hugetlb: Of huge pages.

    Returns:
        A descriptor, the caller's to close.

    Raises:
        GuestError: The kernel refuses.
    """
    try:
        fd = os.memfd_create("fake-guest", os.MFD_CLOEXEC | (os.MFD_HUGETLB if hugetlb else 0))
    except OSError as error:
        raise GuestError(f"cannot make guest memory: {error}") from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise GuestError(f"cannot make {size} bytes of guest memory: {error}") from error
    return fd


def map_memory(fd: int, size: int, offset: int, *, share: bool = True) -> memoryview:
    """
    Map memory.

    Args:
        fd: A memfd, or -1 for memory of nobody else.
        size: Bytes.
        offset: In *fd*, in bytes.
        share: What is written here is seen through other mappings of *fd*.

    Returns:
        The bytes.

    Raises:
        GuestError: The kernel refuses.
    """
    flags = mmap.MAP_SHARED if share else mmap.MAP_PRIVATE
    try:
        return memoryview(mmap.mmap(fd, size, flags, offset=offset))
    except (OSError, ValueError) as error:
        raise GuestError(f"cannot map {size} bytes of guest memory: {error}") from error


def _seek(fd: int, at: int, whence: int, end: int) -> int:
    if at >= end:
        return end
    try:
        return min(os.lseek(fd, at, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data, or no file, from here on
            return end
        raise
