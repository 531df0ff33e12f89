"""The requests of one queue between pop and push: with the disk, held back, dead, or done."""

from collections import Counter
from itertools import count

from vhostblk.blk.request import Operation
from vhostblk.engine.api import Counters, Fault, Job, Op
from vhostblk.engine.errors import Stall
from vhostblk.engine.latency import Slow
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.chain import Request
from vhostblk.engine.reference.errors import Errors
from vhostblk.engine.reference.graveyard import Grave, Graveyard
from vhostblk.engine.reference.mailbox import JobBox, Result
from vhostblk.engine.reference.memory import copy_out, view
from vhostblk.engine.reference.order import Order
from vhostblk.engine.reference.record import Record, Trace
from vhostblk.engine.reference.times import Times
from vhostblk.engine.reference.use import Use
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import MAX_QUEUE_SIZE

MOST = 2 * MAX_QUEUE_SIZE
"""Requests of a queue, dead ones among them; each one under way may have to be cancelled."""

_OPS = {
    RequestType.IN: Op.READ,
    RequestType.OUT: Op.WRITE,
    RequestType.FLUSH: Op.FLUSH,
    RequestType.DISCARD: Op.DISCARD,
    RequestType.WRITE_ZEROES: Op.WRITE_ZEROES,
}
_COUNTERS = {
    RequestType.IN: "reads",
    RequestType.OUT: "writes",
    RequestType.FLUSH: "flushes",
    RequestType.DISCARD: "discards",
    RequestType.WRITE_ZEROES: "write_zeroes",
}


