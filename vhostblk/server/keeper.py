"""
The queue behind a ring, and who has it: its worker, or the control plane.

A queue is made when there is something for it to keep, and lives until the connection ends.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from vhostblk.engine.api import Counters, Fault, Latency, Op, Queue, Stall
from vhostblk.memory.iotlb import EVERYWHERE
from vhostblk.server.log import Log

_SETTERS: Mapping[str, Callable[[Queue, int | None], None]] = {
    "kick": lambda queue, fd: queue.set_kick(fd),
    "call": lambda queue, fd: queue.set_call(fd),
    "err": lambda queue, fd: queue.set_err(fd),
}
_NOW = ("in_flight", "held", "dead", "slots", "next_avail", "next_used")
"""Counters that tell of a moment."""
_MOST = ("segment_max", "slots_high")
"""Counters that only grow, and do not add up."""
LOOK_SECONDS = 0.005
"""How often is looked whether only what an error holds is in flight."""


@dataclass(frozen=True, slots=True)
class Former:
    """
    A queue that another one has taken the place of.

    Args:
        queue: Drained.
        done: What those before it had done.
        fault: Why one of those was broken.
        took: How long requests took that it had not counted itself.
    """

    queue: Queue
    done: Counters
    fault: Fault | None
    took: Mapping[Op, Latency]


class Keeper:
    """
    One ring's queue.

    Args:
        index: The ring's number.
        make_queue: Makes the queue, parked.
        may_run: Asked before the queue is handed over: whether the disk may be used now.
        on_dead: Called when requests were given up that the disk still has.
        drain_seconds: Bound of every drain.
        log: For what an operator should know.

    Attributes:
        held: It is handed over as soon as the IOMMU has told where the ring is.
        retired: It is never handed over again.
    """

    def __init__(  # noqa: PLR0913 - one caller, which names them
        self,
        index: int,
        *,
        make_queue: Callable[[], Queue],
        may_run: Callable[[], bool],
        on_dead: Callable[[], None],
        drain_seconds: float,
        log: Log,
    ) -> None:
        self.held = False
        self.retired = False
        self._index = index
        self._make_queue = make_queue
        self._may_run = may_run
        self._on_dead = on_dead
        self._drain_seconds = drain_seconds
        self._log = log
        self._made: Queue | None = None
        self._done = Counters()
        self._fault: Fault | None = None
        self._took: Mapping[Op, Latency] = {}

    @property
    def made(self) -> bool:
        """Whether there is a queue."""
        return self._made is not None

    @property
    def queue(self) -> Queue:
        """Return the queue; made at the first call."""
        if self._made is None:
            self._made = self._make_queue()
        return self._made

    @property
    def worker(self) -> int | None:
        """Which worker serves it; None: there is no queue."""
        return None if self._made is None else self._made.worker

    def eventfds(self) -> Mapping[str, int]:
        """Return its eventfds, which stay its own; see `Queue.eventfds`."""
        return {} if self._made is None else self._made.eventfds()

    def fault(self) -> Fault | None:
        """Return why it is broken, None while it is not."""
        return self._fault or (None if self._made is None else self._made.fault())

    def mend(self) -> None:
        """Forget why it was broken: it starts anew."""
        self._fault = None

    def stall(self) -> Stall | None:
        """Return the error that has stopped it, None while none has."""
        return None if self._made is None else self._made.stall()

    def latency(self) -> Mapping[Op, Latency]:
        """Return how long its requests took, by kind; of another disk it begins anew."""
        took = dict(self._took)
        for op, one in ({} if self._made is None else self._made.latency()).items():
            took[op] = took[op] + one if op in took else one
        return took

    def counters(self) -> Counters:
        """Return what it and those before it have done; nothing if there was none."""
        return self._done if self._made is None else total(self._done, self._made.counters())

    def recall(self, done: Counters, took: Mapping[Op, Latency]) -> None:
        """Add what a queue of another process has done that was ours, and how long that took."""
        self._done, self._took = total(done, self._done), took

    # ---- in whose hands -------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether it is kept from its worker: for the IOMMU, the disk, or another front-end."""
        return self.held or self.retired or not self._may_run()

    async def take_back(self, *, drain: bool) -> None:
        """Get it back from its worker; *drain*: with nothing in flight."""
        if not drain:
            await self.queue.parked()
            return
        dead = await self.queue.drained(seconds=self._drain_seconds)
        if dead:
            self._on_dead()
            text = "queue %d: %d requests failed after %g s; the disk still has them"
            self._log.warning(text, self._index, dead, self._drain_seconds)

    async def rest(self, *, enabled: bool) -> None:
        """
        Get it back as by a drain, but that what an error holds stays held.

        Where anything else is in flight for longer than a drain may be, this is one.

        Args:
            enabled: Whether it may take requests, otherwise.
        """
        if self.fault() is None and not self.waits:
            await self.take_back(drain=False)
            self.queue.set_enabled(enabled=False)
            self.queue.run()
        rests = await self._only_holds()
        await self.take_back(drain=False)
        self.queue.set_enabled(enabled=enabled)
        if not rests or not self.queue.counters().held:
            await self.take_back(drain=True)

    async def _only_holds(self) -> bool:
        now = asyncio.get_running_loop().time
        end = now() + self._drain_seconds
        while now() < end:
            counted = self.queue.counters()
            if counted.in_flight == counted.held:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    def hand_over(self) -> None:
        """Give it to its worker; one that is broken, or may not run yet, stays here."""
        if self.fault() is None and not self.waits:
            self.queue.run()

    async def quiet(self, *, enabled: bool, seconds: float) -> bool:
        """
        Have it stand still with nothing in flight, until `go_on`.

        Args:
            enabled: Whether it may take requests, otherwise.
            seconds: What is in flight may take.

        Returns:
            False: something takes longer, and it goes on.
        """
        if self.waits or self.fault() is not None:
            if self.counters().in_flight:
                return False
            await self.take_back(drain=True)  # a broken one has to be asked for, too
            return True
        await self.take_back(drain=False)
        self.queue.watch_use(EVERYWHERE)
        self.queue.set_enabled(enabled=False)
        self.queue.run()
        try:
            async with asyncio.timeout(seconds):
                await self.queue.unused()
        except TimeoutError:
            await self.go_on(enabled=enabled)
            return False
        await self.take_back(drain=True)
        return True

    async def go_on(self, *, enabled: bool) -> None:
        """End a `quiet`."""
        if not self.held and self.fault() is None:
            await self.take_back(drain=False)
            self.queue.set_enabled(enabled=enabled)
            self.hand_over()

    async def change(self, apply: Callable[[Queue], None]) -> None:
        """Change a setting of one that runs."""
        await self.take_back(drain=False)
        try:
            apply(self.queue)
        finally:
            self.hand_over()

    async def give_up(self) -> Queue | None:
        """
        Drain it for the last time.

        Returns:
            It, to be closed; None if there never was one.
        """
        if self._made is not None:
            await self.take_back(drain=True)
        queue = self._made
        self._done, self._made = self.counters(), None
        return queue

    # ---- another one ----------------------------------------------------------------------

    def exchange(self, queue: Queue) -> Former:
        """
        Put another queue in the place of this one, which is drained.

        Args:
            queue: Parked; gets the descriptors.

        Returns:
            What `put_back` needs; its queue is the caller's.
        """
        former = Former(self.queue, self._done, self._fault, self._took)
        for kind, number in former.queue.eventfds().items():
            _give(queue, kind, number)
        self._done, self._fault = self.counters(), self.fault()
        self._made, self._took = queue, {}
        return former

    def put_back(self, former: Former) -> None:
        """Undo an exchange; the other queue is the caller's."""
        self._made, self._done, self._fault = former.queue, former.done, former.fault
        self._took = former.took


def total(before: Counters, now: Counters) -> Counters:
    """Return what two queues have done, of which one has taken the place of the other."""
    sums: dict[str, int] = {}
    for name in (field.name for field in fields(Counters)):
        old, new = getattr(before, name), getattr(now, name)
        sums[name] = new if name in _NOW else max(old, new) if name in _MOST else old + new
    return Counters(**sums)


def _give(queue: Queue, kind: str, number: int) -> None:
    """Hand a copy of a descriptor to a queue, which closes it."""
    copy = os.dup(number)
    try:
        _SETTERS[kind](queue, copy)
    except BaseException:
        os.close(copy)
        raise
