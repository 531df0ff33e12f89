"""A file whose requests end in any order: `python:server_kit.scattered:Scattered,path=…`."""

import asyncio
import os
import random
from collections.abc import Sequence

from vhostblk.disk.api import Disk, DiskInfo

LONGEST_S = 0.01


class Scattered(Disk):
    """
    A file; every request takes a while of its own, and reads and writes at its end.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._random = random.Random(1)

    def close(self) -> None:
        os.close(self._fd)

    def info(self) -> DiskInfo:
        return DiskInfo(size=os.fstat(self._fd).st_size)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        await self._wait()
        os.preadv(self._fd, views, offset)

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        await self._wait()
        os.pwritev(self._fd, views, offset)

    async def flush(self) -> None:
        await self._wait()

    async def _wait(self) -> None:
        await asyncio.sleep(self._random.uniform(0, LONGEST_S))
