"""
One ring of a front-end: its state, what the front-end said of it, and the queue behind it.

Everything that changes the state goes through `vhostblk.protocol.state.step_ring`; this file does
what the table's actions say.  The queue is a `Keeper`'s, where the ring is said to be a `Place`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from errno import EINVAL

from vhostblk.engine.api import Counters, Fault, Latency, Miss, Op, Queue, Stall
from vhostblk.errors import Refused
from vhostblk.memory.dirty import LOG_USED_BY_HOST
from vhostblk.memory.ranges import Range
from vhostblk.memory.space import Access, AddressSpace, Denied, Missing
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.state import RingAction, RingEvent, RingState, step_ring
from vhostblk.server.inflight import Area, track
from vhostblk.server.keeper import Former, Keeper
from vhostblk.server.log import Log
from vhostblk.server.place import Addresses, Place, Placed, first_base
from vhostblk.server.terms import Terms

_RUNNING = frozenset({RingState.STARTED, RingState.PAUSED})


class Ring:
    """
    A ring.

    Args:
        index: Its number.
        keeper: Of the queue behind it.
        on_miss: Told what a chain needs of the IOMMU; None: the ring itself needs something.
        on_start: Called with its queue parked when it is about to start, or has lost memory.
        log: For what an operator should know.
    """

    def __init__(
        self,
        index: int,
        *,
        keeper: Keeper,
        on_miss: Callable[[Miss | None], None],
        on_start: Callable[[], None],
        log: Log,
    ) -> None:
        self.index = index
        self.state = RingState.STOPPED
        self.base: int | None = None
        """As on the wire, in the format of its driver; None: the one a new ring has."""
        self.translated = False
        """Its addresses, and those in its descriptors, go through the IOMMU."""
        self.starts = 0
        """How often it has started."""
        self.before = Counters()
        """What the queue had done before the last start."""
        self.used_log: int | None = None
        """Where its used ring is logged, as SET_VRING_ADDR says it; None: nowhere."""
        self.place = Place(index=index)
        self.keeper = keeper
        self.stood: int | None = None
        self._on_miss = on_miss
        self._on_start = on_start
        self._log = log
        self._noted: Area | None = None

    @property
    def running(self) -> bool:
        """Whether its worker owns the queue, or did until it broke."""
        return self.state in _RUNNING

    @property
    def held(self) -> bool:
        """Whether it waits for the IOMMU to tell where it is."""
        return self.keeper.held

    @property
    def broken(self) -> bool:
        """Whether it must be stopped and started before it serves again."""
        return self.fault() is not None

    def fault(self) -> Fault | None:
        """Return why it is broken, None while it is not."""
        return self.keeper.fault()

    def stall(self) -> Stall | None:
        """Return the error that has stopped it, None while none has."""
        return self.keeper.stall()

    def latency(self) -> Mapping[Op, Latency]:
        """Return how long its requests took, by kind."""
        return self.keeper.latency()

    def counters(self) -> Counters:
        """Return what its queue has done; nothing if there is none."""
        return self.keeper.counters()

    @property
    def queue(self) -> Queue:
        """Return the queue behind it; made at the first call."""
        return self.keeper.queue

    # ---- settings -------------------------------------------------------------------------

    def set_num(self, num: int) -> None:
        """Note its size in descriptors."""
        self.state = step_ring(self.state, RingEvent.SETUP).state
        self.place = replace(self.place, num=num)

    def set_base(self, base: int) -> None:
        """Note where it goes on; its format, and with it what is legal, is known at the start."""
        self.state = step_ring(self.state, RingEvent.SETUP).state
        self.base = base

    async def set_addresses(
        self, addresses: Addresses, terms: Terms, *, used_log: int | None = None
    ) -> None:
        """Note where it is, and where its used ring is logged; while it runs, move it there."""
        step = step_ring(self.state, RingEvent.ADDR)
        place = replace(self.place, addresses=addresses)
        moves = step.action is RingAction.UPDATE
        placed = place.pieces(terms.space) if moves and not self.translated else None
        self.place, self.used_log, self.state = place, used_log, step.state
        if not moves:
            return
        await self.keeper.take_back(drain=False)
        self._log_pages(terms)
        self._go_on(terms, placed)

    async def relog(self, terms: Terms) -> None:
        """Go on with what *terms* say of the dirty log."""
        await self.keeper.take_back(drain=False)
        self._log_pages(terms)
        self.keeper.hand_over()

    def _log_pages(self, terms: Terms) -> None:
        used = None if self.used_log is None or not self.translated else LOG_USED_BY_HOST
        self.queue.set_log(terms.dirty_log(used or self.used_log))

    async def set_kick(self, fd: Fd | None, terms: Terms) -> None:
        """Arm it, and start it if it is enabled; None: it is polled."""
        step = step_ring(self.state, RingEvent.KICK)
        if step.action is RingAction.START:
            terms.admit(self.place, self.base)  # refuse before anything is changed
        await self.change(lambda queue: queue.set_kick(_take(fd)))
        if step.action is RingAction.START:
            self._start(terms)
        self.state = step.state

    async def set_call(self, fd: Fd | None) -> None:
        """Take the descriptor that calls the driver; None: it is not called."""
        await self.change(lambda queue: queue.set_call(_take(fd)))

    async def set_err(self, fd: Fd | None) -> None:
        """Take the descriptor that tells of a broken ring."""
        await self.change(lambda queue: queue.set_err(_take(fd)))

    async def enable(self, terms: Terms, *, on: bool) -> None:
        """Let it take requests, or not; a disabled ring completes what it has."""
        step = step_ring(self.state, RingEvent.ENABLE if on else RingEvent.DISABLE)
        match step.action:
            case RingAction.START:
                self._start(terms)
            case RingAction.RESUME | RingAction.PAUSE:
                await self.change(lambda queue: queue.set_enabled(enabled=on))
        self.state = step.state

    async def move(self, terms: Terms, *, drain: bool) -> None:
        """
        Go on in a new address space.

        Args:
            terms: With the space; the ring is still there: see `check`.
            drain: Something of the old one goes.
        """
        placed = None if self.translated or self.broken else self.place.pieces(terms.space)
        await self.keeper.take_back(drain=drain)
        if drain:
            self._on_start()
        self._log_pages(terms)
        if not self.translated:
            self.queue.set_space(terms.space.segments)
        self._go_on(terms, placed)

    def _go_on(self, terms: Terms, placed: Placed | None) -> None:
        """Hand over a queue whose ring may have moved; None: it has not, or is looked for."""
        if self.translated:
            self._settle(terms)
            return
        if placed is not None:
            self._set_ring(self.queue, placed)
        self.keeper.hand_over()

    def check(self, space: AddressSpace) -> None:
        """
        Make sure that a running ring could go on in *space*.

        Raises:
            Refused: A part of it would be gone.
        """
        if not self.broken and not self.translated:
            self.place.pieces(space)

    def lies_in(self, space: AddressSpace) -> list[list[Range]]:
        """Return the guest memory of its parts, as `Place.lies_in` does."""
        return self.place.lies_in(space)

    async def condemn(self, why: str) -> None:
        """Break it, for a reason that no single request has."""
        if not self.broken:
            await self.keeper.take_back(drain=False)
            self.queue.condemn(why)

    # ---- behind an IOMMU ------------------------------------------------------------------

    def parts(self) -> list[tuple[int, int, Access]]:
        """Return address, bytes and use of each part, of a ring that was set up."""
        return [(at, length, part.access) for at, length, part in self.place.layout()]

    def settle(self, space: AddressSpace, *, ask: bool = True) -> bool:
        """
        Run it where it is in *space*, or hold it until that is known.

        Args:
            space: Behind the IOMMU.
            ask: Have asked what is not known; else the caller does.

        Returns:
            Whether there is something to ask for.
        """
        self.queue.set_space(space.segments)
        try:
            placed = self.place.pieces_by_iova(space)
        except Missing:
            self.keeper.held = True
            if ask:
                self._on_miss(None)
            return True
        except (Denied, Refused) as error:
            self.keeper.held = True
            self._log.error("queue %d cannot run: %s", self.index, error)
            return False
        self.keeper.held = False
        self._set_ring(self.queue, placed)
        self.keeper.hand_over()
        return False

    def _settle(self, terms: Terms) -> None:
        if terms.translated is None:
            raise Refused(EINVAL, f"ring {self.index} has lost its IOMMU")
        self.settle(terms.translated)

    async def change(self, apply: Callable[[Queue], None]) -> None:
        """Change a setting of the queue, wherever the ring stands."""
        if self.running:
            await self.keeper.change(apply)
        else:
            apply(self.queue)

    # ---- life -----------------------------------------------------------------------------

    async def stop(self) -> int:
        """
        Stop it; what is in flight is waited for.

        Returns:
            The next avail entry not yet taken; the same at the next call.
        """
        await self._end(RingEvent.STOP)
        stood = self.stood if self.base is None else self.base
        return first_base(packed=self.place.packed) if stood is None else stood

    async def reset(self) -> None:
        """
        Stop it and forget its settings; where it stood is still told, and not gone on from.

        QEMU 7.2 pauses a guest by SET_STATUS 0 first and GET_VRING_BASE then.
        """
        await self._end(RingEvent.RESET)
        if self.base is not None:
            self.stood = self.base
        self.base = self.used_log = None
        self.place = Place(index=self.index)

    async def _end(self, event: RingEvent) -> None:
        step = step_ring(self.state, event)
        if step.action is RingAction.STOP:
            if self.running:
                await self.keeper.take_back(drain=True)
                self.base = self.queue.base()
                self.queue.set_log(None)  # it has marked all that it has written
            self.queue.set_kick(None)
        self.keeper.held = False
        self.state = step.state

    def check_start(self, terms: Terms) -> None:
        """
        Make sure that a ring that has all its settings can be resumed.

        Raises:
            Refused: It cannot, by *terms*.
        """
        terms.admit(self.place, self.base)

    def resume(self, base: int, terms: Terms, *, broken: str | None) -> None:
        """
        Run on where another process has left it; all its settings are here.

        Args:
            base: Where that is.
            terms: What it runs by.
            broken: Why it waits for a restart, if it does.
        """
        self.base = base
        if broken is not None:
            self.place = terms.admit(self.place, self.base)
            self.queue.condemn(broken)
            return
        self._start(terms, enabled=self.state is RingState.STARTED)

    def _start(self, terms: Terms, *, enabled: bool = True) -> None:
        self.place = terms.admit(self.place, self.base)
        self.translated = terms.translates(self.place.layout())
        self.starts += 1
        self.before = self.counters()
        self.keeper.mend()
        if self.translated:
            self._log.info("queue %d: addresses go through the guest's IOMMU", self.index)
        self._put(terms, enabled=enabled)
        self.go_on(terms)

    def _put(self, terms: Terms, *, enabled: bool) -> None:
        """Have the queue know all that a ring runs by."""
        queue = self.queue
        if not self.translated:
            placed = self.place.pieces(terms.space)
            queue.set_ask(None)
            queue.set_space(terms.space.segments)
            self._set_ring(queue, placed)
        queue.set_base(first_base(packed=terms.packed) if self.base is None else self.base)
        queue.set_features(terms.features)
        queue.set_blk(terms.blk, writethrough=terms.writethrough)
        queue.set_enabled(enabled=enabled)
        self._noted = track(queue, terms.inflight, self.place, self._log)
        self._log_pages(terms)
        self._on_start()
        if self.translated:
            queue.set_ask(self._on_miss)

    def go_on(self, terms: Terms) -> None:
        """Run, of a ring that runs but for a moment."""
        if self.translated:
            self._settle(terms)
        else:
            self.keeper.hand_over()

    # ---- another queue --------------------------------------------------------------------

    async def rest(self, terms: Terms) -> None:
        """Have its queue stand still; what an error holds is left to the one in its place."""
        if self._noted is not None and self._noted is terms.inflight:  # where that finds it
            await self.keeper.rest(enabled=self.state is RingState.STARTED)
        else:
            await self.keeper.take_back(drain=True)

    def exchange(self, queue: Queue, terms: Terms) -> Former:
        """
        Go on with another queue behind it, where the one before it stood.

        Args:
            queue: Parked; `go_on` runs it.
            terms: As the ring runs by them.

        Returns:
            What `put_back` needs; the queue in it was drained, and is the caller's.
        """
        base = self.queue.base() if self.running else None
        former = self.keeper.exchange(queue)
        if base is None:
            return former
        self.base = base
        try:
            if self.broken:  # its memory may be gone; it only has to know where it stands
                queue.set_base(base)
                queue.set_features(terms.features)
            else:
                self._put(terms, enabled=self.state is RingState.STARTED)
        except BaseException:
            self.keeper.put_back(former)
            raise
        return former

    def _set_ring(self, queue: Queue, placed: Placed) -> None:
        queue.set_ring(size=self.place.num, desc=placed.desc, avail=placed.avail, used=placed.used)


def _take(fd: Fd | None) -> int | None:
    return None if fd is None else fd.take()
