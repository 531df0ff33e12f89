"""
How long requests took, and which are under way for long.

Times are kept in buckets: one for less than 256 ns, four of the same width to each doubling up to
2^36 ns (69 s), one for what takes longer.  The arithmetic is the C core's (native/src/latency.c).
"""

from dataclasses import dataclass

from vhostblk.engine.op import Op

FIRST_BIT = 8
LAST_BIT = 36
PER_DOUBLING = 4
BUCKETS = (LAST_BIT - FIRST_BIT) * PER_DOUBLING + 2


def bucket_of(ns: int) -> int:
    """Return the bucket of a time in nanoseconds."""
    if ns < 1 << FIRST_BIT:
        return 0
    bit = ns.bit_length() - 1
    if bit >= LAST_BIT:
        return BUCKETS - 1
    return 1 + (bit - FIRST_BIT) * PER_DOUBLING + (ns >> (bit - 2)) % PER_DOUBLING


def bound(bucket: int) -> int:
    """Return the first nanosecond of a bucket."""
    if bucket == 0:
        return 0
    if bucket >= BUCKETS - 1:
        return 1 << LAST_BIT
    doubling, quarter = divmod(bucket - 1, PER_DOUBLING)
    return (PER_DOUBLING + quarter) << (FIRST_BIT + doubling - 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """
    How long requests of one kind took.

    Args:
        sum_ns: All of them together.
        max_ns: The longest.
        buckets: How many were in each; see `bound`.
    """

    sum_ns: int = 0
    max_ns: int = 0
    buckets: tuple[int, ...] = (0,) * BUCKETS

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    @property
    def mean_ns(self) -> int:
        """How long one took on average; 0: there was none."""
        return self.sum_ns // self.count if self.count else 0

    def percentile(self, share: float) -> int:
        """
        Return a time in nanoseconds that requests did not exceed.

        Args:
            share: Of them, more than 0 and up to 1.

        Returns:
            The end of the bucket they reach into, so up to a quarter too much, but never more
            than the longest took; 0: there was none.
        """
        wanted = share * self.count
        reached = 0
        for bucket, n in enumerate(self.buckets):
            reached += n
            if n and reached >= wanted:
                return min(bound(bucket + 1), self.max_ns) if bucket + 1 < BUCKETS else self.max_ns
        return 0

    def __add__(self, other: "Latency") -> "Latency":
        return Latency(
            sum_ns=self.sum_ns + other.sum_ns,
            max_ns=max(self.max_ns, other.max_ns),
            buckets=tuple(map(sum, zip(self.buckets, other.buckets, strict=True))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """
    A request that is under way.

    Args:
        op: What it is.
        offset: First byte on the disk.
        length: Bytes; of DISCARD and WRITE_ZEROES those of the range in hand.
        age: Seconds since it was taken.
        tag: With *since_ns* its name.
        since_ns: When it was taken, by the monotonic clock.
    """

    op: Op
    offset: int
    length: int
    age: float
    tag: int
    since_ns: int
