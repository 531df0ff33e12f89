"""
Drivers that break the rules, each in one way, and what a device makes of it.

A case writes something into guest memory that no honest driver would, and kicks.  ``attempt`` tells
what came of it in one word.  The word expected of each case is the one this project has decided on
for its own back-end; another back-end may well answer otherwise and still be sound, but the words
SILENT and DISCONNECTED are never good news.

Spec: virtio 1.3, 2.7.5 and 2.7.13 (what a driver must do), 5.2.6.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from vhostblk.guest.blk import HEADER, UNWRITTEN_STATUS
from vhostblk.guest.errors import BrokenQueueError, DeadlineError, DisconnectedError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.queue import Queue, Ticket
from vhostblk.guest.ring import Descriptor, indirect_table
from vhostblk.guest.shape import Buffer
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.virtio_blk import REQUEST_HEADER_SIZE, SECTOR_SIZE, RequestType, Status


class Outcome(Enum):
    """What a device made of a request."""

    OK = "the status is OK"
    IOERR = "the status is IOERR"
    UNSUPP = "the status is UNSUPP"
    OTHER_STATUS = "the status is none of the standard's"
    GIVEN_BACK = "the chain came back without a status"
    BROKEN = "the device signalled the err eventfd"
    SILENT = "nothing happened"
    DISCONNECTED = "the back-end closed the connection"


_BY_STATUS = {
    Status.OK: Outcome.OK,
    Status.IOERR: Outcome.IOERR,
    Status.UNSUPP: Outcome.UNSUPP,
    UNWRITTEN_STATUS: Outcome.GIVEN_BACK,
}


@dataclass(frozen=True, slots=True)
class Trap:
    """
    A case that was written into memory and kicked.

    Args:
        ticket: The chain, if there is one that could come back.
        status_gpa: Where its status byte should be, if it has one.
    """

    ticket: Ticket | None = None
    status_gpa: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """
    One way to break the rules.

    Args:
        name: In words, for the ids of tests.
        expected: What this project's back-end answers; None: whatever it likes, if it survives.
        set_up: Writes it to a queue and kicks.
    """

    name: str
    expected: Outcome | None
    set_up: Callable[[Queue], Trap]


def attempt(queue: Queue, case: Case, timeout: float = 5.0) -> Outcome:
    """
    Run a case.

    Args:
        queue: At least 8 descriptors, nothing in flight; unusable afterwards if it ends BROKEN.
        case: Which.
        timeout: Seconds after which nothing has happened.

    Returns:
        What happened.

    Raises:
        RingError: The device answered with a broken ring of its own.
    """
    trap = case.set_up(queue)
    try:
        if trap.ticket is None:
            queue.wait_broken(timeout)
            return Outcome.BROKEN
        queue.wait([trap.ticket], timeout)
    except BrokenQueueError:
        return Outcome.BROKEN
    except DeadlineError:
        return Outcome.SILENT
    except DisconnectedError:
        return Outcome.DISCONNECTED
    if trap.status_gpa is None:
        return Outcome.GIVEN_BACK
    return _BY_STATUS.get(queue.memory.read(trap.status_gpa, 1)[0], Outcome.OTHER_STATUS)


@contextlib.contextmanager
def flicker(memory: GuestMemory, gpa: int, *values: bytes) -> Iterator[None]:
    """
    Change memory under the device: write *values* in turn, as fast as possible, from a thread.

    Args:
        memory: Where; no region may come or go meanwhile.
        gpa: First byte.
        values: At least two, of the same length.  The last one stays in the end.

    Yields:
        Nothing; it goes on until the ``with`` block ends.
    """
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            for value in values:
                memory.write(gpa, value)

    thread = threading.Thread(target=run, name="flicker")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def header(queue: Queue, kind: int = RequestType.IN, sector: int = 0) -> Buffer:
    """Put a request header into memory and return its descriptor."""
    gpa = queue.memory.allocate(REQUEST_HEADER_SIZE)
    queue.memory.write(gpa, HEADER.pack(kind, 0, sector))
    return Buffer(gpa, REQUEST_HEADER_SIZE)


def data(queue: Queue, length: int = SECTOR_SIZE, *, writable: bool = True) -> Buffer:
    """Allocate a data buffer and return its descriptor."""
    return Buffer(queue.memory.allocate(length), length, writable)


def status(queue: Queue) -> Buffer:
    """Allocate a status byte that holds no status and return its descriptor."""
    gpa = queue.memory.allocate(1)
    queue.memory.write(gpa, bytes([UNWRITTEN_STATUS]))
    return Buffer(gpa, 1, writable=True)


def chain(queue: Queue, *buffers: Buffer) -> Trap:
    """Submit a chain of direct descriptors, the last of which is the status."""
    return Trap(queue.submit(buffers), buffers[-1].gpa)


def raw_chain(queue: Queue, *descriptors: Descriptor) -> Trap:
    """
    Submit descriptors as they are; the flag NEXT leads to the one behind.

    Args:
        queue: Where.
        descriptors: ``next`` is counted from the first of these, and may be any value.

    Returns:
        The trap, without a status.
    """
    taken = queue.split.take(len(descriptors))
    for index, descriptor in zip(taken, descriptors, strict=True):
        after = taken[descriptor.next] if descriptor.next < len(taken) else descriptor.next
        queue.split.write_descriptor(
            index, Descriptor(descriptor.addr, descriptor.length, descriptor.flags, after)
        )
    ticket = queue.adopt(taken[0])
    queue.publish(ticket)
    return Trap(ticket)


def table_chain(queue: Queue, table: bytes, length: int | None = None, flags: int = 0) -> Trap:
    """
    Submit one descriptor that refers to an indirect table.

    Args:
        queue: Where.
        table: Contents of the table.
        length: What the descriptor says; ``None``: the truth.
        flags: Besides INDIRECT.

    Returns:
        The trap, without a status.
    """
    gpa = queue.memory.allocate(len(table))
    queue.memory.write(gpa, table)
    said = len(table) if length is None else length
    return raw_chain(queue, Descriptor(gpa, said, vr.DESC_F_INDIRECT | flags))


def read_table(queue: Queue) -> tuple[bytes, int]:
    """Return an honest indirect table that reads one sector, and the GPA of its status."""
    last = status(queue)
    return indirect_table([header(queue), data(queue), last]), last.gpa


def _avail_idx_ahead(queue: Queue) -> Trap:
    queue.split.set_avail_idx(queue.split.avail_idx + queue.ring.shape.size + 1)
    queue.notify()
    return Trap()


def _avail_idx_back(queue: Queue) -> Trap:
    queue.split.set_avail_idx(queue.split.avail_idx - 1)
    queue.notify()
    return Trap()


def _head(head: int) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        queue.ring.publish(queue.ring.shape.size if head < 0 else head)
        queue.notify()
        return Trap()

    return set_up


def _next_out_of_range(queue: Queue) -> Trap:
    first = header(queue)
    return raw_chain(queue, Descriptor(first.gpa, first.length, vr.DESC_F_NEXT, 0xFFFF))


def _loop(length: int) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        buffer = header(queue)
        return raw_chain(
            queue,
            *(
                Descriptor(buffer.gpa, buffer.length, vr.DESC_F_NEXT, (i + 1) % length)
                for i in range(length)
            ),
        )

    return set_up


def _indirect_loop(queue: Queue) -> Trap:
    first = header(queue)
    back = Descriptor(first.gpa, first.length, vr.DESC_F_NEXT, 0)
    return table_chain(queue, back.pack() * 2)


def _indirect_next_out_of_table(queue: Queue) -> Trap:
    first = header(queue)
    return table_chain(queue, Descriptor(first.gpa, first.length, vr.DESC_F_NEXT, 2).pack() * 2)


def _indirect_nested(queue: Queue) -> Trap:
    table, status_gpa = read_table(queue)
    inner = queue.memory.allocate(len(table))
    queue.memory.write(inner, table)
    nested = Descriptor(inner, len(table), vr.DESC_F_INDIRECT)
    return Trap(table_chain(queue, nested.pack()).ticket, status_gpa)


def _indirect_and_next(queue: Queue) -> Trap:
    table, status_gpa = read_table(queue)
    return Trap(table_chain(queue, table, flags=vr.DESC_F_NEXT).ticket, status_gpa)


def _indirect_length(length: int) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        table, status_gpa = read_table(queue)
        return Trap(table_chain(queue, table, length).ticket, status_gpa)

    return set_up


def _indirect_outside(queue: Queue) -> Trap:
    return raw_chain(queue, Descriptor(queue.memory.hole(), 3 * vr.DESC_SIZE, vr.DESC_F_INDIRECT))


def _indirect_over_the_end(queue: Queue) -> Trap:
    first = header(queue)
    gpa = queue.memory.mappings[-1].region.end - vr.DESC_SIZE
    queue.memory.write(gpa, Descriptor(first.gpa, first.length, vr.DESC_F_NEXT, 1).pack())
    return raw_chain(queue, Descriptor(gpa, 0xFFFF_FFF0, vr.DESC_F_INDIRECT))


def _no_status(queue: Queue) -> Trap:
    return Trap(queue.submit([header(queue, RequestType.OUT), data(queue, writable=False)]))


def _status_outside(queue: Queue) -> Trap:
    outside = Buffer(queue.memory.hole(), 1, writable=True)
    return Trap(queue.submit([header(queue), data(queue), outside]))


def _header_outside(queue: Queue) -> Trap:
    outside = Buffer(queue.memory.hole(), REQUEST_HEADER_SIZE)
    return chain(queue, outside, data(queue), status(queue))


def _short_header(queue: Queue) -> Trap:
    whole = header(queue)
    return chain(queue, Buffer(whole.gpa, REQUEST_HEADER_SIZE - 1), data(queue), status(queue))


def _read_into(buffer: Callable[[Queue], Buffer]) -> Callable[[Queue], Trap]:
    return lambda queue: chain(queue, header(queue), buffer(queue), status(queue))


def _write_from_hole(queue: Queue) -> Trap:
    outside = Buffer(queue.memory.hole(), SECTOR_SIZE)
    return chain(queue, header(queue, RequestType.OUT), outside, status(queue))


def _past_the_end(queue: Queue) -> Buffer:
    end = queue.memory.mappings[-1].region.end
    return Buffer(end - SECTOR_SIZE // 2, SECTOR_SIZE, writable=True)


def _request(kind: int, sector: int = 0, length: int = SECTOR_SIZE) -> Callable[[Queue], Trap]:
    return lambda queue: chain(
        queue, header(queue, kind, sector), data(queue, length), status(queue)
    )


RING_CASES = (
    Case("avail idx too far ahead", Outcome.BROKEN, _avail_idx_ahead),
    Case("avail idx goes back", Outcome.BROKEN, _avail_idx_back),
    Case("head is the ring's size", Outcome.BROKEN, _head(-1)),
    Case("head is 65535", Outcome.BROKEN, _head(0xFFFF)),
    Case("next is out of range", Outcome.BROKEN, _next_out_of_range),
    Case("descriptor that follows itself", Outcome.BROKEN, _loop(1)),
    Case("two descriptors in a loop", Outcome.BROKEN, _loop(2)),
    Case("status outside RAM", Outcome.BROKEN, _status_outside),
)
"""The ring is not a ring, or what would say so cannot be written."""

INDIRECT_CASES = (
    Case("loop in an indirect table", Outcome.BROKEN, _indirect_loop),
    Case("next out of an indirect table", Outcome.BROKEN, _indirect_next_out_of_table),
    Case("indirect table in an indirect table", Outcome.BROKEN, _indirect_nested),
    Case("INDIRECT and NEXT together", Outcome.BROKEN, _indirect_and_next),
    Case("indirect table of 0 bytes", Outcome.BROKEN, _indirect_length(0)),
    Case("indirect table of 47 bytes", Outcome.BROKEN, _indirect_length(47)),
    Case("indirect table over the end of RAM", Outcome.BROKEN, _indirect_over_the_end),
    Case("indirect table outside RAM", Outcome.BROKEN, _indirect_outside),
)
"""The chain cannot be followed to its end; INDIRECT_DESC must be negotiated."""

REQUEST_CASES = (
    Case("no writable descriptor", Outcome.GIVEN_BACK, _no_status),
    Case("header outside RAM", Outcome.IOERR, _header_outside),
    Case("header of 15 bytes", Outcome.IOERR, _short_header),
    Case(
        "read into a hole",
        Outcome.IOERR,
        _read_into(lambda queue: Buffer(queue.memory.hole(), SECTOR_SIZE, writable=True)),
    ),
    Case("read over the end of RAM", Outcome.IOERR, _read_into(_past_the_end)),
    Case(
        "read over the end of the address space",
        Outcome.IOERR,
        _read_into(lambda _: Buffer(2**64 - SECTOR_SIZE // 2, SECTOR_SIZE, writable=True)),
    ),
    Case("write from a hole", Outcome.IOERR, _write_from_hole),
    Case("read past the end of the disk", Outcome.IOERR, _request(RequestType.IN, 1 << 40)),
    Case("read at the last sector number", Outcome.IOERR, _request(RequestType.IN, 2**64 - 1)),
    Case("read of 511 bytes", Outcome.IOERR, _request(RequestType.IN, 0, SECTOR_SIZE - 1)),
    Case("unknown request type", Outcome.UNSUPP, _request(0x7777)),
)
"""The ring is sound and the request is not; the queue must go on."""
