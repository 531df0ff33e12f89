"""
What an NBD server has answered and not been told to make stable.

A server that dies may have lost it: qemu-nbd has a qcow2 image's tables in its own memory.  A guest
that goes on as if nothing had happened must find what it has written, so all of it is kept here
until a flush, and sent again, in its order, to the server that comes next.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from vhostblk.disk.nbd_link import Link

Send = Callable[[Link], asyncio.Future[None]]

_OVERHEAD = 1024


class Unstable:
    """Changes in the order of their answers."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, int, Send]] = deque()
        self.last = 0
        """Number of the change that was added last."""
        self.cost = 0
        """Bytes of memory, about."""

    def add(self, send: Send, length: int) -> None:
        """Keep a change, of *length* bytes of data, which *send* sends again."""
        self.last += 1
        self.cost += length + _OVERHEAD
        self._kept.append((self.last, length + _OVERHEAD, send))

    def stable(self, last: int) -> None:
        """Forget all up to number *last*: a flush that was sent behind them has been answered."""
        while self._kept and self._kept[0][0] <= last:
            self.cost -= self._kept.popleft()[1]

    async def replay(self, link: Link) -> None:
        """
        Send all of it to another server; it is kept on.

        Raises:
            LostError: That is gone as well.
            OSError: It refuses a change that the one before has made.
        """
        for _, _, send in tuple(self._kept):
            await send(link)
