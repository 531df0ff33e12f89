"""The arithmetic of times; `test_times` has what engines measure."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.engine.latency import BUCKETS, LAST_BIT, Latency, bound, bucket_of


def of(*times: int) -> Latency:
    """Return what was counted of these times."""
    buckets = [0] * BUCKETS
    for ns in times:
        buckets[bucket_of(ns)] += 1
    return Latency(sum_ns=sum(times), max_ns=max(times, default=0), buckets=tuple(buckets))


def test_buckets_are_quarters_of_doublings() -> None:
    """Each begins where the one before ends; in the middle none is wider than a quarter."""
    bounds = [bound(bucket) for bucket in range(BUCKETS)]
    assert bounds[:6] == [0, 256, 320, 384, 448, 512]
    assert bounds[-1] == 1 << LAST_BIT
    for bucket, (low, high) in enumerate(pairwise(bounds)):
        assert bucket_of(low) == bucket_of(high - 1) == bucket
        assert bucket == 0 or 4 * (high - low) <= low
    assert bucket_of(1 << 60) == BUCKETS - 1


@settings(max_examples=40)
@given(st.lists(st.integers(0, 1 << 38), min_size=1), st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_percentiles_are_a_quarter_too_much_at_most(times: list[int], share: float) -> None:
    """Never less than the request that stands there, never more than the longest."""
    took = of(*times)
    there = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    got = took.percentile(share)
    assert there <= got <= max(times)
    if 256 <= there < 1 << LAST_BIT:
        assert 4 * got <= 5 * there + 4
    assert took.count == len(times)
    assert took.mean_ns == sum(times) // len(times)


def test_nothing_took_no_time() -> None:
    """No division by nothing."""
    assert (of().count, of().mean_ns, of().percentile(0.99)) == (0, 0, 0)


def test_two_queues_add_up() -> None:
    """As if their requests had been one queue's."""
    assert of(5, 1000) + of(70_000, 1000) == of(5, 1000, 1000, 70_000)


def test_core_has_the_same_buckets() -> None:
    """The number and every bound are those of the C core."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    from vhostblk.engine.native.core import lib  # noqa: PLC0415 - where it was built

    assert lib.VHB_LATENCY_BUCKETS == BUCKETS
    assert [lib.vhb_latency_bound(i) for i in range(BUCKETS)] == [bound(i) for i in range(BUCKETS)]
