"""
What was asked of a disk and what it answered, with the order in time.

A history is written down while requests are under way, by one thread or several, and checked
afterwards (`check`).  Its clock counts the calls of ``begin``, ``end`` and ``power_cut``: a request
that ended before another one began has the smaller number there, and that is all that matters.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from vhostblk.guest.blk import RANGE, Request
from vhostblk.guest.errors import GuestError
from vhostblk.spec.virtio_blk import SECTOR_SIZE, RequestType, Status

ZEROES = bytes(SECTOR_SIZE)
"""A sector of zeros."""

Discarded = Literal["anything", "old or zeroes"]
"""What a discarded sector may read as until it is written again."""
Initially = Literal["unknown", "zeroes"]
"""What a sector holds before the first request."""


class Kind(Enum):
    """What a request means to the contents of a disk."""

    READ = "read"
    WRITE = "write"
    ZEROES = "write-zeroes"
    DISCARD = "discard"
    FLUSH = "flush"
    OTHER = "other"


_KINDS: dict[int, Kind] = {
    RequestType.IN: Kind.READ,
    RequestType.OUT: Kind.WRITE,
    RequestType.FLUSH: Kind.FLUSH,
    RequestType.DISCARD: Kind.DISCARD,
    RequestType.WRITE_ZEROES: Kind.ZEROES,
}


@dataclass(slots=True, eq=False)
class Operation:
    """
    A request of a history; made by ``History.begin``.

    Args:
        number: Which one, from 1.
        kind: What it does.
        spans: The sectors that it is about.
        queue: On which queue, for the reader of a message.
        begin: When it began.
        contents: Of a write or a read that is done: each sector's 512 bytes.
        end: When it ended; ``None``: it has not, or nobody saw it.
        ok: It ended with the status OK.
    """

    number: int
    kind: Kind
    spans: tuple[range, ...]
    queue: int
    begin: int
    contents: tuple[bytes, ...] = ()
    end: int | None = None
    ok: bool = False

    def __str__(self) -> str:
        where = ", ".join(_sectors(span) for span in self.spans)
        if self.end is None:
            how = f"began at {self.begin}, no end was seen"
        else:
            how = f"from {self.begin} to {self.end}" + ("" if self.ok else ", failed")
        return f"#{self.number} {self.kind.value} {where or 'all'} on queue {self.queue} ({how})"


def _sectors(span: range) -> str:
    return f"sector {span[0]}" if len(span) == 1 else f"sectors {span[0]} to {span[-1]}"


class History:
    """
    Requests in the order of time; may be written by several threads.

    No sector of what is written may have been on the disk before, or be written twice, but for
    zeros: `stamps` makes such data.  What breaks that is not reported as wrong, but less is found.

    Args:
        initially: What the disk holds at the beginning.
        discarded: What a discarded sector may read as.  The standard allows ``anything``; a disk
            that promises more can be held to it.
        write_through: Writes are stable when they end, without a flush.
    """

    def __init__(
        self,
        *,
        initially: Initially = "unknown",
        discarded: Discarded = "anything",
        write_through: bool = False,
    ) -> None:
        self.initially: Initially = initially
        self.discarded: Discarded = discarded
        self.write_through = write_through
        self.operations: list[Operation] = []
        """All requests."""
        self.cuts: list[int] = []
        """When the power was cut."""
        self._clock = itertools.count(1)
        self._numbers = itertools.count(1)
        self._known: dict[bytes, bytes] = {}

    def begin(self, request: Request, *, queue: int = 0) -> Operation:
        """
        Note a request; call this before the device can see it.

        Args:
            request: A read, write, flush, discard or write-zeroes; others mean nothing here.
            queue: On which queue it goes.

        Returns:
            What to hand to ``end``.

        Raises:
            GuestError: A read or a write of no whole sectors.
        """
        kind = _KINDS.get(request.type, Kind.OTHER)
        spans: tuple[range, ...] = ()
        contents: tuple[bytes, ...] = ()
        if kind is Kind.WRITE:
            contents = self._split(request.out)
            spans = (_span(request.sector, len(contents)),)
        elif kind is Kind.READ:
            spans = (_span(request.sector, _count(request.in_length)),)
        elif kind in {Kind.DISCARD, Kind.ZEROES}:
            spans = tuple(_span(first, count) for first, count, _ in RANGE.iter_unpack(request.out))
        begun = Operation(next(self._numbers), kind, spans, queue, next(self._clock), contents)
        self.operations.append(begun)
        return begun

    def end(self, begun: Operation, status: int, data: bytes = b"") -> None:
        """
        Note how a request ended; call this once it is known.

        Args:
            begun: Of ``begin``.
            status: The status byte.  A request that failed may have happened in part.
            data: What a read returned.
        """
        begun.ok = status == Status.OK
        if begun.kind is Kind.READ and begun.ok:
            begun.contents = self._split(data)
            if len(begun.contents) != len(begun.spans[0]):
                raise GuestError(f"{begun} returned {len(data)} bytes")
        begun.end = next(self._clock)

    def power_cut(self) -> None:
        """
        Note that the power failed: what was not flushed may be lost, sector by sector.

        Call it once the device cannot complete anything of before, and before the next request.
        What has not ended by then may have happened, or not.
        """
        self.cuts.append(next(self._clock))

    def _split(self, data: bytes) -> tuple[bytes, ...]:
        pieces = (data[at : at + SECTOR_SIZE] for at in range(0, len(data), SECTOR_SIZE))
        _count(len(data))
        # Equal sectors are kept once.
        return tuple(self._known.setdefault(piece, piece) for piece in pieces)


def _count(length: int) -> int:
    if length % SECTOR_SIZE:
        raise GuestError(f"{length} bytes are no whole sectors")
    return length // SECTOR_SIZE


def _span(first: int, count: int) -> range:
    return range(first, first + count)


def sector_steps(operations: list[Operation]) -> Iterator[tuple[int, Operation, bytes]]:
    """Yield each sector that an operation is about, with what was written or read there."""
    for one in operations:
        if one.contents:
            for sector, value in zip(one.spans[0], one.contents, strict=True):
                yield sector, one, value
        elif one.kind in {Kind.ZEROES, Kind.DISCARD}:
            for sector in itertools.chain.from_iterable(one.spans):
                yield sector, one, ZEROES