class Work:
    """
    What is under way; the worker's alone, but for `counters`.

    Args:
        box: Where the disk's jobs go.
        graveyard: The device's dead.
        record: Where the chains are recorded.
        errors: What the disk could not do.
        times: How long it takes.
    """

    def __init__(
        self, box: JobBox, graveyard: Graveyard, record: Record, errors: Errors, times: Times
    ) -> None:
        self._errors = errors
        self._times = times
        self._box = box
        self._record = record
        self._graveyard = graveyard
        self._tags = count(1)
        self._live: dict[int, Request] = {}
        self._dead: dict[int, tuple[Grave, Request]] = {}
        self._held: list[Request] = []
        self._order = Order()
        self._slots = 0
        self.tally: Counter[str] = Counter()
        self.use = Use((), lambda: None)
        """Whose memory is waited for; replaced by the control plane, begun by the worker."""
        self.fault: Fault | None = None
        """The disk did what the queue cannot go on after."""

    @property
    def in_flight(self) -> int:
        """Requests that are not done."""
        return len(self._live) + len(self._held) + len(self._errors.held)

    @property
    def dead(self) -> int:
        """Requests that were cancelled and are still with the disk."""
        return len(self._dead)

    @property
    def is_idle(self) -> bool:
        """Return whether all that was taken was given back."""
        return not self._order

    def has_room(self, size: int) -> bool:
        """Say whether a chain of a ring of *size* may be popped."""
        # A head may be made available again and again before it is given back; and what is
        # cancelled again and again stays with the disk.
        fits = len(self._order) < size and 2 * self.in_flight + self.dead < MOST
        return fits and self._record.has_room()

    def note(self, trace: Trace) -> None:
        """Record a chain that was popped, or that broke the queue."""
        self._record.commit(trace)
        self.tally["outside"] += trace.outside

    def counters(self) -> Counters:
        """Return what was counted; legal at any time."""
        return Counters(
            **self.tally,
            slots=self._slots,
            in_flight=self.in_flight,
            held=len(self._errors.held),
            dead=self.dead,
        )

    def slow(self, seconds: float) -> list[Slow]:
        """Return the requests that have been under way for so long; legal at any time."""
        under_way = [*self._live.values(), *self._held, *self._errors.held]
        return self._times.slow(under_way, seconds)

    def start(self, request: Request, trace: Trace) -> None:
        """Begin a request, which may be done by this."""
        self._order.take(request)
        self._times.begin(request)
        self._slots += request.slots
        self.tally["slots_high"] = max(self.tally["slots_high"], self._slots)
        self.tally["segment_max"] = max(self.tally["segment_max"], trace.longest)
        self.tally["descriptors"] += trace.descriptors
        if request.todo:
            self._submit(request)
        else:
            self._finish(request)

    def _submit(self, request: Request) -> None:
        operation = request.todo[0]
        request.op = _OPS[operation.type]
        if self._graveyard.blocks(operation):
            self._held.append(request)
            return
        tag = next(self._tags)
        self._live[tag] = request
        self._box.post(_job(tag, operation, request))

    def _finish(self, request: Request) -> None:
        # Before its element is published, and even if a broken ring never gets that.
        if request.status_at is not None:
            copy_out(request.status_at, bytes([request.status]))
        if request.get_id:
            self.tally["get_ids"] += 1
        elif request.status_at is None:
            self.tally["malformed"] += 1
        elif request.status is Status.IOERR:
            self.tally["errors"] += 1
        elif request.status is Status.UNSUPP:
            self.tally["unsupported"] += 1
        self._order.end(request)

    def take_done(self, *, in_order: bool) -> list[Request]:
        """Return the requests that can be given back, and forget them."""
        done = self._order.give_back(in_order=in_order)
        self._times.end(done)
        return self._free(done)

    def drop_done(self) -> None:
        """Forget the requests that would be given back, were the queue not broken."""
        self._free(self._order.forget())

    def _free(self, gone: list[Request]) -> list[Request]:
        self._slots -= sum(request.slots for request in gone)
        return gone

    def reap(self) -> int:
        """Look at what the disk has ended, and try again what was held back; return how much."""
        use = self.use  # of what was taken before it was asked
        if not use.begun:
            dead = [request for _, request in self._dead.values()]
            use.begin([*self._live.values(), *self._held, *self._errors.held], dead)
        results = self._box.reap()
        for result in results:
            buried = self._dead.pop(result.tag, None)
            if buried is not None:
                grave, request = buried
                self._graveyard.leave(grave)
                self._note_kept(result, grave.operation, grave.name)
                self.use.leave(request)
            else:
                self._advance(self._live.pop(result.tag), result)
        held, self._held = self._held, []
        if self._errors.resume:
            held += self._errors.take_held()
        for request in held:
            self._submit(request)
        return len(results)

    def _note_kept(self, result: Result, operation: Operation, name: int) -> None:
        if result.kept and self.fault is None:
            self.fault = Fault(Reason.DISK_KEPT_VIEW.text, name, operation.offset)

    def _advance(self, request: Request, result: Result) -> None:
        """Go on with a request of which one operation ended."""
        operation = request.todo[0]
        self._note_kept(result, operation, request.chain.name)
        if result.kept:
            self._slots -= request.slots
            self._order.lose(request)
            self.use.leave(request)
            return  # given back, its memory would be used again
        if result.errno:
            if self._is_held(request, operation, result.errno):
                return
            request.fail()
        else:
            request.todo.popleft()
        if request.todo:
            self._submit(request)
            return
        if request.status is Status.OK:
            self._account(request, operation)
        self._finish(request)
        self.use.leave(request)

    def _is_held(self, request: Request, operation: Operation, error: int) -> bool:
        stalled = self._errors.stall is not None
        op, offset, length = _OPS[operation.type], operation.offset, operation.length
        why = Stall(op=op, offset=offset, length=length, errno=error)
        held = self._errors.holds(request, why)
        self.tally["stalls"] += held and not stalled
        return held

    def _account(self, request: Request, last: Operation) -> None:
        self.tally[_COUNTERS[last.type]] += 1
        if last.type is RequestType.IN:
            request.written = last.length
            self.tally["bytes_read"] += last.length
        elif last.type is RequestType.OUT:
            self.tally["bytes_written"] += last.length

    def cancel(self) -> None:
        """End everything with IOERR now; what the disk has of it is dead."""
        self.give_up_held()  # first: in any order, but in that of the C core
        live, self._live = self._live, {}
        for tag, request in live.items():
            grave = self._graveyard.bury(request.todo[0], request.chain.name)
            self._dead[tag] = grave, request
            self._box.post(Job(tag, Op.CANCEL, 0, 0, ()))
        held, self._held = self._held, []
        for request in live.values():
            request.fail()
            self._finish(request)
        self._abandon(held)

    def give_up_held(self) -> None:
        """End what is held for its error with IOERR."""
        self._abandon(self._errors.take_held())

    def _abandon(self, requests: list[Request]) -> None:
        """End with IOERR what the disk does not have."""
        for request in requests:
            request.fail()
            self._finish(request)
            self.use.leave(request)


def _job(tag: int, operation: Operation, request: Request) -> Job:
    op = _OPS[operation.type]
    made = [view(part.address, part.length, writable=op is Op.READ) for part in request.data]
    return Job(
        tag=tag,
        op=op,
        offset=operation.offset,
        length=operation.length,
        views=tuple(memory for memory, _ in made),
        fua=operation.fua,
        unmap=operation.unmap,
        exporters=tuple(exporter for _, exporter in made),
    )
