"""Disks to put layers in front of."""

import asyncio
import random
from collections.abc import Callable, Sequence

from vhostblk.disk.api import Disk, DiskInfo

SECTOR = 512
Views = Sequence[memoryview]


class Plain(Disk):
    """A bytearray; plain methods."""

    def __init__(self, data: bytes, *, read_only: bool = False, volatile: bool = True) -> None:
        self.data = bytearray(data)
        self.read_only = read_only
        self.volatile = volatile
        self.flushes = 0

    def info(self) -> DiskInfo:
        """Return a disk that discards and makes zeroes."""
        return DiskInfo(
            size=len(self.data), read_only=self.read_only, volatile=self.volatile, may_unmap=True
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy."""
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy."""
        assert not self.read_only
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        """Count."""
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        """Clear."""
        self.write_zeroes(offset, length, unmap=True)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:  # noqa: ARG002
        """Clear."""
        self.data[offset : offset + length] = bytes(length)

    def resize(self, size: int) -> None:
        """Cut, or add zeroes."""
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))


class Late(Disk):
    """The same, ``async``: each sector is moved at a time of its own, in an order of a seed."""

    def __init__(self, data: bytes, seed: int = 0) -> None:
        self.plain = Plain(data)
        self.random = random.Random(seed)

    @property
    def data(self) -> bytearray:
        """What is stored."""
        return self.plain.data

    def info(self) -> DiskInfo:
        """Return the same."""
        return self.plain.info()

    async def _wait(self) -> None:
        for _ in range(self.random.choice((0, 1, 1, 2, 5))):
            await asyncio.sleep(0)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy sector by sector."""
        for at, view in self._sectors(offset, views):
            await self._wait()
            self.plain.read(at, [view])

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy sector by sector."""
        for at, view in self._sectors(offset, views):
            await self._wait()
            self.plain.write(at, [view])

    def _sectors(
        self, offset: int, views: Sequence[memoryview]
    ) -> Sequence[tuple[int, memoryview]]:
        parts: list[tuple[int, memoryview]] = []
        for view in views:
            starts = range(0, len(view), SECTOR)
            parts.extend((offset + at, view[at : at + SECTOR]) for at in starts)
            offset += len(view)
        self.random.shuffle(parts)
        return parts

    async def flush(self) -> None:
        """Count, later."""
        await self._wait()
        self.plain.flush()

    async def discard(self, offset: int, length: int) -> None:
        """Clear, later."""
        await self._wait()
        self.plain.discard(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Clear, later."""
        await self._wait()
        self.plain.write_zeroes(offset, length, unmap=unmap)

    async def resize(self, size: int) -> None:
        """Cut, or add zeroes, later."""
        await self._wait()
        self.plain.resize(size)


Below = Callable[[bytes], Plain | Late]
"""Either, to be made with what it has at first."""
