"""
Block requests, and how they are cut into descriptors.

A request is two strings of bytes, one the device reads (header, data out) and one it writes (data
in, status).  Where the cuts between descriptors fall means nothing to a device; ``Framing`` lets a
test put them anywhere.

Spec: virtio 1.3, 5.2.6; 2.7.4 on message framing.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.queue import Ticket
from vhostblk.guest.shape import Buffer
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import RequestType

HEADER = struct.Struct("<IIQ")
RANGE = struct.Struct("<QII")
UNWRITTEN_STATUS = 0xEE
"""What the status byte holds until the device writes it; no status of the standard."""
UNWRITTEN_DATA = 0xA5
"""What every byte of a read buffer holds until the device writes it."""


@dataclass(frozen=True, slots=True)
class Range:
    """
    One segment of DISCARD or WRITE_ZEROES.

    Args:
        sector: First sector.
        num_sectors: How many.
        flags: Bit 0: unmap (WRITE_ZEROES only).
    """

    sector: int
    num_sectors: int
    flags: int = 0

    def pack(self) -> bytes:
        """Return its 16 bytes."""
        return RANGE.pack(self.sector, self.num_sectors, self.flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    What the driver asks for; the class methods make the usual ones.

    Args:
        type: The type field, any u32.
        sector: The sector field.
        out: Data behind the header.
        in_length: Bytes the device may write in front of the status.
        ioprio: The second field of the header, reserved.
    """

    type: int
    sector: int = 0
    out: bytes = b""
    in_length: int = 0
    ioprio: int = 0

    @classmethod
    def read(cls, sector: int, length: int) -> "Request":
        """Read *length* bytes."""
        return cls(type=RequestType.IN, sector=sector, in_length=length)

    @classmethod
    def write(cls, sector: int, data: bytes) -> "Request":
        """Write *data*."""
        return cls(type=RequestType.OUT, sector=sector, out=bytes(data))

    @classmethod
    def flush(cls) -> "Request":
        """Make completed writes stable."""
        return cls(type=RequestType.FLUSH)

    @classmethod
    def get_id(cls, length: int = vb.SERIAL_SIZE) -> "Request":
        """Ask for the serial, with room for *length* bytes."""
        return cls(type=RequestType.GET_ID, in_length=length)

    @classmethod
    def discard(cls, ranges: Sequence[Range]) -> "Request":
        """Tell that the contents of *ranges* are not needed any more."""
        return cls(type=RequestType.DISCARD, out=b"".join(r.pack() for r in ranges))

    @classmethod
    def write_zeroes(cls, ranges: Sequence[Range]) -> "Request":
        """Make *ranges* read as zeros."""
        return cls(type=RequestType.WRITE_ZEROES, out=b"".join(r.pack() for r in ranges))

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Return what DISCARD or WRITE_ZEROES is about."""
        return tuple(Range(*fields) for fields in RANGE.iter_unpack(self.out))

    @property
    def readable(self) -> bytes:
        """Return everything the device reads."""
        return HEADER.pack(self.type, self.ioprio, self.sector) + self.out

    def __str__(self) -> str:
        try:
            name = RequestType(self.type).name
        except ValueError:
            name = f"request type {self.type}"
        return f"{name} at sector {self.sector} ({len(self.out)} out, {self.in_length} in)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """
    Where the cuts fall, and where the pieces lie.

    Args:
        readable: Sizes of the descriptors the device reads, in bytes; the last one takes what is
            left, and sizes beyond the end mean nothing.  ``None``: the header, then the data.
        writable: The same for what it writes.  ``None``: the data, then the status.
        indirect: Use an indirect table; ``None``: if it was negotiated.
        direct: Descriptors in front of the indirect table.
        align: Each piece begins at a multiple of this plus *skew*.
        skew: Bytes, to misalign pieces.
        at: GPAs of all pieces in order, reserved by the caller; ``None`` to allocate each apart.
    """

    readable: Sequence[int] | None = None
    writable: Sequence[int] | None = None
    indirect: bool | None = None
    direct: int = 0
    align: int = 16
    skew: int = 0
    at: Sequence[int] | None = None

    @classmethod
    def compact(cls) -> "Framing":
        """Use one descriptor each way: header and data out, data in and status."""
        return cls(readable=(), writable=())

    @classmethod
    def every(cls, size: int, request: Request, *, indirect: bool | None = None) -> "Framing":
        """Cut *request* every *size* bytes, header and status included."""
        return cls(
            readable=(size,) * (len(request.readable) // size),
            writable=(size,) * ((request.in_length + 1) // size),
            indirect=indirect,
        )

    @classmethod
    def pieces(cls, size: int, request: Request) -> "Framing":
        """Cut as usual, and the data every *size* bytes."""
        out, rest = len(request.out) // size, request.in_length % size
        return cls(
            readable=(vb.REQUEST_HEADER_SIZE, *(size,) * out),
            writable=(size,) * (request.in_length // size) + ((rest,) if rest else ()),
        )

    def cut(self, request: Request) -> tuple[list[int], list[int]]:
        """
        Work out the sizes of all descriptors.

        Args:
            request: What is cut.

        Returns:
            Sizes of the readable and of the writable ones.
        """
        readable, writable = self.readable, self.writable
        if readable is None:
            readable = (vb.REQUEST_HEADER_SIZE,)
        if writable is None:
            writable = (request.in_length,) if request.in_length else ()
        return _fill(readable, len(request.readable)), _fill(writable, request.in_length + 1)


@dataclass(slots=True, eq=False)
class BlkTicket:
    """
    A block request in flight.

    Args:
        ticket: Its chain.
        request: What was asked.
        buffers: Its pieces in order.
        owned: GPAs to free once the result is collected.
        shown: The pieces where the device sees them.
        completion: The result, once collected.
    """

    ticket: Ticket
    request: Request
    buffers: tuple[Buffer, ...]
    owned: list[int]
    shown: tuple[Buffer, ...] = ()
    completion: "Completion | None" = None

    @property
    def done(self) -> bool:
        """Tell whether the device has given the chain back."""
        return self.ticket.done


@dataclass(frozen=True, slots=True)
class Completion:
    """
    How a block request ended.

    Args:
        status: The status byte; ``UNWRITTEN_STATUS`` if the device wrote none.
        data: Everything the device could write in front of the status; bytes it did not write are
            ``UNWRITTEN_DATA``.
        used_length: Bytes the device says it wrote, status included.
    """

    status: int
    data: bytes
    used_length: int


def place(
    memory: GuestMemory, request: Request, framing: Framing
) -> tuple[tuple[Buffer, ...], list[int]]:
    """
    Put a request into guest memory.

    Args:
        memory: Where.
        request: What.
        framing: How it is cut.

    Returns:
        The buffers of its chain, and the GPAs to free later.

    Raises:
        GuestError: No room, or ``framing.at`` has another number of pieces.
    """
    readable, writable = framing.cut(request)
    sizes = readable + writable
    addresses, owned = _addresses(memory, sizes, framing)
    contents = request.readable + bytes([UNWRITTEN_DATA]) * request.in_length
    contents += bytes([UNWRITTEN_STATUS])
    buffers = []
    for i, (gpa, size) in enumerate(zip(addresses, sizes, strict=True)):
        memory.write(gpa, contents[:size])
        contents = contents[size:]
        buffers.append(Buffer(gpa, size, writable=i >= len(readable)))
    return tuple(buffers), owned


def collect(memory: GuestMemory, done: BlkTicket) -> Completion:
    """
    Read the result of a request out of guest memory, once, and free its pieces.

    Args:
        memory: Where it lies.
        done: A ticket that is done.

    Returns:
        The result.

    Raises:
        GuestError: It is not done.
    """
    if done.completion is not None:
        return done.completion
    if done.ticket.used_length is None:
        raise GuestError(f"{done.request} is still in flight")
    written = b"".join(memory.read(b.gpa, b.length) for b in done.buffers if b.writable)
    while done.owned:
        memory.free(done.owned.pop())
    done.completion = Completion(written[-1], written[:-1], done.ticket.used_length)
    return done.completion


def _addresses(
    memory: GuestMemory, sizes: Sequence[int], framing: Framing
) -> tuple[list[int], list[int]]:
    if framing.at is not None:
        if len(framing.at) != len(sizes):
            raise GuestError(f"{len(sizes)} descriptors, but {len(framing.at)} addresses for them")
        return list(framing.at), []
    owned: list[int] = []
    try:
        # One by one, so that *owned* holds what was handed out when one of them fails.
        for size in sizes:
            gpa = memory.allocate(max(size, 1) + framing.skew, align=framing.align)
            owned.append(gpa)
    except GuestError:
        for gpa in owned:
            memory.free(gpa)
        raise
    return [gpa + framing.skew for gpa in owned], owned


def _fill(sizes: Sequence[int], total: int) -> list[int]:
    pieces = []
    for size in sizes:
        if not total:
            break
        pieces.append(min(size, total))
        total -= pieces[-1]
    return [*pieces, total] if total else pieces
