"""
A recording as a history of changes: what a power cut can fall into.

Requests are numbered from 1, in the order they were submitted; reads count.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from vhostblk.disk.power import Cache, Change, Kind, Piece
from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import Op, Payload
from vhostblk.trace.reader import Segment
from vhostblk.trace.records import Completed, Lost, Submitted

END = "end"
"""The op of the moment behind all requests."""


@dataclass(frozen=True, slots=True)
class Moment:
    """
    An instant at which the power may go: right behind the submission of a request.

    Args:
        number: The request's; of the end: one more than the last.
        op: What it asks, or `END`.
        stable: What has become stable since the moment before: for the medium, in order.
        cache: What may be there; the next moment changes it.
    """

    number: int
    op: str
    stable: tuple[Piece, ...]
    cache: Cache


@dataclass(slots=True)
class _Walk:
    """Where a walk is."""

    cache: Cache = field(default_factory=Cache)
    number: int = 0
    changes: dict[int, int] = field(default_factory=dict)
    """Request numbers of changes in flight, by their sequence numbers."""
    flushes: dict[int, int] = field(default_factory=dict)
    """Marks of flushes in flight, by their sequence numbers."""

    def submitted(self, step: Submitted) -> None:
        """Take a request."""
        self.number += 1
        if step.op is Op.FLUSH:
            self.flushes[step.seq] = self.cache.flush()
        elif step.op is not Op.READ and step.length:
            self.cache.begin(_change(self.number, step))
            self.changes[step.seq] = self.number

    def completed(self, step: Completed) -> list[Piece]:
        """Take the end of one; return what is stable by it."""
        mark, number = self.flushes.pop(step.submit, None), self.changes.pop(step.submit, None)
        if mark is not None and not step.error:
            return self.cache.flushed(mark)
        if number is not None and step.error:
            self.cache.fail(number)
        elif number is not None:
            return self.cache.end(number)
        return []


def walk(segment: Segment) -> Iterator[Moment]:
    """
    Go through a recording, moment by moment.

    Raises:
        VhostBlkError: It lacks what it takes; says how to record it.
    """
    _check(segment)
    at, stable = _Walk(), list[Piece]()
    for step in segment.steps():
        match step:
            case Submitted():
                at.submitted(step)
                yield Moment(at.number, _word(step.op), tuple(stable), at.cache)
                stable.clear()
            case Completed():
                stable += at.completed(step)
            case Lost():
                raise VhostBlkError(
                    f"{segment.path}: requests are missing behind request {at.number}: what the "
                    "disk held from there on is not known; record again, where there is space"
                )
    yield Moment(at.number + 1, END, tuple(stable), at.cache)


def _check(segment: Segment) -> None:
    if segment.header.payload is not Payload.FULL:
        raise VhostBlkError(
            f"{segment.path}: it was recorded with payload={segment.header.payload}, so what was "
            "written is not in it: record again with payload=full"
        )


def _change(number: int, step: Submitted) -> Change:
    kind, data = Kind.WRITE, step.payload
    if step.op is Op.DISCARD:
        kind = Kind.DISCARD
    elif step.op is Op.WRITE_ZEROES:
        kind = Kind.UNMAP if step.unmap else Kind.ZEROES
    elif data is None:
        raise VhostBlkError(
            f"request {number} of the recording writes {step.length} bytes at {step.offset} that "
            "were not kept: record again, where there is space"
        )
    return Change(number, step.offset, step.length, data, kind, fua=step.fua)


def _word(op: Op) -> str:
    return op.name.lower().replace("_", "-")
