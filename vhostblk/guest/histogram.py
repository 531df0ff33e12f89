"""
How long requests took, counted in buckets: 32 to each doubling, as the load generator counts them.

What is told of a bucket is its middle, which is off by 1.6 % at most; below 64 ns each nanosecond
has a bucket of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PER_DOUBLING = 32
BUCKETS = 1024


@dataclass(frozen=True, slots=True)
class Histogram:
    """
    Latencies of requests that ended well.

    Args:
        buckets: How many fell into each, `BUCKETS` of them.
        sum_ns: Of all.
        max_ns: The longest; 0 where there was none.
    """

    buckets: Sequence[int]
    sum_ns: int
    max_ns: int

    @classmethod
    def merged(cls, all_of: Iterable["Histogram"]) -> "Histogram":
        """Return the one of all requests, of at least one histogram."""
        parts = list(all_of)
        return cls(
            [sum(counts) for counts in zip(*(one.buckets for one in parts), strict=True)],
            sum(one.sum_ns for one in parts),
            max(one.max_ns for one in parts),
        )

    @property
    def count(self) -> int:
        """Return how many there are."""
        return sum(self.buckets)

    def percentile(self, percent: float) -> float:
        """
        Return what *percent* of the requests did not exceed, in nanoseconds.

        Args:
            percent: Over 0, up to 100.

        Returns:
            At most ``max_ns``; 0 where there was no request.
        """
        wanted, seen = self.count * percent / 100, 0
        for bucket, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                return min(middle(bucket), self.max_ns)
        return 0.0


def middle(bucket: int) -> float:
    """Return the latency that *bucket* stands for, in nanoseconds."""
    if bucket < 2 * PER_DOUBLING:
        return float(bucket)
    shift = bucket // PER_DOUBLING - 1
    first = (bucket - shift * PER_DOUBLING) << shift
    return first + ((1 << shift) - 1) / 2
