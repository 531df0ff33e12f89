"""
What a request asks for, however the driver cut it into descriptors.

Everything here is plain values: the data plane reads guest memory, once, and hands over what it
read.  First `frame` says where header, data and status are; then `parse` decides by the header;
for DISCARD and WRITE_ZEROES it names the payload to read, and `parse_ranges` decides by that.

Source: virtio 1.3, 5.2.6, and 2.7.4 for the framing.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vhostblk.blk.device import MAX_RANGES, MAX_TRANSFER, BlkDevice
from vhostblk.spec.virtio_blk import (
    RANGE_SIZE,
    REQUEST_HEADER_SIZE,
    SECTOR_SIZE,
    SERIAL_SIZE,
    TYPE_BARRIER,
    WRITE_ZEROES_F_UNMAP,
    RequestType,
    Status,
)

_HEADER = struct.Struct("<I4xQ")
_RANGE = struct.Struct("<QII")
ADDRESS_MASK = (1 << 64) - 1
"""Guest addresses wrap: a buffer that ends behind the last one has its last byte at the front."""
_CHANGES = frozenset((RequestType.OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES))


@dataclass(frozen=True, slots=True)
class Buffer:
    """
    One descriptor of a chain, or a part of one.

    Args:
        address: As the driver wrote it.
        length: Bytes.
        writable: For the device to write, else to read.
    """

    address: int
    length: int
    writable: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """
    Where the parts of a request are.

    Args:
        header: The first 16 readable bytes; fewer where *valid* is False.
        readable: What follows them.
        writable: All writable bytes but the last.
        status: Address of the last writable byte; None where there is none.
        valid: False: the chain is none of a request; its status is IOERR.
    """

    header: tuple[Buffer, ...]
    readable: tuple[Buffer, ...]
    writable: tuple[Buffer, ...]
    status: int | None
    valid: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A request that is over without the disk.

    Args:
        status: Its status byte.
        data: For the front of its writable part.
        get_id: It asked for the serial.
    """

    status: Status
    data: bytes = b""
    get_id: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One thing for the disk to do.

    Args:
        type: IN, OUT, FLUSH, DISCARD or WRITE_ZEROES.
        offset: First byte on the disk.
        length: Bytes, at least 1; 0 for FLUSH.
        fua: Stable before it completes.
        unmap: A hole is welcome.
    """

    type: RequestType
    offset: int = 0
    length: int = 0
    fua: bool = False
    unmap: bool = False


@dataclass(frozen=True, slots=True)
class Payload:
    """
    Ranges that must be read before anything can be decided.

    Args:
        type: DISCARD or WRITE_ZEROES.
        length: Bytes of the readable part behind the header.
    """

    type: RequestType
    length: int


@dataclass(frozen=True, slots=True)
class Rules:
    """
    What requests are checked against.

    Args:
        device: What the device promises.
        writethrough: Every change must be stable before its status.
    """

    device: BlkDevice
    writethrough: bool


IOERR = Answer(Status.IOERR)
UNSUPP = Answer(Status.UNSUPP)
_DONE = Answer(Status.OK)


def frame(chain: Sequence[Buffer]) -> Frame:
    """
    Find header, data and status of a request.

    Args:
        chain: Its descriptors, in order.

    Spec: virtio 1.3, 2.7.4.1 (any framing), 2.7.4.2 (readable before writable).
    """
    readable = [part for part in chain if not part.writable]
    writable = [part for part in chain if part.writable]
    n_readable = sum(part.length for part in readable)
    n_writable = sum(part.length for part in writable)
    ordered = not any(part.writable for part in chain[: len(readable)])
    return Frame(
        header=_cut(readable, 0, REQUEST_HEADER_SIZE),
        readable=_cut(readable, REQUEST_HEADER_SIZE, n_readable),
        writable=_cut(writable, 0, n_writable - 1),
        status=_last_byte(writable),
        valid=ordered and n_readable >= REQUEST_HEADER_SIZE and all(part.length for part in chain),
    )


def _cut(parts: Iterable[Buffer], start: int, end: int) -> tuple[Buffer, ...]:
    """Return bytes *start* to *end* of *parts* laid end to end."""
    cut = []
    position = 0
    for part in parts:
        first = max(start - position, 0)
        last = min(end - position, part.length)
        if first < last:
            cut.append(Buffer(part.address + first, last - first, part.writable))
        position += part.length
    return tuple(cut)


def _last_byte(writable: Sequence[Buffer]) -> int | None:
    for part in reversed(writable):
        if part.length:
            return (part.address + part.length - 1) & ADDRESS_MASK
    return None


def parse(
    header: bytes, *, readable: int, writable: int, rules: Rules
) -> Answer | Operation | Payload:
    """
    Decide what a request asks for.

    Args:
        header: Its 16 bytes, read once.
        readable: Bytes behind the header.
        writable: Bytes before the status.
        rules: What it is checked against.

    Returns:
        Its answer, or what the disk must do, or what must be read first.

    Spec: virtio 1.3, 5.2.6.
    """
    number, sector = _HEADER.unpack(header)
    kind = _known(number & ~TYPE_BARRIER)
    device = rules.device
    outcome: Answer | Operation | Payload = UNSUPP
    match kind:
        case RequestType.IN:
            outcome = _transfer(kind, sector, writable, rules)
        case RequestType.OUT:
            outcome = _transfer(kind, sector, readable, rules)
        case RequestType.FLUSH:
            outcome = Operation(kind)
        case RequestType.GET_ID:
            outcome = Answer(Status.OK, _serial(device)[:writable], get_id=True)
        case RequestType.DISCARD if device.discard:
            outcome = _payload(kind, readable)
        case RequestType.WRITE_ZEROES if device.write_zeroes:
            outcome = _payload(kind, readable)
    refused = device.read_only and kind in _CHANGES and outcome is not UNSUPP
    return IOERR if refused else outcome


def _serial(device: BlkDevice) -> bytes:
    return device.serial[:SERIAL_SIZE].ljust(SERIAL_SIZE, b"\0")


def _known(number: int) -> RequestType | None:
    try:
        return RequestType(number)
    except ValueError:
        return None


def _transfer(kind: RequestType, sector: int, length: int, rules: Rules) -> Answer | Operation:
    offset = sector * SECTOR_SIZE
    if length > MAX_TRANSFER or not _on_disk(offset, length, rules.device):
        return IOERR
    if length == 0:
        return _DONE
    fua = kind is RequestType.OUT and rules.writethrough
    return Operation(kind, offset, length, fua=fua)


def _on_disk(offset: int, length: int, device: BlkDevice) -> bool:
    """Say whether a range is made of whole blocks of the disk."""
    aligned = (offset | length) % device.block_size == 0
    return aligned and offset + length <= device.capacity_sectors * SECTOR_SIZE


def _payload(kind: RequestType, length: int) -> Answer | Payload:
    n, rest = divmod(length, RANGE_SIZE)
    return Payload(kind, length) if rest == 0 and 1 <= n <= MAX_RANGES else IOERR


def parse_ranges(
    kind: RequestType, payload: bytes, *, rules: Rules
) -> Answer | tuple[Operation, ...]:
    """
    Decide what a DISCARD or WRITE_ZEROES asks for.

    Args:
        kind: Which of the two.
        payload: As long as `Payload` said, read once.
        rules: What it is checked against.

    Returns:
        What the disk must do, in order, all of it checked; or the answer.

    Spec: virtio 1.3, 5.2.6.1 and 5.2.6.2.
    """
    operations = []
    for sector, sectors, flags in _RANGE.iter_unpack(payload):
        outcome = _range(kind, sector, sectors, flags, rules)
        if isinstance(outcome, Operation):
            operations.append(outcome)
        elif outcome.status is not Status.OK:
            return outcome
    return tuple(operations) or _DONE


def _range(
    kind: RequestType, sector: int, sectors: int, flags: int, rules: Rules
) -> Answer | Operation:
    device = rules.device
    zeroes = kind is RequestType.WRITE_ZEROES
    if flags & ~(WRITE_ZEROES_F_UNMAP if zeroes else 0):
        return UNSUPP
    longest = device.max_write_zeroes if zeroes else device.max_discard
    offset, length = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
    if length > longest or not _on_disk(offset, length, device):
        return IOERR
    if length == 0:
        return _DONE
    unmap = bool(flags & WRITE_ZEROES_F_UNMAP) and device.may_unmap
    return Operation(kind, offset, length, fua=rules.writethrough, unmap=unmap)
