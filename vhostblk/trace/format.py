"""
How a trace is stored: blocks, and the records in them; docs/reference/trace-format.md in code.

A trace is a file of blocks, one behind the other, only ever appended to.  A block is a head of
`HEAD_SIZE` bytes and a body; both have a checksum (CRC-32, as `zlib.crc32`), so that the place up
to which a file is whole can be found whatever has happened to its end.  Each session of a server
is a segment: a block that describes it (`Header`), blocks of records, and a block that ends it.

The body of a block of records is words of 64 bits, little-endian.  Where a record begins, counted
in words since the segment began, is its sequence number: what has the lower number came first,
whatever queue it was on.  The core writes records (native/src/layer_record.c), nobody else has to.
"""

import json
import struct
import zlib
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag, StrEnum

from vhostblk.errors import VhostBlkError

MAGIC = b"VHBT"
VERSION = 2
SECTOR = 512
WORD = 8
MAX_BODY = 64 << 20
"""Bytes; what says that it has more is no block."""

_HEAD = struct.Struct("<4sHHIIQQQ")
_SUM = struct.Struct("<II")
HEAD_SIZE = _HEAD.size + _SUM.size
TIME_BITS = 40
"""Of a time in a short record: the low ones; the rest is as in the block's."""
NEAR = 1 << (TIME_BITS - 1)
"""Nanoseconds from the block's time within which they say which time it is."""
_WORD = struct.Struct("<Q")
_WORDS = struct.Struct("<QQ")
_LONG = struct.Struct("<BBHI")
_MAX_QUEUE = 0xFF
_MAX_SECTORS = (1 << 24) - 1
_MAX_BACK = 0xFFFF


class BlockKind(IntEnum):
    """What a block has in its body."""

    SEGMENT = 1
    """A session begins: a `Header` as JSON."""
    RECORDS = 2
    END = 3
    """The session is over and everything of it is in front of this: JSON."""


class RecordKind(IntEnum):
    """What a record says, and how many words it has: the low half of its first byte."""

    END = 1
    """A request is over, without an error."""
    SUBMIT = 2
    """A request goes to the disk."""
    LONG_SUBMIT = 3
    """The same where a number is too large for the other."""
    LONG_END = 4
    """A request is over that has failed, or was submitted too far back."""
    DATA = 5
    """A part of what a request writes, in order; two words, and the bytes."""


class Op(IntEnum):
    """What a request asks; the second byte of a record."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 4


class Flag(IntFlag):
    """The high half of the first byte; with ``DIGEST``, the record has one more word."""

    FUA = 0x10
    UNMAP = 0x20
    DIGEST = 0x40


class Payload(StrEnum):
    """What is kept of the bytes that requests move."""

    NONE = "none"
    DIGEST = "digest"
    """CRC-32 of what is read and of what is written."""
    FULL = "full"
    """What is written, and the CRC-32 of what is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """
    What a segment says of itself.

    Args:
        size: Bytes of the disk when the session began.
        block_size: Bytes every request was a multiple of.
        payload: What was kept of the bytes.
        started: When: nanoseconds since 1970, UTC.
        clock: The same moment on the clock of the records: nanoseconds, CLOCK_MONOTONIC.
        device: What the server called it; may be empty.
        software: What wrote the trace.
    """

    size: int
    block_size: int = SECTOR
    payload: Payload = Payload.NONE
    started: int = 0
    clock: int = 0
    device: str = ""
    software: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """
    The head of a block.

    Args:
        kind: What is in the body.
        length: Bytes of the body, whole words.
        checksum: CRC-32 of the body.
        segment: Which segment it belongs to: ``started`` of its header.
        first: Sequence number of the body's first word.
        time: When it was written, on the clock of the records.
    """

    kind: BlockKind
    length: int
    checksum: int
    segment: int
    first: int = 0
    time: int = 0

    def pack(self) -> bytes:
        """Return the bytes."""
        raw = _HEAD.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.length,
            self.checksum,
            self.segment,
            self.first,
            self.time,
        )
        return raw + _SUM.pack(zlib.crc32(raw), 0)

    @classmethod
    def parse(cls, raw: bytes) -> "Head | None":
        """
        Read one; None: these bytes are none.

        Raises:
            VhostBlkError: It is of another version.
        """
        if len(raw) < HEAD_SIZE:
            return None
        magic, version, kind, length, checksum, segment, first, time = _HEAD.unpack_from(raw)
        (own, _) = _SUM.unpack_from(raw, _HEAD.size)
        if magic != MAGIC or own != zlib.crc32(raw[: _HEAD.size]):
            return None
        if version != VERSION:
            other = "a newer" if version > VERSION else "an older"
            raise VhostBlkError(
                f"a trace of version {version}, and this program reads {VERSION}: take {other} one"
            )
        if kind not in set(BlockKind) or length > MAX_BODY or length % WORD:
            return None
        return cls(
            kind=BlockKind(kind),
            length=length,
            checksum=checksum,
            segment=segment,
            first=first,
            time=time,
        )


