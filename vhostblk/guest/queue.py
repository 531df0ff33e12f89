"""
A virtqueue with its three eventfds: submit chains, wait for them.

Waiting is poll() on call, err and the socket, so that a device that gave up or died is reported at
once and not as a timeout.
"""

import math
import os
import select
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vhostblk.guest.deadline import Deadline
from vhostblk.guest.dma import Direct, Dma
from vhostblk.guest.errors import BrokenQueueError, DisconnectedError, GuestError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.packed import PackedRing
from vhostblk.guest.ring import SplitRing
from vhostblk.guest.rings import QueueOptions, base_of, make_ring
from vhostblk.guest.shape import Buffer, Ring, RingFeatures
from vhostblk.guest.signals import Signals

RECHECK = 0.25
"""Seconds without a call after which a waiting driver looks at the ring itself (see ``ring``)."""
GRACE = 0.25
"""Seconds a call may come after its used element before it counts as missed."""


@dataclass(slots=True, eq=False)
class Ticket:
    """
    A chain in flight.

    Args:
        queue: Index of the queue.
        head: Its head descriptor, or its buffer id.
        table: GPA of its indirect table, if it has one.
        shown: Where the device sees the table.
        used_length: Bytes the device says it wrote; ``None`` until it is done.
    """

    queue: int
    head: int
    table: int | None = None
    shown: int = 0
    used_length: int | None = None

    @property
    def done(self) -> bool:
        """Tell whether the device has given the chain back."""
        return self.used_length is not None


@dataclass(slots=True)
class QueueCounters:
    """
    What happened on a queue.

    Args:
        kicks: Kicks written.
        calls: Calls received (several may arrive as one).
        missed_calls: Times something was used and no call came for it within ``GRACE``.
    """

    kicks: int = 0
    calls: int = 0
    missed_calls: int = 0


