"""
When the queues of one front-end may run: behind those of the front-end before it, with the disk.

And behind those of the process before this one, if it was killed: what it had in flight is taken
again, which must not be while the kernel still does it for the dead.

A ring that starts too early is started for the front-end, which gets its reply at once, and waits
here for its worker: no message ever waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable

from vhostblk.server.inflight import Area
from vhostblk.server.log import Log
from vhostblk.server.tenure import Tenure

LOOK_SECONDS = 0.02
"""How often is looked whether requests of a dead process have ended: the guest waits."""
PATIENCE = 30.0
"""How long that may be so; then an operator is told that something is wrong."""
SLOW_LOOK_SECONDS = 1.0
"""How often after that."""


class Turn:
    """
    One front-end's turn at a device.

    Args:
        tenure: The device's hold on its disk.
        after: Done when nothing of the front-end before is in flight any more; None: there is
            none.
        resume: Has the rings that run go on, whose queues were kept back.
        log: For what an operator should know.

    Attributes:
        left: Numbers of inflight regions of which somebody else may have requests under way; also
            those of a driver that was reset since, whose memory they would touch.
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
        self.left: set[int] = set()
        self._waiting: asyncio.Task[None] | None = None

    def may_run(self) -> bool:
        """Whether queues may run now."""
        before = self._after is not None and not self._after.done()
        return not before and self._tenure.held and not self.left

    async def note(self, area: Area, *, past: bool) -> None:
        """
        Mark the disk, as requests may be under way from the next start on.

        Args:
            area: Where they are noted.
            past: It has been in use before: whoever has used it is waited for.
        """
        marks = self._tenure.marks
        number = marks.hold(area)
        await marks.put(number)
        if past and await marks.elsewhere(number):
            self.left.add(number)

    def go_on(self, area: Area) -> None:
        """Keep the mark that another process has put on, with the same open file."""
        self._tenure.marks.hold(area)

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
        await self._all_gone()
        await self._resume()

    async def _all_gone(self) -> None:
        """Return when nobody else has requests under way; may take as long as somebody has."""
        now = asyncio.get_running_loop().time
        since, said, given_up = now(), False, False
        while await self._look():
            patient = now() - since < PATIENCE
            if not said:
                self._log.warning(
                    "the queues wait: what another process had in flight for this guest is still "
                    "under way on the disk"
                )
                said = True
            elif not patient and not given_up:
                self._log.error(
                    "the queues wait since %g s for another process, dead or alive, that has the "
                    "guest's requests under way: `lslocks` names a living one",
                    PATIENCE,
                )
                given_up = True
            await asyncio.sleep(LOOK_SECONDS if patient else SLOW_LOOK_SECONDS)
        if said:
            self._log.info("nothing is under way elsewhere any more: the queues run")

    async def _look(self) -> bool:
        """Whether anything is left."""
        for number in tuple(self.left):
            if not await self._tenure.marks.elsewhere(number):
                self.left.discard(number)
        return bool(self.left)

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
