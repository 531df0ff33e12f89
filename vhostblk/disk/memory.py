"""
A disk in this process's own memory.

Its pages come into being when they are written first and go when they are discarded, so a disk of
4 GiB with one file system on it costs some megabytes.  All of it is gone when the process ends.
"""

import ctypes
import mmap
from collections.abc import Iterator, Sequence

from vhostblk.disk.api import Disk, DiskInfo, NativeMemory
from vhostblk.errors import VhostBlkError

# <asm-generic/mman.h>; Python's mmap module has no name for it before 3.13.  Without it the
# kernel would refuse a disk that is larger than memory and swap together.
_MAP_NORESERVE = 0x4000

_ZERO_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_ZERO_CHUNK))


MAX_ZEROES = 64 << 20
"""Bytes of the longest WRITE_ZEROES: they are set at once, and others of the worker wait."""


class Memory(Disk):
    """
    A sparse disk in private anonymous memory.

    Args:
        size: Bytes, a multiple of 512, at least one sector.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._map: mmap.mmap | None = None

    def open(self) -> None:
        """
        Reserve the addresses; no memory yet.

        Raises:
            VhostBlkError: The kernel has not so many addresses for us.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, self._size, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise VhostBlkError(_too_much(self._size, error)) from error
        # A guest's data has no business in a core dump of ours.
        self._map.madvise(mmap.MADV_DONTDUMP)
        # A huge page for every scattered write of mkfs would make the disk far from sparse.
        self._map.madvise(mmap.MADV_NOHUGEPAGE)

    def close(self) -> None:
        """Give all of it back."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def info(self) -> DiskInfo:
        """Return its size; a discard is worth it by the page."""
        return DiskInfo(
            size=self._size,
            physical_block_size=mmap.PAGESIZE,
            discard_alignment=mmap.PAGESIZE,
            volatile=False,
            max_write_zeroes=MAX_ZEROES,
            may_unmap=True,
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy from the disk into *views*."""
        with memoryview(self._memory()) as memory:
            for view in views:
                view[:] = memory[offset : offset + len(view)]
                offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy *views* to the disk."""
        with memoryview(self._memory()) as memory:
            for view in views:
                memory[offset : offset + len(view)] = view
                offset += len(view)

    def discard(self, offset: int, length: int) -> None:
        """Give the whole pages of a range back, and clear its edges: it reads as zeroes."""
        memory = self._memory()
        end = offset + length
        first = min(-(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first)
        self._clear(offset, first)
        if last > first:
            memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._clear(last, end)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; without *unmap* its pages stay."""
        if unmap:
            self.discard(offset, length)
        else:
            self._clear(offset, offset + length)

    def resize(self, size: int) -> None:
        """
        Keep what fits; where it is may change (`native`).

        Raises:
            VhostBlkError: The kernel has not so many addresses for us; it is as it was.
        """
        # The rest of the last page stays, and reads as zeroes when there is more of it again.
        page_end = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._clear(size, min(page_end, self._size))
        try:
            self._memory().resize(size)
        except (OSError, ValueError, OverflowError) as error:
            raise VhostBlkError(_too_much(size, error)) from error
        self._size = size

    def native(self) -> NativeMemory:
        """Say how the C core serves it: where it is."""
        start = ctypes.c_char.from_buffer(self._memory())
        return NativeMemory(ctypes.addressof(start), self._size)

    def _memory(self) -> mmap.mmap:
        assert self._map is not None, "open() comes first"  # noqa: S101 - our own promise
        return self._map

    def _clear(self, start: int, end: int) -> None:
        for at, length in _chunks(start, end):
            self._memory()[at : at + length] = _ZEROES[:length]


def _too_much(size: int, error: Exception) -> str:
    return (
        f"memory: {size} bytes cannot be had ({error}): "
        "ask for less, or raise vm.overcommit_memory or ulimit -v"
    )


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for at in range(start, end, _ZERO_CHUNK):
        yield at, min(_ZERO_CHUNK, end - at)
