"""A disk that stores nothing: what it costs to serve one is what serving costs."""
# ruff: noqa: ARG002 - the contract's parameters; there is nothing to do with them

from collections.abc import Iterator, Sequence

from vhostblk.disk.api import Disk, DiskInfo, Extent, NativeNull

_CHUNK = 1 << 16
_ZEROES = bytes(_CHUNK)


class Null(Disk):
    """
    A disk that takes every write and reads as zeroes.

    Args:
        size: Bytes, a multiple of 512.
        zero: Reads give zeroes; without it they leave the guest's buffer as it was, which is
            the fastest a disk can be and of no use but to measure that.
    """

    def __init__(self, size: int, *, zero: bool = True) -> None:
        self._size = size
        self._zero = zero

    def info(self) -> DiskInfo:
        """Return its size; nothing is volatile where nothing is kept."""
        return DiskInfo(size=self._size, volatile=False, may_unmap=True)

    def share(self) -> Sequence[int]:
        """Have nothing that another process would need."""
        return ()

    def adopt(self, fds: Sequence[int]) -> None:
        """Need nothing of another process."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill *views* with zeroes, unless told not to."""
        if not self._zero:
            return
        for view in views:
            for at in range(0, len(view), _CHUNK):
                piece = view[at : at + _CHUNK]
                piece[:] = _ZEROES[: len(piece)]

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Forget *views*."""

    def discard(self, offset: int, length: int) -> None:
        """Have nothing to forget."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Have zeroes there already."""

    def resize(self, size: int) -> None:
        """Have as much nothing as wanted."""
        self._size = size

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield one hole."""
        yield Extent(offset, length, hole=True)

    def native(self) -> NativeNull:
        """Say how the C core serves it."""
        return NativeNull(zero=self._zero)