@dataclass(slots=True)
class Queue:
    """
    A virtqueue; make one with ``create``.

    Args:
        index: Its number.
        memory: The guest's.
        dma: The driver's way to show the device memory.
        ring: Its ring.
        options: How it was set up.
        signals: Its eventfds.
        hangup_fd: Socket whose end means that nobody will answer, if there is one.
        counters: Kicks and calls.
    """

    index: int
    memory: GuestMemory
    dma: Dma
    ring: Ring
    options: QueueOptions
    signals: Signals
    hangup_fd: int | None = None
    counters: QueueCounters = field(default_factory=QueueCounters)
    _own_signals: bool = False
    _tickets: dict[int, Ticket] = field(default_factory=dict)

    @classmethod
    def create(  # noqa: PLR0913 - the parts of a queue
        cls,
        index: int,
        memory: GuestMemory,
        options: QueueOptions,
        *,
        features: RingFeatures = RingFeatures(),  # noqa: B008 - a frozen value
        dma: Dma | None = None,
        signals: Signals | None = None,
    ) -> "Queue":
        """
        Make a queue with an empty ring in guest memory.

        Args:
            index: Its number.
            memory: Where the ring goes.
            options: Size, base and place.
            features: What was negotiated about rings.
            dma: How the device is shown memory; ``None``: as it is.
            signals: Its eventfds, which stay the caller's; ``None`` for its own.

        Returns:
            The queue; the back-end has not heard of it.
        """
        dma = dma or Direct(memory)
        ring = make_ring(memory, options, features, dma)
        made = signals or Signals.make(nonblocking_kick=options.nonblocking_kick)
        return cls(index, memory, dma, ring, options, made, _own_signals=signals is None)

    @property
    def split(self) -> SplitRing:
        """Return its ring, which has the split format."""
        if not isinstance(self.ring, SplitRing):
            raise GuestError(f"the ring of queue {self.index} has the packed format")
        return self.ring

    @property
    def packed(self) -> PackedRing:
        """Return its ring, which has the packed format."""
        if not isinstance(self.ring, PackedRing):
            raise GuestError(f"the ring of queue {self.index} has the split format")
        return self.ring

    @property
    def base(self) -> int:
        """Return where the ring began, as SET_VRING_BASE says it."""
        return base_of(self.options, packed=self.ring.shape.packed)

    @property
    def kick(self) -> int:
        """Return the eventfd by which the driver kicks."""
        return self.signals.kick

    @property
    def call(self) -> int:
        """Return the eventfd by which the device calls."""
        return self.signals.call

    @property
    def err(self) -> int:
        """Return the eventfd by which the device says that the queue is broken."""
        return self.signals.err

    def close(self) -> None:
        """Close eventfds of its own; free the ring and what is for chains in flight."""
        if self._own_signals:
            self.signals.close()
        self._free_ring()

    def submit(
        self, buffers: Sequence[Buffer], *, indirect: bool = False, direct: int = 0
    ) -> Ticket:
        """
        Write a chain, make it available and kick.

        Args:
            buffers: Readable ones first (not checked).
            indirect: Put the chain into an indirect table.
            direct: How many buffers stay in front of the table.

        Returns:
            The ticket to wait for.

        Raises:
            RingError: Not enough descriptors are free; wait for something first.
        """
        ticket = self.prepare(buffers, indirect=indirect, direct=direct)
        self.publish(ticket)
        return ticket

    def prepare(
        self, buffers: Sequence[Buffer], *, indirect: bool = False, direct: int = 0
    ) -> Ticket:
        """Write a chain as ``submit`` does, but do not show it to the device yet."""
        if not indirect:
            ticket = Ticket(self.index, self.ring.add(buffers))
        else:
            ticket = self._prepare_indirect(buffers[:direct], buffers[direct:])
        self._tickets[ticket.head] = ticket
        return ticket

    def adopt(self, head: int) -> Ticket:
        """Return the ticket of a chain written by hand with ``ring.take`` and friends."""
        return self._tickets.setdefault(head, Ticket(self.index, head))

    def publish(self, *tickets: Ticket) -> None:
        """Make prepared chains available in one go, then kick."""
        self.ring.publish(*(ticket.head for ticket in tickets))
        if not self.options.honour_notify or self.ring.wants_kick():
            self.notify()

    def notify(self) -> None:
        """Kick."""
        self.counters.kicks += 1
        os.eventfd_write(self.kick, 1)

    def reap(self) -> list[Ticket]:
        """
        Take what is done, without waiting.

        Returns:
            Tickets, in the order in which the device used them.

        Raises:
            RingError: The device broke the ring's rules.
        """
        done = []
        for used in self.ring.pop_used():
            ticket = self.adopt(used.head)
            del self._tickets[used.head]
            ticket.used_length = used.length
            done.append(ticket)
        for ticket in done:
            if ticket.table is not None:
                self.memory.free(ticket.table)
                self.dma.unmap(ticket.shown, 0)
        return done

    def wait(self, tickets: Iterable[Ticket], timeout: float) -> None:
        """
        Wait until all of *tickets* are done.

        Args:
            tickets: Of this queue.
            timeout: Seconds for all.

        Raises:
            DeadlineError: They are not.
            BrokenQueueError: The device signalled err instead.
            DisconnectedError: The back-end is gone.
            RingError: The device broke the ring's rules.
        """
        missing = [ticket for ticket in tickets if not ticket.done]
        deadline = Deadline.after(timeout, f"{len(missing)} chains on queue {self.index}")
        while True:
            self.reap()
            if all(ticket.done for ticket in missing):
                return
            try:
                self._wait_call(deadline)
            except DisconnectedError:
                self.reap()  # what it used before it went is used
                if not all(ticket.done for ticket in missing):
                    raise

    def wait_some(self, timeout: float) -> list[Ticket]:
        """
        Wait until at least one chain in flight is done.

        Args:
            timeout: Seconds.

        Returns:
            What is done, as ``reap`` returns it.

        Raises:
            DeadlineError: None is; and otherwise as ``wait``.
        """
        deadline = Deadline.after(timeout, f"any chain on queue {self.index}")
        while not (done := self.reap()):
            self._wait_call(deadline)
        return done

    def replace_ring(
        self,
        options: QueueOptions,
        *,
        features: RingFeatures = RingFeatures(),  # noqa: B008 - a frozen value
        dma: Dma | None = None,
    ) -> None:
        """
        Begin anew on an empty ring, as a driver does after a reset; the eventfds stay.

        The new ring is elsewhere, so that a device which still looks at the old one shows.

        Args:
            options: Of the new ring.
            features: What was negotiated about rings.
            dma: How the device is shown memory from now on; ``None``: as before.
        """
        ring = make_ring(self.memory, options, features, dma or self.dma)
        self._free_ring()
        self.take_calls()
        self.signals.forget_errors()
        self.dma = dma or self.dma
        self.ring = ring
        self.options = options

    def wait_broken(self, timeout: float) -> None:
        """
        Wait until the device signals err.

        Args:
            timeout: Seconds.

        Raises:
            DeadlineError: It does not.
            DisconnectedError: The back-end is gone.
        """
        deadline = Deadline.after(timeout, f"the err eventfd of queue {self.index}")
        while not self._poll(deadline.left(), [self.err]):
            deadline.left()
        os.eventfd_read(self.err)

    def is_broken(self) -> bool:
        """Tell whether the device has signalled err since the ring began or ``wait_broken``."""
        return bool(self._poll(0, [self.err]))

    def take_calls(self) -> int:
        """Return how many calls are pending (0 if none), and clear them."""
        calls = self.signals.take_calls()
        self.counters.calls += calls
        return calls

    def _prepare_indirect(self, direct: Sequence[Buffer], buffers: Sequence[Buffer]) -> Ticket:
        contents = self.ring.table(buffers)
        table = self.memory.allocate(len(contents))
        shown = None
        try:
            self.memory.write(table, contents)
            shown = self.dma.map(table, len(contents), writable=False, cpu=self.index)
            head = self.ring.add_indirect(direct, shown, buffers)
        except BaseException:
            self.memory.free(table)
            if shown is not None:
                self.dma.drop(shown)
            raise
        return Ticket(self.index, head, table, shown)

    def _free_ring(self) -> None:
        for ticket in self._tickets.values():
            if ticket.table is not None:
                self.memory.free(ticket.table)
                self.dma.drop(ticket.shown)
        self._tickets.clear()
        if self.options.addresses is None:
            self.dma.free_ring(self.ring.addresses)

    def _wait_call(self, deadline: Deadline) -> None:
        left = deadline.left()
        ready = self._poll(min(left, RECHECK), [self.call, self.err])
        if self.err in ready:
            raise BrokenQueueError(f"the device gave up queue {self.index} (err eventfd)")
        if self.call in ready:
            self.take_calls()
        elif self.ring.has_used() and not self._poll(GRACE, [self.call]):
            self.counters.missed_calls += 1

    def _poll(self, timeout: float, fds: Sequence[int]) -> set[int]:
        poller = select.poll()
        for fd in fds:
            poller.register(fd, select.POLLIN)
        if self.hangup_fd is not None:
            poller.register(self.hangup_fd, select.POLLRDHUP)
        ready = {fd for fd, _ in poller.poll(math.ceil(timeout * 1000))}
        if ready == {self.hangup_fd}:
            raise DisconnectedError(f"the back-end is gone; queue {self.index} was waiting for it")
        return ready - {self.hangup_fd}
