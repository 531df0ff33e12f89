"""A disk that takes its time, for `vhostblk serve python:guest_boot.slow_disk:SlowFile`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from vhostblk.disk.api import Disk, DiskInfo

READ_S = 0.02
"""More than a guest on an emulated CPU takes to ask for the next megabyte."""


class SlowFile(Disk):
    """
    A file, read only, whose reads take `READ_S` each, side by side.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._data = Path(path).read_bytes()

    def info(self) -> DiskInfo:
        return DiskInfo(size=len(self._data))

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        await asyncio.sleep(READ_S)
        for view in views:
            view[:] = self._data[offset : offset + len(view)]
            offset += len(view)
