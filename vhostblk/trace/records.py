"""
The records of a block: from its words to what happened.

Everything here was perhaps written by somebody who means ill: lengths are checked against the block
before anything is made of them, and a block whose checksum is right but whose records are none is
an error.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import MAX_BODY, SECTOR, WORD, Flag, Op, RecordKind

_RECORD = struct.Struct("<BBHI")
_WORD = struct.Struct("<Q")
_TWO = struct.Struct("<QQ")
_OP = 0x0F
NO_QUEUE = 0xFFFF
"""Of a request that a layer of Python has made, not a guest."""

_OPS = {int(op): op for op in Op}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """
    A request goes to the disk.

    Args:
        seq: Its sequence number, and its name in the segment.
        time: When: nanoseconds since the segment began.
        queue: On which virtqueue; `NO_QUEUE`: on none.
        op: What it asks.
        offset: First byte.
        length: Bytes; 0 for a flush.
        fua: What it writes is to be stable when it is over.
        unmap: Zeroes may be written as a hole.
        digest: CRC-32 of what it writes, if that was kept.
        payload: What it writes, if that was kept and is whole.
    """

    seq: int
    time: int
    queue: int
    op: Op
    offset: int
    length: int
    fua: bool = False
    unmap: bool = False
    digest: int | None = None
    payload: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """
    A request is over: the guest cannot have known it before, and may know it from now on.

    Args:
        seq: Its own sequence number.
        time: When: nanoseconds since the segment began.
        submit: The sequence number of the request.
        error: 0, or the errno.
        digest: CRC-32 of what it has read, if that was kept.
    """

    seq: int
    time: int
    submit: int
    error: int
    digest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A part of what the request *submit* writes, behind the parts before."""

    seq: int
    submit: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """
    Records in front of *seq* could not be written.

    What was under way may be over, what comes next may complete what nobody saw submitted.
    """

    seq: int


Record = Submitted | Completed | Data
Step = Submitted | Completed | Lost


def parse(body: bytes, *, first: int, clock: int) -> Iterator[Record]:
    """
    Yield the records of a block.

    Args:
        body: All of it.
        first: Sequence number of its first word.
        clock: When the segment began, on the clock of the records.

    Raises:
        VhostBlkError: They are none.
    """
    at = 0
    while at < len(body):
        kind, what, small, large = _RECORD.unpack_from(body, at)
        seq = first + at // WORD
        size = _size(kind, what, large)
        if size > len(body) - at:
            raise VhostBlkError(f"record {seq} of the trace is none: the trace is damaged")
        record: Record
        if kind == RecordKind.SUBMIT:
            record = _submitted(body, at, seq, clock)
        elif kind == RecordKind.DATA:
            (submit,) = _WORD.unpack_from(body, at + WORD)
            record = Data(seq=seq, submit=submit, data=body[at + 16 : at + 16 + large])
        else:
            submit = seq - large
            if kind == RecordKind.COMPLETE_FAR:
                (submit,) = _WORD.unpack_from(body, at + 16)
            record = Completed(
                seq=seq,
                time=_WORD.unpack_from(body, at + WORD)[0] - clock,
                submit=submit,
                error=small,
                digest=_digest(body, at + size, what),
            )
        yield record
        at += size


def _size(kind: int, what: int, large: int) -> int:
    """Return the bytes of a record; more than any block has if there is no such kind."""
    digest = WORD * bool(what & Flag.DIGEST)
    match kind:
        case RecordKind.SUBMIT | RecordKind.COMPLETE_FAR:
            return 24 + digest
        case RecordKind.COMPLETE:
            return 16 + digest
        case RecordKind.DATA:
            return 16 + large + -large % WORD
        case _:
            return MAX_BODY + WORD


def _submitted(body: bytes, at: int, seq: int, clock: int) -> Submitted:
    _, what, queue, sectors = _RECORD.unpack_from(body, at)
    time, sector = _TWO.unpack_from(body, at + WORD)
    op = _OPS.get(what & _OP)
    if op is None:
        raise VhostBlkError(f"record {seq} of the trace asks what no request does ({what & _OP})")
    return Submitted(
        seq=seq,
        time=time - clock,
        queue=queue,
        op=op,
        offset=sector * SECTOR,
        length=sectors * SECTOR,
        fua=bool(what & Flag.FUA),
        unmap=bool(what & Flag.UNMAP),
        digest=_digest(body, at + 24 + WORD, what),
    )


def _digest(body: bytes, end: int, what: int) -> int | None:
    """Return the last word of a record that ends at *end*, if it is a digest."""
    if not what & Flag.DIGEST:
        return None
    digest: int = _WORD.unpack_from(body, end - WORD)[0]
    return digest
