"""
One ring of a front-end: its state, what the front-end said of it, and the queue behind it.

Everything that changes the state goes through `vhostblk.protocol.state.step_ring`; this file does
what the table's actions say.  A ring's queue is made when the front-end first mentions the ring
with something to keep, and lives until the connection ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EINVAL

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import Fault, Piece, Queue
from vhostblk.errors import Refused
from vhostblk.memory.space import AVAIL, DESC, USED, AddressSpace
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.state import RingAction, RingEvent, RingState, step_ring
from vhostblk.server.log import Log
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_SIZE,
    EVENT_SIZE,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

_RUNNING = frozenset({RingState.STARTED, RingState.PAUSED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the parts of a ring are, as front-end virtual addresses."""

    desc: int
    avail: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What a ring runs by; gathered anew at each start, as a driver may ack less than the last one.

    Args:
        features: Acked by the driver.
        space: Guest memory.
        blk: What the device promises.
        writethrough: Every write is stable before its status.
    """

    features: int
    space: AddressSpace
    blk: BlkDevice
    writethrough: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A ring in this process's memory."""

    desc: Sequence[Piece]
    avail: Sequence[Piece]
    used: Sequence[Piece]


class Ring:
    """
    A ring.

    Args:
        index: Its number.
        make_queue: Makes the queue behind it, parked.
        drain_seconds: Bound of every drain.
        log: For what an operator should know.
    """

    def __init__(
        self, index: int, *, make_queue: Callable[[], Queue], drain_seconds: float, log: Log
    ) -> None:
        self.index = index
        self.state = RingState.STOPPED
        self.base = 0
        self._num = 0
        self._addresses: Addresses | None = None
        self._make_queue = make_queue
        self._made: Queue | None = None
        self._drain_seconds = drain_seconds
        self._log = log

    @property
    def running(self) -> bool:
        """Whether its worker owns the queue, or did until it broke."""
        return self.state in _RUNNING

    @property
    def broken(self) -> bool:
        """Whether it must be stopped and started before it serves again."""
        return self.fault() is not None

    def fault(self) -> Fault | None:
        """Return why it is broken, None while it is not."""
        return None if self._made is None else self._made.fault()

    @property
    def queue(self) -> Queue:
        """Return the queue behind it; made at the first call."""
        if self._made is None:
            self._made = self._make_queue()
        return self._made

    # ---- settings -------------------------------------------------------------------------

    def set_num(self, num: int) -> None:
        """Note its size in descriptors."""
        self.state = step_ring(self.state, RingEvent.SETUP).state
        self._num = num

    def set_base(self, base: int) -> None:
        """Note the next avail entry to take."""
        self.state = step_ring(self.state, RingEvent.SETUP).state
        self.base = base

    async def set_addresses(self, addresses: Addresses, terms: Terms) -> None:
        """Note where it is; while it runs, move it there."""
        step = step_ring(self.state, RingEvent.ADDR)
        if step.action is RingAction.UPDATE:
            placed = self._placed(addresses, terms.space)
            await self.change(lambda queue: self._set_ring(queue, placed))
        self._addresses = addresses
        self.state = step.state

    async def set_kick(self, fd: Fd | None, terms: Terms) -> None:
        """Arm it, and start it if it is enabled; None: it is polled."""
        step = step_ring(self.state, RingEvent.KICK)
        if step.action is RingAction.START:
            self._place(terms.space)  # refuse before anything is changed
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

    async def move(self, space: AddressSpace, *, drain: bool) -> None:
        """
        Go on in a new address space.

        Args:
            space: Where the ring still is: see `check`.
            drain: Something of the old one goes.
        """
        placed = None if self.broken else self._place(space)
        await self.take_back(drain=drain)
        self.queue.set_space(space.segments)
        if placed is not None:
            self._set_ring(self.queue, placed)
        self.hand_over()

    def check(self, space: AddressSpace) -> None:
        """
        Make sure that a running ring could go on in *space*.

        Raises:
            Refused: A part of it would be gone.
        """
        if not self.broken:
            self._place(space)

    # ---- life -----------------------------------------------------------------------------

    async def stop(self) -> int:
        """
        Stop it; what is in flight is waited for.

        Returns:
            The next avail entry not yet taken; the same at the next call.
        """
        await self._end(RingEvent.STOP)
        return self.base

    async def reset(self) -> None:
        """Stop it and forget its settings."""
        await self._end(RingEvent.RESET)
        self._num = self.base = 0
        self._addresses = None

    async def _end(self, event: RingEvent) -> None:
        step = step_ring(self.state, event)
        if step.action is RingAction.STOP:
            if self.running:
                await self.take_back(drain=True)
                self.base = self.queue.base()
            self.queue.set_kick(None)
        self.state = step.state

    async def take_back(self, *, drain: bool) -> None:
        """Get the queue of a running ring back; *drain*: with nothing in flight."""
        if not drain:
            await self.queue.parked()
            return
        dead = await self.queue.drained(seconds=self._drain_seconds)
        if dead:
            self._log.warning(
                "queue %d: %d requests failed after %g s; the disk still has them",
                self.index,
                dead,
                self._drain_seconds,
            )

    def hand_over(self) -> None:
        """Give the queue of a running ring to its worker again; a broken one waits."""
        if not self.broken:
            self.queue.run()

    async def change(self, apply: Callable[[Queue], None]) -> None:
        """Change a setting of the queue, wherever the ring stands."""
        if not self.running:
            apply(self.queue)
            return
        await self.take_back(drain=False)
        try:
            apply(self.queue)
        finally:
            self.hand_over()

    async def give_up(self) -> Queue | None:
        """
        Drain the queue for the last time.

        Returns:
            It, to be closed; None if there never was one.
        """
        if self._made is not None:
            await self.take_back(drain=True)
        queue, self._made = self._made, None
        return queue

    def _start(self, terms: Terms) -> None:
        placed = self._place(terms.space)
        queue = self.queue
        queue.set_space(terms.space.segments)
        self._set_ring(queue, placed)
        queue.set_base(self.base)
        queue.set_features(terms.features)
        queue.set_blk(terms.blk, writethrough=terms.writethrough)
        queue.set_enabled(enabled=True)
        queue.run()

    def _set_ring(self, queue: Queue, placed: _Placed) -> None:
        queue.set_ring(size=self._num, desc=placed.desc, avail=placed.avail, used=placed.used)

    def _place(self, space: AddressSpace) -> _Placed:
        if self._addresses is None:
            raise Refused(EINVAL, f"ring {self.index} has no address: SET_VRING_ADDR is missing")
        return self._placed(self._addresses, space)

    def _placed(self, addresses: Addresses, space: AddressSpace) -> _Placed:
        num = self._num
        if num == 0:
            raise Refused(EINVAL, f"ring {self.index} has no size: SET_VRING_NUM is missing")
        desc = num * DESC_SIZE
        avail = AVAIL_HEADER_SIZE + num * AVAIL_ELEM_SIZE + EVENT_SIZE
        used = USED_HEADER_SIZE + num * USED_ELEM_SIZE + EVENT_SIZE
        return _Placed(
            desc=space.ring_pieces(addresses.desc, desc, DESC),
            avail=space.ring_pieces(addresses.avail, avail, AVAIL),
            used=space.ring_pieces(addresses.used, used, USED),
        )


def _take(fd: Fd | None) -> int | None:
    return None if fd is None else fd.take()
