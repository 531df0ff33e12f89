"""
Sets of bytes: sorted ranges that neither touch nor overlap, and what lies over a range.

A range is its first byte and the one behind its last.  No I/O; nothing here knows a disk.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

Range = tuple[int, int]
"""First byte, and the one behind the last."""
Ranges = Sequence[Range]
"""Sorted, none empty."""

_CHUNK_BITS = 20
_MANY_CHUNKS = 64


def minus(ranges: Ranges, start: int, end: int) -> list[Range]:
    """Return *ranges* without what lies from *start* to *end*."""
    left: list[Range] = []
    for a, b in ranges:
        if b <= start or end <= a:
            left.append((a, b))
            continue
        if a < start:
            left.append((a, start))
        if end < b:
            left.append((end, b))
    return left


def without(ranges: Ranges, other: Ranges) -> list[Range]:
    """Return *ranges* without those of *other*."""
    left = list(ranges)
    for start, end in other:
        left = minus(left, start, end)
    return left


def both(ranges: Ranges, other: Ranges) -> list[Range]:
    """Return what lies in *ranges* and in *other*."""
    common: list[Range] = []
    i = j = 0
    while i < len(ranges) and j < len(other):
        start, end = max(ranges[i][0], other[j][0]), min(ranges[i][1], other[j][1])
        if start < end:
            common.append((start, end))
        if ranges[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return common


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Return the same bytes as few ranges as there can be, whatever the order they come in."""
    whole: list[Range] = []
    for start, end in sorted(ranges):
        if whole and start <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        elif start < end:
            whole.append((start, end))
    return whole


def bytes_in(ranges: Ranges) -> int:
    """Return how many there are."""
    return sum(end - start for start, end in ranges)


class Placed(Protocol):
    """What lies somewhere."""

    @property
    def offset(self) -> int:
        """First byte."""
        ...

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    @property
    def number(self) -> int:
        """What it is found by, and comes in the order of."""
        ...


_P = TypeVar("_P", bound=Placed)


class Index(Generic[_P]):
    """Finds what lies over a range; the order is that of the numbers."""

    def __init__(self) -> None:
        self._all: dict[int, _P] = {}
        self._chunks: dict[int, dict[int, _P]] = {}
        self._long: dict[int, _P] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def __iter__(self) -> Iterator[_P]:
        """Go through them in the order they were added in."""
        return iter(self._all.values())

    def __contains__(self, number: int) -> bool:
        """Tell whether one of that number is there."""
        return number in self._all

    def get(self, number: int) -> _P | None:
        """Return the one of that number."""
        return self._all.get(number)

    def add(self, item: _P) -> None:
        """Add one, whose number is no other's."""
        self._all[item.number] = item
        for place in self._places(item):
            place[item.number] = item

    def remove(self, item: _P) -> None:
        """Forget one."""
        del self._all[item.number]
        for place in self._places(item):
            del place[item.number]

    def over(self, start: int, end: int) -> list[_P]:
        """Return those that overlap a range."""
        found = dict(self._long)
        first, last = start >> _CHUNK_BITS, (end - 1) >> _CHUNK_BITS
        if last - first < len(self._chunks):
            chunks = [self._chunks[c] for c in range(first, last + 1) if c in self._chunks]
        else:
            chunks = [held for c, held in self._chunks.items() if first <= c <= last]
        for chunk in chunks:
            found.update(chunk)
        return sorted(
            (p for p in found.values() if p.offset < end and start < p.offset + p.length),
            key=lambda placed: placed.number,
        )

    def _places(self, item: _P) -> list[dict[int, _P]]:
        first = item.offset >> _CHUNK_BITS
        last = (item.offset + item.length - 1) >> _CHUNK_BITS
        if last - first >= _MANY_CHUNKS:  # a discard of a whole disk is not spread over it
            return [self._long]
        return [self._chunks.setdefault(chunk, {}) for chunk in range(first, last + 1)]
