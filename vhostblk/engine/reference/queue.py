"""
A virtqueue: who owns its ring, and what was asked of its worker.

Two threads meet here.  `_owner` says whose the ring and the settings are; it and `_ask` change
under `_lock` only.  Requests under way are the worker's always (`work`).
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

from vhostblk.blk.device import BlkDevice
from vhostblk.blk.request import Rules
from vhostblk.engine.api import (
    Busy,
    Counters,
    Fault,
    Latency,
    Mailbox,
    Miss,
    OnError,
    Op,
    Piece,
    Slow,
    Stall,
)
from vhostblk.engine.reference.errors import Errors
from vhostblk.engine.reference.graveyard import Graveyard
from vhostblk.engine.reference.mailbox import JobBox
from vhostblk.engine.reference.ownership import Ask, News, Owner
from vhostblk.engine.reference.record import Record
from vhostblk.engine.reference.service import Service
from vhostblk.engine.reference.settings import Settings
from vhostblk.engine.reference.times import Times
from vhostblk.engine.reference.use import Use
from vhostblk.engine.reference.work import Work
from vhostblk.errors import VhostBlkError
from vhostblk.memory.dirty import DirtyLog
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Segment


class ReferenceQueue:
    """
    The reference engine's `Queue`.

    Args:
        index: Its number in the device.
        loop: The control thread's.
        wake: Make the worker visit; any thread.
        graveyard: The device's dead requests.
        on_broken: Called on the control thread when the queue breaks.
    """

    def __init__(
        self,
        index: int,
        *,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        graveyard: Graveyard,
        on_broken: Callable[[], None],
    ) -> None:
        self.index = index
        self._news = News(loop)
        self._wake = wake
        self._box = JobBox(wake)
        self._record = Record(self._news.post)
        self._errors = Errors(self._news.post)
        self._times = Times(self._news.post)
        self._work = Work(self._box, graveyard, self._record, self._errors, self._times)
        self._service = Service(self._work, self._errors, self._news, on_broken)
        self._lock = threading.Lock()
        self._owner = Owner.CONTROL
        self._ask = Ask.PARK
        self._returns = 0  # times the worker gave the ring back
        self._drains = 0  # times it did so drained
        self._closed = False

    # ---- settings: the control plane, while it owns the ring ----------------------------

    @property
    def mailbox(self) -> Mailbox:
        """Where this queue's jobs wait."""
        return self._box

    @property
    def worker(self) -> int:
        """Which worker serves it: the only one."""
        return 0

    def _ours(self) -> Settings:
        if self._owner is not Owner.CONTROL:
            raise Busy("the worker owns the ring")
        return self._service.settings

    def set_space(self, segments: Sequence[Segment]) -> None:
        """Point the queue at new segments."""
        settings = self._ours()
        settings.memory = settings.memory.with_segments(segments)
        self._service.miss = None

    def set_ask(self, on_miss: Callable[[Miss], None] | None) -> None:
        """Say whether what is in no segment is asked for."""
        settings = self._ours()
        settings.memory = settings.memory.asking(asks=on_miss is not None)
        self._service.on_miss = on_miss
        self._service.miss = None

    def deny(self, iova: int, length: int) -> None:
        """Deny a range to the chain that waits for it."""
        self._ours().memory.denied.append((iova, length))
        self._service.miss = None

    def set_ring(
        self, *, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        """
        Say where the ring lives.

        Raises:
            Refused: Its size is none.
        """
        self._ours().set_ring(size, desc, avail, used)
        self._service.move_ring()

    def set_base(self, base: int) -> None:
        """
        Set where the ring begins; a broken queue is whole again.

        Raises:
            Busy: What is in flight is in the inflight region: it would be taken again.
        """
        settings = self._ours()
        if self._ask is Ask.PARK and self._service.notes:
            raise Busy("what the inflight region says is under way")
        settings.memory.denied.clear()
        self._service.begin(base)

    def base(self) -> int:
        """Return where the ring stands."""
        self._ours()
        return self._service.base()

    def set_inflight(self, memory: Piece | None, *, size: int) -> None:
        """
        Say where what is taken is noted, from the next `set_base` on.

        Raises:
            Refused: There is no region at such an address, or of that size.
        """
        settings = self._ours()
        before = settings.inflight
        settings.set_inflight(memory, size)
        if settings.inflight != before:
            self._service.forget_region()

    def set_kick(self, fd: int | None) -> None:
        """Take over the eventfd the driver kicks with."""
        self._ours().kick.put(fd)

    def set_call(self, fd: int | None) -> None:
        """Take over the eventfd the driver is called with; a new one is written at `run`."""
        settings = self._ours()
        settings.call.put(fd)
        settings.greet = fd is not None

    def set_err(self, fd: int | None) -> None:
        """Take over the eventfd that is written when the queue breaks."""
        self._ours().err.put(fd)

    def eventfds(self) -> Mapping[str, int]:
        """Return those it has."""
        said = self._service.settings
        lines = {"kick": said.kick, "call": said.call, "err": said.err}
        return {name: line.fd for name, line in lines.items() if line.fd is not None}

    def set_enabled(self, *, enabled: bool) -> None:
        """Say whether the queue may take new requests."""
        self._ours().enabled = enabled

    def set_features(self, features: int) -> None:
        """Set the feature bits the driver acked; the format, before a base."""
        self._ours().features = features
        self._service.move_ring()

    def set_blk(self, blk: BlkDevice, *, writethrough: bool) -> None:
        """Set what requests are checked against."""
        self._ours().rules = Rules(blk, writethrough)

    def set_on_error(
        self,
        policy: OnError,
        *,
        on_stalled: Callable[[Stall], None],
        on_failed: Callable[[Stall], None] | None = None,
    ) -> None:
        """Say what becomes of a request that the disk fails."""
        self._ours()
        self._errors.policy = policy
        self._errors.on_stalled, self._errors.on_failed = on_stalled, on_failed

    def resume(self) -> None:
        """Try what is held again."""
        self._errors.resume = True
        self._wake()

    def stall(self) -> Stall | None:
        """Return the error that has stopped the queue."""
        return self._errors.stall

    def latency(self) -> Mapping[Op, Latency]:
        """Return how long requests took, by kind."""
        return self._times.latency()

    def slow(self, seconds: float) -> list[Slow]:
        """Return the requests that have been under way for so long."""
        return self._work.slow(seconds)

    def watch_busy(self, on_busy: Callable[[], None] | None) -> None:
        """Be told once that a request was taken."""
        self._times.on_busy = on_busy

    def set_log(self, log: DirtyLog | None) -> None:
        """Mark nothing; see `ReferenceEngine.can_log`."""
        if log is not None:
            raise VhostBlkError("the reference engine cannot mark a dirty log")

    def set_sampling(
        self, *, first: int, every: int, on_samples: Callable[[], None] | None
    ) -> None:
        """Begin a new count of chains, and say which are sampled."""
        self._ours()
        self._record.begin(first, every, on_samples)

    def condemn(self, why: str) -> None:
        """Break the queue."""
        self._ours()
        self.give_up(Fault(why, self._service.at(), 0))

    def watch_use(self, memory: Sequence[Piece]) -> None:
        """Say what `unused` waits for."""
        self._ours()
        self._work.use = Use(tuple(memory), self._news.tell)
        self._wake()

    async def unused(self) -> None:
        """Wait until what was in flight does not use that memory any more."""
        await self._news.until(lambda: self._work.use.over)

    # ---- asking: the control plane -------------------------------------------------------

    def run(self) -> None:
        """
        Hand the ring to the worker.

        Raises:
            Refused: The ring's place or the device are not known yet, or are none.
        """
        self._ours()
        self._service.open_ring()
        self._hand_over(Ask.RUN)

    def _hand_over(self, ask: Ask) -> None:
        with self._lock:
            self._ask = ask
            self._owner = Owner.WORKER
        self._wake()

    async def parked(self) -> None:
        """Get the ring back between two requests; I/O may be in flight."""
        with self._lock:
            if self._owner is Owner.CONTROL:
                return
            if self._ask is Ask.RUN:
                self._ask = Ask.PARK
            before = self._returns
        self._wake()
        await self._news.until(lambda: self._returns != before)

    async def drained(self, *, seconds: float) -> int:
        """Get the ring back with nothing in flight; return how many requests are dead."""
        before = self._drains
        self._hand_over(Ask.DRAIN)
        try:
            async with asyncio.timeout(seconds):
                await self._news.until(lambda: self._drains != before)
        except TimeoutError:
            with self._lock:
                if self._ask is Ask.DRAIN and self._owner is Owner.WORKER:
                    self._ask = Ask.CANCEL
            self._wake()
            await self._news.until(lambda: self._drains != before)
        return self._work.dead

    def fault(self) -> Fault | None:
        """Return why the queue is broken."""
        return self._service.fault

    def counters(self) -> Counters:
        """Return what the queue has counted."""
        return self._service.counters()

    def samples(self) -> list[Sample]:
        """Return the samples there are, and forget them."""
        taken = self._record.take()
        if taken:
            self._wake()  # it may wait for room
        return taken

    async def close(self) -> None:
        """Cancel what is in flight, forget the ring, close its eventfds."""
        if self._closed:
            return
        await self.drained(seconds=0)
        self._service.forget_ring()
        for line in self._service.settings.lines():
            line.put(None)
        self._closed = True
        self._wake()

    # ---- the worker ----------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Worker: closed, and no dead request may still come back."""
        return self._closed and not self._work.dead

    @property
    def restless(self) -> bool:
        """Worker: the ring must be looked at again soon, without an event."""
        return self._owner is Owner.WORKER and self._service.restless

    def kick_fd(self) -> int | None:
        """Worker: return what to watch."""
        kick = self._service.settings.kick
        return kick.fd if self._owner is Owner.WORKER and not kick.deaf else None

    def kicked(self) -> None:
        """Worker: the kick fd is readable."""
        if self._service.settings.kick.read():
            self._work.tally["kicks"] += 1

    def visit(self) -> int:
        """Worker: look at everything once; return how much was done."""
        n = self._work.reap()
        if self._owner is Owner.CONTROL:
            return n
        ask = self._ask
        n += self._service.serve(ask)
        self._answer(ask)
        return n

    def _answer(self, ask: Ask) -> None:
        """Give the ring back if it was asked for and the time has come."""
        busy = self._work.in_flight or self._service.may_take(ask)
        if ask is Ask.RUN or (ask is not Ask.PARK and busy):
            return
        with self._lock:
            if self._ask is not ask:
                return  # something else was asked meanwhile; the next visit does it
            self._owner = Owner.CONTROL
            self._returns += 1
            self._drains += ask is not Ask.PARK
        self._news.tell()

    def give_up(self, fault: Fault) -> None:
        """Whoever has the ring: the queue cannot go on."""
        self._service.give_up(fault)