def block(kind: BlockKind, body: bytes, *, segment: int, first: int = 0, time: int = 0) -> bytes:
    """Return a whole block."""
    head = Head(
        kind=kind,
        length=len(body),
        checksum=zlib.crc32(body),
        segment=segment,
        first=first,
        time=time,
    )
    return head.pack() + body


def segment_block(header: Header) -> bytes:
    """Return the block a segment begins with."""
    return block(
        BlockKind.SEGMENT, _text(asdict(header)), segment=header.started, time=header.clock
    )


def end_block(header: Header, *, first: int, time: int, lost: int) -> bytes:
    """
    Return the block a segment ends with.

    Args:
        header: The segment's.
        first: The sequence number behind its last record.
        time: When, on the clock of the records.
        lost: Words of records that could not be written.
    """
    body = _text({"lost": lost})
    return block(BlockKind.END, body, segment=header.started, first=first, time=time)


def parse_header(body: bytes) -> Header:
    """
    Read the body of a segment's block.

    Raises:
        VhostBlkError: It says what cannot be.
    """
    told = _object(body)
    payload = told.get("payload")
    if not isinstance(payload, str) or payload not in set(Payload):
        raise VhostBlkError(f"the trace says payload={payload!r}, which is none: it is damaged")
    return Header(
        size=_number(told, "size"),
        block_size=_number(told, "block_size"),
        payload=Payload(payload),
        started=_number(told, "started"),
        clock=_number(told, "clock"),
        device=str(told.get("device", "")),
        software=str(told.get("software", "")),
    )


def parse_lost(body: bytes) -> int:
    """Read the body of the block that ends a segment: words that were lost."""
    return _number(_object(body), "lost")


def submit(  # noqa: PLR0913 - a request
    op: Op, *, queue: int, sector: int, sectors: int, time: int, flags: int = 0, digest: int = 0
) -> bytes:
    """Return the record of a request that goes to the disk; *flags* say if it has a digest."""
    if sector >> 40 or sectors > _MAX_SECTORS or queue > _MAX_QUEUE:
        record = _LONG.pack(RecordKind.LONG_SUBMIT | flags, op, queue, sectors)
        record += _WORDS.pack(time, sector)
    else:
        first = RecordKind.SUBMIT | flags | op << 8 | queue << 16 | _low(time)
        record = _WORDS.pack(first, sector | sectors << 40)
    return record + _WORD.pack(digest) if flags & Flag.DIGEST else record


def complete(
    submitted: int, *, seq: int, time: int, error: int = 0, digest: int | None = None
) -> bytes:
    """
    Return the record of a request that is over.

    Args:
        submitted: The sequence number of its `submit`.
        seq: That of this record.
        time: When.
        error: 0, or the errno.
        digest: CRC-32 of what was read.
    """
    flags = 0 if digest is None else int(Flag.DIGEST)
    if error or seq - submitted > _MAX_BACK:
        record = _WORDS.pack(RecordKind.LONG_END | flags, time) + _WORDS.pack(submitted, error)
    else:
        record = _WORD.pack(RecordKind.END | flags | (seq - submitted) << 8 | _low(time))
    return record if digest is None else record + _WORD.pack(digest)


def data(submitted: int, piece: bytes) -> bytes:
    """Return the record of a part of what the request *submitted* writes."""
    head = _LONG.pack(RecordKind.DATA, 0, 0, len(piece)) + _WORD.pack(submitted)
    return head + piece + bytes(-len(piece) % WORD)


def _low(time: int) -> int:
    """Return the time of a short record, as the high bits of its first word."""
    return time << (64 - TIME_BITS) & (1 << 64) - 1


def _text(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % WORD)


def _object(body: bytes) -> dict[str, object]:
    try:
        told: object = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise VhostBlkError("a block of the trace is not JSON: the trace is damaged")
    return told


def _number(told: dict[str, object], key: str) -> int:
    value = told.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise VhostBlkError(f"the trace says {key}={value!r}, not a number: it is damaged")
    return value
