"""
When the queues of one front-end may run: behind those of the front-end before it, with the disk.

A ring that starts too early is started for the front-end, which gets its reply at once, and waits
here for its worker: no message ever waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable

from vhostblk.server.log import Log
from vhostblk.server.tenure import Tenure


class Turn:
    """
    One front-end's turn at a device.

    Args:
        tenure: The device's hold on its disk.
        after: Done when nothing of the front-end before is in flight any more; None: there is
            none.
        resume: Has the rings that run go on, whose queues were kept back.
        log: For what an operator should know.
    """

    def __init__(
        self,
        tenure: Tenure,
        *,
        after: asyncio.Future[None] | None,
        resume: Callable[[], Awaitable[None]],
        log: Log,
    ) -> None:
        self._tenure = tenure
        self._after = after
        self._resume = resume
        self._log = log
        self._waiting: asyncio.Task[None] | None = None

    def may_run(self) -> bool:
        """Whether queues may run now."""
        return (self._after is None or self._after.done()) and self._tenure.held

    def begin(self) -> None:
        """Heed that a ring is about to start: it runs at once, or as soon as it may."""
        self._tenure.want(self)
        if not self.may_run() and self._waiting is None:
            self._waiting = asyncio.ensure_future(self._wait())
            self._waiting.add_done_callback(self._waited)

    async def _wait(self) -> None:
        if self._after is not None:
            await asyncio.wait([self._after])
        await self._tenure.take(self)
        await self._resume()

    def _waited(self, task: asyncio.Task[None]) -> None:
        if self._waiting is task:
            self._waiting = None
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._log.error("a bug of ours, waiting for the disk", exc_info=bug)

    def leave(self) -> None:
        """Heed that no ring is to go on any more: its queue may be gone when its turn comes."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    async def end(self) -> None:
        """Heed that no ring runs any more, with nothing in flight."""
        self.leave()
        await self._tenure.leave(self)
