"""
Read a trace: which segments a file has, and what happened in each.

`read` looks at the whole file once and finds how far it is whole.  What is behind that, a torn
tail, is said (`Trace.damage`) and left alone.  Steps are read from the file again as they are asked
for, so a trace may be larger than memory.
"""

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import (
    HEAD_SIZE,
    MAGIC,
    WORD,
    BlockKind,
    Head,
    Header,
    Op,
    Payload,
    parse_header,
    parse_lost,
)
from vhostblk.trace.records import Completed, Data, Lost, Step, Submitted, parse


@dataclass(frozen=True, slots=True)
class Request:
    """
    A request from its submission to its end.

    Args:
        submitted: What was asked, and when.
        completed: How it ended; None: it was still under way when the recording ended, say as the
            server was killed, or its end is among what was lost.
    """

    submitted: Submitted
    completed: Completed | None

    @property
    def latency(self) -> int | None:
        """Nanoseconds it took; None: it is not over."""
        if self.completed is None:
            return None
        return max(0, self.completed.time - self.submitted.time)


@dataclass(slots=True, kw_only=True)
class Segment:
    """
    What one session of a server has recorded.

    Args:
        path: The file.
        header: What it says of itself.
        ended: The session ended in order; False: it was killed, or records still.
        lost: Words of records that could not be written, as far as is known.
        gaps: How many times that was so.
        blocks: Where its blocks of records are, and their heads.
    """

    path: Path
    header: Header
    ended: bool = False
    lost: int = 0
    gaps: int = 0
    blocks: list[tuple[int, Head]] = field(default_factory=list)

    @property
    def words(self) -> int:
        """The sequence number behind its last record."""
        if not self.blocks:
            return 0
        head = self.blocks[-1][1]
        return head.first + head.length // WORD

    def steps(self) -> Iterator[Step]:
        """
        Yield what happened, in the order in which it did.

        A write comes with its payload if that was kept and the trace has all of it.

        Raises:
            VhostBlkError: The trace is no trace.
        """
        waiting = _Waiting(keeps=self.header.payload is Payload.FULL)
        expected = 0
        with self.path.open("rb") as file:
            for at, head in self.blocks:
                if head.first != expected:
                    yield from waiting.lost(head.first)
                for record in parse(
                    _body(file, at, head),
                    first=head.first,
                    clock=self.header.clock,
                    written=head.time,
                ):
                    yield from waiting.take(record)
                expected = head.first + head.length // WORD
        yield from waiting.rest()

    def requests(self) -> Iterator[Request]:
        """
        Yield requests as they end; then those that did not, in the order they came.

        What completes a request that was lost is left out.
        """
        under_way: dict[int, Submitted] = {}
        for step in self.steps():
            match step:
                case Submitted():
                    under_way[step.seq] = step
                case Completed():
                    submitted = under_way.pop(step.submit, None)
                    if submitted is not None:
                        yield Request(submitted, step)
        for submitted in under_way.values():
            yield Request(submitted, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """
    A file of segments.

    Args:
        path: The file.
        segments: In the order they were recorded.
        end: Bytes that are whole.
        damage: What is wrong behind them, in a line; None: nothing is there.
    """

    path: Path
    segments: tuple[Segment, ...]
    end: int
    damage: str | None = None


def read(path: Path) -> Trace:
    """
    Look at a trace.

    Raises:
        VhostBlkError: It is no trace, or of another version.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return _scan(path, file)


def choose(path: Path, number: int | None) -> Segment:
    """
    Return one segment of a trace.

    Args:
        path: The trace.
        number: Which, from 1; None: the only one.

    Raises:
        VhostBlkError: There is none of that number, or more than one; or it is no trace.
    """
    segments = read(path).segments
    if number is None and len(segments) > 1:
        raise VhostBlkError(f"{path} has {len(segments)} sessions: say which one by --segment N")
    if (number or 1) > len(segments):
        raise VhostBlkError(f"{path} has {len(segments)} sessions, not {number}")
    return segments[(number or 1) - 1]


def _scan(path: Path, file: BinaryIO) -> Trace:
    segments: list[Segment] = []
    at = 0
    damage: str | None = None
    while raw := file.read(HEAD_SIZE):
        head = Head.parse(raw)
        if head is None and not segments:
            raise VhostBlkError(f"{path} is no trace: those begin with {MAGIC.decode()}")
        body = b"" if head is None else file.read(head.length)
        damage = _add(path, segments, at, head, body)
        if damage is not None or head is None:
            break
        at += HEAD_SIZE + head.length
    if not segments:
        raise VhostBlkError(f"{path} is no trace: {damage or 'it is empty'}")
    return Trace(path=path, segments=tuple(segments), end=at, damage=damage)


def _add(
    path: Path, segments: list[Segment], at: int, head: Head | None, body: bytes
) -> str | None:
    """Take one more block; what is wrong with it, or None."""
    if head is None:
        return f"from byte {at} on it is not whole: the last block was not written to its end"
    if len(body) != head.length:
        return f"the block at byte {at} is cut short: it was not written to its end"
    if zlib.crc32(body) != head.checksum:
        return f"the block at byte {at} has another checksum than it says"
    if head.kind is BlockKind.SEGMENT:
        segments.append(Segment(path=path, header=parse_header(body)))
        return None
    for segment in reversed(segments):
        if segment.header.started == head.segment and not segment.ended:
            return _continue(segment, at, head, body)
    return f"the block at byte {at} belongs to no segment"


def _continue(segment: Segment, at: int, head: Head, body: bytes) -> str | None:
    gap = head.first - segment.words
    if gap < 0:
        return f"the block at byte {at} says again what was said"
    if gap:
        segment.gaps += 1
        segment.lost += gap
    if head.kind is BlockKind.END:
        segment.ended = True
        segment.lost = max(segment.lost, parse_lost(body))
    else:
        segment.blocks.append((at, head))
    return None


def _body(file: BinaryIO, at: int, head: Head) -> bytes:
    file.seek(at + HEAD_SIZE)
    body = file.read(head.length)
    if zlib.crc32(body) != head.checksum:
        raise VhostBlkError(f"the block at byte {at} has changed while it was read")
    return body


class _Waiting:
    """
    Steps that wait for the payload of a write in front of them.

    The core records a write's payload behind it, in parts, and other queues' records between.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._steps: deque[Step] = deque()
        self._parts: dict[int, list[bytes]] = {}
        self._missing: dict[int, int] = {}
        """Bytes that are still to come, by request."""

    def take(self, record: Submitted | Completed | Data) -> Iterator[Step]:
        """Take a record; yield what waits for nothing any more."""
        match record:
            case Data():
                self._add(record)
            case Submitted() if self._keeps and record.op is Op.WRITE and record.length:
                self._steps.append(record)
                self._parts[record.seq] = []
                self._missing[record.seq] = record.length
            case _:
                if isinstance(record, Completed):
                    self._missing.pop(record.submit, None)  # over, and not all was kept
                self._steps.append(record)
        return self._ready()

    def lost(self, seq: int) -> Iterator[Step]:
        """Yield all of them, and that something is missing."""
        yield from self.rest()
        yield Lost(seq=seq)

    def rest(self) -> Iterator[Step]:
        """Yield all of them: nothing more comes."""
        self._missing.clear()
        return self._ready()

    def _add(self, record: Data) -> None:
        missing = self._missing.get(record.submit)
        if missing is None:
            return
        self._parts[record.submit].append(record.data)
        missing -= len(record.data)
        if missing > 0:
            self._missing[record.submit] = missing
        else:
            del self._missing[record.submit]

    def _ready(self) -> Iterator[Step]:
        while self._steps and self._steps[0].seq not in self._missing:
            step = self._steps.popleft()
            parts = self._parts.pop(step.seq, None)
            yield _with_payload(step, parts) if isinstance(step, Submitted) and parts else step


def _with_payload(step: Submitted, parts: list[bytes]) -> Submitted:
    payload = b"".join(parts)
    return replace(step, payload=payload) if len(payload) == step.length else step
