"""From a chain to a request: find its parts, check it, say what the disk must do."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vhostblk.blk.request import (
    ADDRESS_MASK,
    Answer,
    Buffer,
    Frame,
    Operation,
    Payload,
    Rules,
    frame,
    parse,
    parse_ranges,
)
from vhostblk.engine.op import Op
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.memory import GuestMemory, copy_in, copy_out
from vhostblk.engine.reference.needs import MAX_PIECES
from vhostblk.engine.reference.record import Trace
from vhostblk.engine.reference.ring import Broken, Chain, Done
from vhostblk.memory.space import Access, Denied
from vhostblk.spec.virtio_blk import RequestType, Status


@dataclass(slots=True)
class Request:
    """
    A request between pop and push.

    Args:
        chain: What it was made of.
        status_at: Where its status byte lives; None: it has no room for one.
        data: IN: where to put what is read; OUT: what to write; addresses of this process.
        todo: What the disk must still do; the first is under way.
        status: Its status, once nothing is to do.
        written: Bytes of data given to the driver.
        get_id: It asked for the serial.
        slots: Bounce slots of its descriptors and table.
        op: What its disk was asked for first; None: nothing.
        tag: Its number, of those of its queue.
        since_ns: When it was taken.
    """

    chain: Chain
    status_at: int | None
    data: tuple[Buffer, ...] = ()
    todo: deque[Operation] = field(default_factory=deque)
    status: Status = Status.OK
    written: int = 0
    get_id: bool = False
    slots: int = 0
    op: Op | None = None
    tag: int = 0
    since_ns: int = 0

    def fail(self) -> None:
        """End it with IOERR."""
        self.todo.clear()
        self.status = Status.IOERR
        self.written = 0

    def given_back(self) -> Done:
        """Return its chain with the bytes written into it, the status among them."""
        return Done(self.chain, 0 if self.status_at is None else self.written + 1)


def open_request(chain: Chain, memory: GuestMemory, rules: Rules, trace: Trace) -> Request:
    """
    Make a request of a chain.

    Args:
        chain: As popped.
        memory: What its addresses mean.
        rules: What it is checked against.
        trace: What was noted of the chain.

    Returns:
        The request; it is over already if it has nothing to do.

    Raises:
        Missing: A part of it must be asked for; nothing was changed.
        Broken: Its status byte may not be written.  Completing it would leave an old byte there,
            which may read as success.

    Spec: virtio 1.3, 5.2.6.
    """
    asked = frame(chain.buffers)
    if asked.status is None:
        return Request(chain, None, slots=trace.slots)
    status_at = _locate_status(asked.status, chain.at, memory, trace)
    request = Request(chain, status_at, slots=trace.slots)
    located = _locate(chain.buffers, memory) if asked.valid else None
    if located is None:
        request.fail()
        return request
    parts = frame(located)
    _take(request, parts, _decide(parts, rules))
    return request


def _locate_status(address: int, at: int, memory: GuestMemory, trace: Trace) -> int:
    try:
        (byte,) = memory.find(Buffer(address, 1, writable=True))
    except Denied as denied:
        trace.see_status(address, outside=True)
        reason = Reason.OUTSIDE if denied.fatal else Reason.STATUS_ADDRESS
        raise Broken(reason, at, address) from None
    trace.see_status(address, outside=Access.NOTED in byte.access)
    return byte.host


def _locate(buffers: Sequence[Buffer], memory: GuestMemory) -> list[Buffer] | None:
    """Return a chain's buffers in this process; None where one is out of reach or too many are."""
    located: list[Buffer] = []
    for part in buffers:
        if part.address + part.length > ADDRESS_MASK:
            return None  # wraps: nothing there is worth asking for
        try:
            located += memory.locate(part)
        except Denied:
            return None
        if len(located) > MAX_PIECES:
            return None
    return located


def _read(parts: Sequence[Buffer]) -> bytes:
    return b"".join(copy_in(part.address, part.length) for part in parts)


def _length(parts: Sequence[Buffer]) -> int:
    return sum(part.length for part in parts)


def _decide(parts: Frame, rules: Rules) -> Answer | tuple[Operation, ...]:
    plan = parse(
        _read(parts.header),
        readable=_length(parts.readable),
        writable=_length(parts.writable),
        rules=rules,
    )
    match plan:
        case Payload(kind):
            return parse_ranges(kind, _read(parts.readable), rules=rules)
        case Operation():
            return (plan,)
    return plan


def _take(request: Request, parts: Frame, plan: Answer | tuple[Operation, ...]) -> None:
    if isinstance(plan, Answer):
        request.status = plan.status
        request.written = _scatter(plan.data, parts.writable)
        request.get_id = plan.get_id
        return
    request.todo.extend(plan)
    kind = plan[0].type
    if kind is RequestType.IN:
        request.data = parts.writable
    elif kind is RequestType.OUT:
        request.data = parts.readable


def _scatter(data: bytes, parts: Sequence[Buffer]) -> int:
    """Store *data* at the front of *parts*, where it has room; return its length."""
    done = 0
    for part in parts:
        here = data[done : done + part.length]
        copy_out(part.address, here)
        done += len(here)
    return done
