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
from vhostblk.trace.format import (
    MAX_BODY,
    NEAR,
    SECTOR,
    TIME_BITS,
    WORD,
    Flag,
    Op,
    RecordKind,
)

_WORD = struct.Struct("<Q")
_TWO = struct.Struct("<QQ")
_THREE = struct.Struct("<QQQ")
_KIND = 0x0F
_BACK = 0xFFFF
_SECTOR_BITS = 40
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


def parse(body: bytes, *, first: int, clock: int, written: int) -> Iterator[Record]:
    """
    Yield the records of a block.

    Args:
        body: All of it.
        first: Sequence number of its first word.
        clock: When the segment began, on the clock of the records.
        written: The time of the block, on that clock, too.

    Raises:
        VhostBlkError: They are none.
    """
    block = _Block(body, clock=clock, written=written)
    at = 0
    while at < len(body):
        size = block.size(at)
        seq = first + at // WORD
        if size > len(body) - at:
            raise VhostBlkError(f"record {seq} of the trace is none: the trace is damaged")
        yield block.record(at, seq, size)
        at += size


class _Block:
    """The words of a block, and what its short times are of."""

    def __init__(self, body: bytes, *, clock: int, written: int) -> None:
        self._body = body
        self._clock = clock
        self._written = written

    def size(self, at: int) -> int:
        """Return the bytes of a record; more than any block has if there is no such kind."""
        word = self._word(at)
        kind = word & _KIND
        if kind == RecordKind.DATA:
            length = word >> 32
            return 2 * WORD + length + -length % WORD
        if not RecordKind.END <= kind <= RecordKind.LONG_END:
            return MAX_BODY + WORD
        return WORD * (kind + bool(word & Flag.DIGEST))

    def record(self, at: int, seq: int, size: int) -> Record:
        """Return the record of *size* bytes at *at*, whose number is *seq*."""
        word = self._word(at)
        kind = word & _KIND
        if kind == RecordKind.DATA:
            start = at + 2 * WORD
            piece = self._body[start : start + (word >> 32)]
            return Data(seq=seq, submit=self._word(at + WORD), data=piece)
        digest = self._word(at + size - WORD) if word & Flag.DIGEST else None
        if kind in {RecordKind.SUBMIT, RecordKind.LONG_SUBMIT}:
            return self._submitted(at, seq, digest)
        time, submit, error = self._near(word), seq - (word >> 8 & _BACK), 0
        if kind == RecordKind.LONG_END:
            time, submit, error = _THREE.unpack_from(self._body, at + WORD)
        return Completed(
            seq=seq, time=time - self._clock, submit=submit, error=error, digest=digest
        )

    def _submitted(self, at: int, seq: int, digest: int | None) -> Submitted:
        word, second = _TWO.unpack_from(self._body, at)
        time, queue = self._near(word), word >> 16 & 0xFF
        sectors, sector = second >> _SECTOR_BITS, second & (1 << _SECTOR_BITS) - 1
        if word & _KIND == RecordKind.LONG_SUBMIT:
            queue, sectors = word >> 16 & 0xFFFF, word >> 32
            time, sector = _TWO.unpack_from(self._body, at + WORD)
        op = _OPS.get(word >> 8 & 0xFF)
        if op is None:
            asked = word >> 8 & 0xFF
            raise VhostBlkError(f"record {seq} of the trace asks what no request does ({asked})")
        return Submitted(
            seq=seq,
            time=time - self._clock,
            queue=queue,
            op=op,
            offset=sector * SECTOR,
            length=sectors * SECTOR,
            fua=bool(word & Flag.FUA),
            unmap=bool(word & Flag.UNMAP),
            digest=digest,
        )

    def _word(self, at: int) -> int:
        word: int = _WORD.unpack_from(self._body, at)[0]
        return word

    def _near(self, word: int) -> int:
        """Return the time, near the block's, whose low bits a short record has."""
        later = (word >> (64 - TIME_BITS)) - self._written
        return self._written + (later + NEAR) % (2 * NEAR) - NEAR
