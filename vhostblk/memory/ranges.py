"""
Which guest physical memory is meant: sorted, disjoint ranges of addresses.

Pure arithmetic; what the ranges are for is said where a table is built from them
(`AddressSpace.build`).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

PAGE = 4096
"""Bytes of the smallest thing a guest can share."""
TOP = 1 << 64
"""The end of all addresses; no range reaches beyond."""

Range = tuple[int, int]
"""(first address, length in bytes)."""


class OnViolation(StrEnum):
    """What becomes of a request that names memory outside of a limit."""

    WARN = "warn"
    """It is served, and told of."""
    FAIL = "fail"
    """It fails; nothing outside is touched."""
    BREAK = "break"
    """Its queue breaks; nothing of it is touched."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """
    A set of addresses.  Made by `of`.

    Args:
        rows: (first address, end) of each run, sorted; between two runs there is a gap.
    """

    rows: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> "Ranges":
        """
        Make a set of ranges in any order, which may touch and overlap.

        Args:
            ranges: What is below 0 or beyond 64 bits is left out.
        """
        merged: list[tuple[int, int]] = []
        for start, end in sorted((max(at, 0), min(at + length, TOP)) for at, length in ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            elif start < end:
                merged.append((start, end))
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[Range]:
        """Yield the runs in order."""
        return ((start, end - start) for start, end in self.rows)

    def __bool__(self) -> bool:
        """Whether there is any address in it."""
        return bool(self.rows)

    def __or__(self, other: "Ranges") -> "Ranges":
        """Return what is in this or in *other*."""
        return Ranges.of((*self, *other))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(length for _, length in self)

    def widened(self, slack: int) -> "Ranges":
        """Return the same with *slack* bytes more at both ends of every run."""
        return Ranges.of((start - slack, length + 2 * slack) for start, length in self)

    def whole_pages(self) -> "Ranges":
        """Return the pages that any byte of this is in."""
        down = ((start // PAGE * PAGE, end) for start, end in self.rows)
        return Ranges.of((start, -(-(end - start) // PAGE) * PAGE) for start, end in down)

    def holds(self, start: int, length: int) -> bool:
        """Whether every byte of a range is in it; one that leaves 64 bits never is."""
        row = bisect_right(self.rows, start, key=lambda one: one[0]) - 1
        return row >= 0 and start + length <= self.rows[row][1]

    def split(self, start: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """
        Cut a range wherever it enters or leaves.

        Args:
            start: First address.
            length: Bytes.

        Yields:
            First address, bytes, and whether this piece is inside; in order, without gaps.
        """
        end = start + length
        row = max(bisect_right(self.rows, start, key=lambda one: one[0]) - 1, 0)
        for low, high in self.rows[row:]:
            if low >= end or start >= end:
                break
            if start < low:
                yield start, low - start, False
                start = low
            if start < high:
                here = min(high, end)
                yield start, here - start, True
                start = here
        if start < end:
            yield start, end - start, False


@dataclass(frozen=True, slots=True)
class Limit:
    """
    Where a device may go at all.

    Args:
        inside: Guest physical addresses it may use.
        on_violation: What becomes of a request that names others.
        rings_too: Rings must lie inside as well; else they may be in any of the guest's memory.
    """

    inside: Ranges
    on_violation: OnViolation = OnViolation.FAIL
    rings_too: bool = False
