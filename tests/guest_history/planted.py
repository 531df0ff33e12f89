"""Disks with a bug each, and one without: what the checker of histories is for."""

import asyncio
import random
from collections.abc import Sequence

from vhostblk.disk.api import Disk, DiskInfo

SIZE = 64 * 512


class Right(Disk):
    """
    Takes its time for every request, so that many are under way; each has its effect at once.

    Args:
        seed: Decides how long each takes.
    """

    def __init__(self, seed: int = 1) -> None:
        self.data = bytearray(SIZE)
        self.random = random.Random(seed)
        self.writes = 0

    def info(self) -> DiskInfo:
        return DiskInfo(size=SIZE)

    async def pause(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        await self.pause()
        self.fill(self.data, offset, views)
        await self.pause()

    def fill(self, data: bytearray | bytes, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = data[offset : offset + len(view)]
            offset += len(view)

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        data = b"".join(bytes(view) for view in views)
        self.writes += 1
        await self.pause()
        self.store(offset, data)
        await self.pause()

    def store(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self.pause()

    async def discard(self, offset: int, length: int) -> None:
        await self.pause()
        self.data[offset : offset + length] = bytes(length)


class StaleRead(Right):
    """Every seventh read comes from a cache that nobody told of the last writes."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.old = bytes(SIZE)
        self.reads = 0

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        await self.pause()
        self.reads += 1
        self.fill(self.old if self.reads % 7 == 0 else self.data, offset, views)
        if self.reads % 50 == 0:
            self.old = bytes(self.data)


class LostWrite(Right):
    """Forgets every ninth write."""

    def store(self, offset: int, data: bytes) -> None:
        if self.writes % 9:
            super().store(offset, data)


class TornWrite(Right):
    """Every ninth write stops in the middle of a sector."""

    def store(self, offset: int, data: bytes) -> None:
        super().store(offset, data if self.writes % 9 else data[:-200])


class Misordered(Right):
    """Every fifth write has its effect only behind five others, though it has ended before."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.late: list[tuple[int, int, bytes]] = []

    def store(self, offset: int, data: bytes) -> None:
        if self.writes % 5 == 0:
            self.late.append((self.writes, offset, data))
        else:
            super().store(offset, data)
        while self.late and self.late[0][0] + 5 < self.writes:
            _, at, written = self.late.pop(0)
            super().store(at, written)


class Misdirected(Right):
    """Every ninth write goes to the sector behind."""

    def store(self, offset: int, data: bytes) -> None:
        super().store(min(offset + 512 * (self.writes % 9 == 0), SIZE - len(data)), data)


BUGS = (StaleRead, LostWrite, TornWrite, Misordered, Misdirected)


class Cached(Right):
    """
    Keeps writes in a cache until they are flushed; a power cut loses any of them.

    Args:
        seed: Decides what is lost.
        forgetful: Has the bug: every second flush does nothing.
    """

    def __init__(self, seed: int = 1, *, forgetful: bool = False) -> None:
        super().__init__(seed)
        self.stable = bytes(SIZE)
        self.flushes = 0
        self.forgetful = forgetful
        self.cache: list[tuple[int, bytes]] = []

    def store(self, offset: int, data: bytes) -> None:
        super().store(offset, data)
        self.cache += [(offset + at, data[at : at + 512]) for at in range(0, len(data), 512)]

    async def flush(self) -> None:
        self.flushes += 1
        if self.forgetful and self.flushes % 2 == 0:
            return
        self.stable = bytes(self.data)
        self.cache.clear()

    def cut(self) -> None:
        """Cut the power, with nothing under way."""
        data = bytearray(self.stable)
        for offset, sector in self.cache:
            if self.random.random() < 0.2:
                data[offset : offset + 512] = sector
        self.data, self.stable = data, bytes(data)
        self.cache.clear()
