"""
The marks on a device's disk, of the inflight regions whose requests may be under way here.

They are for whoever is handed such a region when this process was killed: its requests are gone
from the kernel when the marks are.  A region that is let go while a request was given up keeps its
mark as long as its memory.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Protocol

from vhostblk.server.inflight import Area


class Marked(Protocol):
    """What is needed of a disk; see `vhostblk.disk.api.MarkedDisk`."""

    async def mark(self, number: int) -> None:
        """Put a mark on."""
        ...

    def unmark(self, number: int) -> None:
        """Take it off, soon."""
        ...

    async def marked_by_others(self, number: int) -> bool:
        """Whether it is on, and not ours."""
        ...


class Marks:
    """
    The marks of one device.  Made on the control thread.

    Args:
        disk: What they are put on.
    """

    def __init__(self, disk: Marked) -> None:
        self.disk = disk
        self._loop = asyncio.get_running_loop()
        self._ours: Counter[int] = Counter()
        self._handed_over = False

    def hold(self, area: Area) -> int:
        """Keep the mark of a region, once it is put on, as long as its memory; its number."""
        number = area.number
        self._ours[number] += 1
        area.mapping.before_unmap(lambda: self._soon(number))
        return number

    async def put(self, number: int) -> None:
        """Put it on."""
        await self.disk.mark(number)

    async def elsewhere(self, number: int) -> bool:
        """Whether somebody else has it."""
        return await self.disk.marked_by_others(number)

    async def move(self, disk: Marked) -> None:
        """Have another disk, too, say what the one before it says, and go on with it."""
        for number in tuple(self._ours):
            await disk.mark(number)
        self.disk = disk

    def hand_over(self) -> None:
        """Leave them as they are: another process has the same open file, and with it the marks."""
        self._handed_over = True

    def _soon(self, number: int) -> None:
        # On whatever thread the last view died.
        with suppress(RuntimeError):  # the loop is closed, and so will the disk be
            self._loop.call_soon_threadsafe(self._let_go, number)

    def _let_go(self, number: int) -> None:
        self._ours[number] -= 1
        if self._ours[number] > 0:
            return
        del self._ours[number]
        if not self._handed_over:
            self.disk.unmark(number)
