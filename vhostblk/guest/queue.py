"""
A virtqueue with its three eventfds: submit chains, wait for them.

Waiting is poll() on call, err and the socket, so that a device that gave up or died is reported at
once and not as a timeout.
"""

import contextlib
import math
import os
import select
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vhostblk.guest.deadline import Deadline
from vhostblk.guest.dma import Direct, Dma
from vhostblk.guest.errors import BrokenQueueError, DisconnectedError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.ring import (
    Buffer,
    RingAddresses,
    SplitRing,
    indirect_table,
)
from vhostblk.spec import virtio_ring as vr

RECHECK = 0.25
"""Seconds without a call after which a waiting driver looks at the ring itself (see ``ring``)."""
GRACE = 0.25
"""Seconds a call may come after its used element before it counts as missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """
    How a queue is set up.

    Args:
        size: Descriptors.
        base: Index of the first entry.
        addresses: Where the parts lie; ``None`` to allocate them.
        honour_notify: Kick only when the device wants it (see ``ring`` for the risk).
        nonblocking_kick: Make the kick eventfd non-blocking, as QEMU does.
    """

    size: int = 256
    base: int = 0
    addresses: RingAddresses | None = None
    honour_notify: bool = False
    nonblocking_kick: bool = True


@dataclass(slots=True, eq=False)
class Ticket:
    """
    A chain in flight.

    Args:
        queue: Index of the queue.
        head: Its head descriptor.
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
        kick: Eventfd, driver to device.
        call: Eventfd, device to driver.
        err: Eventfd, device to driver: the queue is broken.
        hangup_fd: Socket whose end means that nobody will answer, if there is one.
        counters: Kicks and calls.
    """

    index: int
    memory: GuestMemory
    dma: Dma
    ring: SplitRing
    options: QueueOptions
    kick: int
    call: int
    err: int
    hangup_fd: int | None = None
    counters: QueueCounters = field(default_factory=QueueCounters)
    _tickets: dict[int, Ticket] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        index: int,
        memory: GuestMemory,
        options: QueueOptions,
        *,
        event_idx: bool = False,
        dma: Dma | None = None,
    ) -> "Queue":
        """
        Make a queue with an empty ring in guest memory.

        Args:
            index: Its number.
            memory: Where the ring goes.
            options: Size, base and place.
            event_idx: EVENT_IDX was negotiated.
            dma: How the device is shown memory; ``None``: as it is.

        Returns:
            The queue; the back-end has not heard of it.
        """
        dma = dma or Direct(memory)
        addresses = options.addresses or dma.allocate_ring(options.size)
        ring = SplitRing(memory, addresses, options.size, base=options.base, event_idx=event_idx)
        kick = os.eventfd(0, os.EFD_CLOEXEC | (os.EFD_NONBLOCK if options.nonblocking_kick else 0))
        call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return cls(index, memory, dma, ring, options, kick, call, err)

    def close(self) -> None:
        """Close the eventfds; free what was allocated for the ring and for chains in flight."""
        for fd in (self.kick, self.call, self.err):
            os.close(fd)
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
        if not self.options.honour_notify or self.ring.wants_kick(len(tickets)):
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
        self, options: QueueOptions, *, event_idx: bool = False, dma: Dma | None = None
    ) -> None:
        """
        Begin anew on an empty ring, as a driver does after a reset; the eventfds stay.

        The new ring is elsewhere, so that a device which still looks at the old one shows.

        Args:
            options: Of the new ring.
            event_idx: EVENT_IDX was negotiated.
            dma: How the device is shown memory from now on; ``None``: as before.
        """
        addresses = options.addresses or (dma or self.dma).allocate_ring(options.size)
        self._free_ring()
        self._forget_signals()
        self.dma = dma or self.dma
        self.ring = SplitRing(
            self.memory, addresses, options.size, base=options.base, event_idx=event_idx
        )
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
        try:
            calls = os.eventfd_read(self.call)
        except BlockingIOError:
            return 0
        self.counters.calls += calls
        return calls

    def _prepare_indirect(self, direct: Sequence[Buffer], buffers: Sequence[Buffer]) -> Ticket:
        packed = indirect_table(buffers)
        table = self.memory.allocate(len(packed))
        shown = None
        try:
            self.memory.write(table, packed)
            shown = self.dma.map(table, len(packed), writable=False, cpu=self.index)
            head = self.ring.add_indirect(direct, shown, len(packed) // vr.DESC_SIZE)
        except BaseException:
            self.memory.free(table)
            if shown is not None:
                self.dma.drop(shown)
            raise
        return Ticket(self.index, head, table, shown)

    def _forget_signals(self) -> None:
        self.take_calls()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.err)

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
        elif self._used_waits() and not self._poll(GRACE, [self.call]):
            self.counters.missed_calls += 1

    def _used_waits(self) -> bool:
        return self.ring.used_idx() != self.ring.last_used

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
