"""
The driver's block requests: placed in memory, mapped for the device, waited for, taken apart.

A request whose mappings find no room is held back until others are done, as Linux does with a full
bounce pool.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from vhostblk.guest import blk
from vhostblk.guest.blk import BlkTicket, Completion, Framing, Request
from vhostblk.guest.deadline import Deadline
from vhostblk.guest.dma import BounceError, Dma, UnderstatedError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.queue import Queue, Ticket
from vhostblk.guest.shape import Buffer
from vhostblk.guest.swiotlb import PoolFullError
from vhostblk.spec.virtio_blk import Status


class Driver:
    """
    Requests in flight.

    Args:
        memory: The guest's.
        queues: The device's, at any time.
    """

    def __init__(self, memory: GuestMemory, queues: Callable[[], Sequence[Queue]]) -> None:
        self._memory = memory
        self._queues = queues
        self._pending: dict[BlkTicket, Dma] = {}
        self.requeues = 0
        """How often a request was held back for want of bounce slots."""

    def submit(
        self, request: Request, on: Queue, framing: Framing, *, indirect: bool, timeout: float
    ) -> BlkTicket:
        """
        Put a request on a queue and kick.

        Args:
            request: Any.
            on: The queue.
            framing: How it is cut.
            indirect: Use an indirect table.
            timeout: Seconds to wait for bounce slots.

        Returns:
            Its ticket.

        Raises:
            RingError: No room on the ring.
            PoolFullError: No bounce slots, and nothing in flight that could free any.
            DeadlineError: Nor in time.
        """
        buffers, owned = blk.place(self._memory, request, framing)
        deadline = Deadline.after(timeout, "bounce slots")
        try:
            needed = framing.direct + 1 if indirect else len(buffers)
            if needed > on.ring.free_descriptors:
                on.reap()
            while (sent := self._try(buffers, on, framing.direct, indirect=indirect)) is None:
                self.requeues += 1
                self._make_room(deadline)
        except BaseException:
            for gpa in owned:
                self._memory.free(gpa)
            raise
        ticket, shown = sent
        pending = BlkTicket(ticket, request, buffers, owned, shown)
        self._pending[pending] = on.dma
        return pending

    def finish(self, done: BlkTicket) -> Completion:
        """
        Take the result of a request.

        Args:
            done: A ticket that is done.

        Returns:
            How it ended.

        Raises:
            GuestError: It is not done.
            BounceError: The device wrote where it must not.
        """
        complaints: list[BounceError] = []
        dma = self._pending.get(done)
        if dma is not None and done.ticket.used_length is not None:
            del self._pending[done]
            complaints = _unmap(dma, done.shown, done.ticket.used_length)
        completion = blk.collect(self._memory, done)
        for complaint in complaints:
            # Spec: virtio 1.3, 2.7.8.2: after an error the length may be an underestimate.
            if completion.status == Status.OK or not isinstance(complaint, UnderstatedError):
                raise complaint
        return completion

    def abandon(self, queue: int | None = None) -> None:
        """Forget everything in flight, on one queue or on all."""
        for pending in [p for p in self._pending if queue in {None, p.ticket.queue}]:
            _drop(self._pending.pop(pending), pending.shown)
            for gpa in pending.owned:
                self._memory.free(gpa)
            pending.owned.clear()

    def _try(
        self, buffers: Sequence[Buffer], on: Queue, direct: int, *, indirect: bool
    ) -> tuple[Ticket, tuple[Buffer, ...]] | None:
        shown: list[Buffer] = []
        try:
            for buffer in buffers:
                at = on.dma.map(buffer.gpa, buffer.length, writable=buffer.writable, cpu=on.index)
                shown.append(replace(buffer, gpa=at))
            return on.submit(shown, indirect=indirect, direct=direct), tuple(shown)
        except PoolFullError:
            _drop(on.dma, shown)
            if not self._pending:
                raise
            return None
        except BaseException:
            _drop(on.dma, shown)
            raise

    def _make_room(self, deadline: Deadline) -> None:
        while not (done := [p for p in self._pending if p.done]):
            queue = next(iter(self._pending)).ticket.queue
            self._queues()[queue].wait_some(deadline.left())
        for pending in done:
            self.finish(pending)


def _unmap(dma: Dma, shown: Sequence[Buffer], written: int) -> list[BounceError]:
    # Every buffer is taken back, whatever is wrong with one of them.
    complaints = []
    for i, buffer in enumerate(shown):
        here = min(written, buffer.length) if buffer.writable else 0
        written -= here
        try:
            # The last byte of all is the status, which errors may leave out of the length.
            dma.unmap(buffer.gpa, here, spare=int(buffer.writable and i == len(shown) - 1))
        except BounceError as error:
            complaints.append(error)
    return complaints


def _drop(dma: Dma, shown: Sequence[Buffer]) -> None:
    for buffer in shown:
        dma.drop(buffer.gpa)
