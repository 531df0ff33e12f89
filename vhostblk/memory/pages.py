"""
A set of guest pages, as ranges, that stays small whatever a guest does.

While there is room it is exact.  When a guest scatters its buffers so far that there is none, the
ranges that are nearest to each other become one: the set is a little too large from then on, never
too small, and says how coarse it is.
"""

from bisect import bisect_left, bisect_right

from vhostblk.memory.ranges import PAGE, Range

LIMIT = 4096
"""Ranges kept: those of a pool of 64 MiB (a default swiotlb) of which every fourth page is seen."""
_COARSER = 4


class PageSet:
    """
    Pages, as disjoint sorted ranges.

    Args:
        limit: Ranges kept at most.

    Attributes:
        gap: Bytes up to which pages that were not named are in the set between two that were; 0:
            the set is exact.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.gap = 0
        self._limit = limit
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, address: int, length: int) -> None:
        """
        Put the pages of a range in.

        Args:
            address: Its first byte.
            length: Bytes; with none it has no page.
        """
        if length <= 0:
            return
        start = address // PAGE * PAGE
        end = -(-(address + length) // PAGE) * PAGE
        # Every range that this one meets, or comes nearer to than the gap.
        first = bisect_left(self._ends, start - self.gap)
        after = bisect_right(self._starts, end + self.gap)
        if first < after:
            start = min(start, self._starts[first])
            end = max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]
        while len(self._starts) > self._limit:
            self._coarsen()

    def _coarsen(self) -> None:
        self.gap = max(self.gap * _COARSER, PAGE)
        rows = self.islands(self.gap)
        self._starts = [start for start, _ in rows]
        self._ends = [start + length for start, length in rows]

    def update(self, other: "PageSet") -> None:
        """Put all pages of another set in."""
        for start, length in other.islands():
            self.add(start, length)

    @property
    def size(self) -> int:
        """Return how many bytes its pages have."""
        return sum(self._ends) - sum(self._starts)

    @property
    def span(self) -> int:
        """Return the bytes from its first page to the end of its last, 0 when it is empty."""
        return self._ends[-1] - self._starts[0] if self._starts else 0

    def islands(self, gap: int = 0) -> list[Range]:
        """
        Return its ranges, in order.

        Args:
            gap: Bytes up to which two of them count as one.
        """
        found: list[Range] = []
        for start, end in zip(self._starts, self._ends, strict=True):
            if found and start - sum(found[-1]) <= gap:
                found[-1] = found[-1][0], end - found[-1][0]
            else:
                found.append((start, end - start))
        return found
