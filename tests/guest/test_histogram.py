import pytest

from vhostblk.guest.histogram import BUCKETS, Histogram, middle


def histogram(**counts: int) -> Histogram:
    buckets = [0] * BUCKETS
    for name, count in counts.items():
        buckets[int(name.removeprefix("b"))] = count
    return Histogram(buckets, 0, 10**12)


def test_buckets_are_the_generators() -> None:
    """Each latency is counted in a bucket whose middle is no more than 1.6 % away from it."""
    generator = pytest.importorskip(
        "vhostblk.guest.generator", reason="no load generator", exc_type=ImportError
    )
    for exponent in range(36):
        for share in range(8):
            ns = (1 << exponent) + ((1 << exponent) * share >> 3)
            assert abs(middle(generator.bucket(ns)) - ns) <= ns / 64, ns


def test_percentile_is_what_so_many_did_not_exceed() -> None:
    """Half, nine tenths and all of ten requests, of which one took long."""
    some = histogram(b10=5, b20=4, b63=1)
    assert [some.percentile(p) for p in (50, 50.1, 90, 100)] == [10, 20, 20, 63]


def test_percentile_never_exceeds_the_longest() -> None:
    """The middle of a wide bucket may lie behind the longest request in it."""
    buckets = [0] * BUCKETS
    buckets[500] = 1
    assert Histogram(buckets, 5, int(middle(500)) - 9).percentile(50) == int(middle(500)) - 9


def test_percentile_of_nothing_is_zero() -> None:
    """Without requests there is no latency."""
    assert histogram().percentile(99) == 0


def test_merged_counts_both() -> None:
    """Histograms of two queues add up; the longest is that of either."""
    both = Histogram.merged([histogram(b1=1), Histogram([2] * BUCKETS, 7, 9)])
    assert (both.count, both.buckets[1], both.sum_ns, both.max_ns) == (
        2 * BUCKETS + 1,
        3,
        7,
        10**12,
    )
