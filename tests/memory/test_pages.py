import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.memory.pages import PageSet
from vhostblk.memory.ranges import PAGE

CELLS = st.lists(st.tuples(st.integers(0, 60 * PAGE), st.integers(0, 5 * PAGE)), max_size=40)


def pages_of(ranges: list[tuple[int, int]]) -> set[int]:
    """The page numbers that any byte of *ranges* is in."""
    return {
        page
        for address, length in ranges
        if length
        for page in range(address // PAGE, (address + length - 1) // PAGE + 1)
    }


def held(pages: PageSet) -> set[int]:
    """The page numbers of a set, which must be well formed."""
    rows = pages.islands()
    assert all(at % PAGE == length % PAGE == 0 < length for at, length in rows)
    assert all(low + n < high for (low, n), (high, _) in pairwise(rows))
    return pages_of(rows)


@settings(max_examples=60)
@given(CELLS)
def test_set_agrees_with_one_of_page_numbers(ranges: list[tuple[int, int]]) -> None:
    """Any ranges in any order: the pages of their bytes, no more, and their size and span."""
    pages = PageSet()
    for one in ranges:
        pages.add(*one)
    model = pages_of(ranges)
    assert held(pages) == model
    assert pages.size == len(model) * PAGE
    assert pages.span == (max(model) - min(model) + 1 if model else 0) * PAGE
    assert pages.gap == 0


@settings(max_examples=60)
@given(CELLS, st.integers(1, 4))
def test_small_set_holds_all_and_says_how_coarse_it_is(
    ranges: list[tuple[int, int]], limit: int
) -> None:
    """With too little room nothing is lost, the span stays right, and what is added is named."""
    pages = PageSet(limit)
    for one in ranges:
        pages.add(*one)
    model = pages_of(ranges)
    assert held(pages) >= model
    assert len(pages.islands()) <= limit
    assert pages.span == (max(model) - min(model) + 1 if model else 0) * PAGE
    for page in held(pages) - model:
        assert any(abs(page - near) * PAGE <= pages.gap for near in model)


@settings(max_examples=40)
@given(CELLS, st.integers(0, 8 * PAGE))
def test_islands_are_apart(ranges: list[tuple[int, int]], gap: int) -> None:
    """Islands are more than the gap apart, and begin and end with pages of the set."""
    pages = PageSet()
    for one in ranges:
        pages.add(*one)
    rows = pages.islands(gap)
    assert all(high - low - n > gap for (low, n), (high, _) in pairwise(rows))
    exact = pages.islands()
    assert {at for at, _ in rows} <= {at for at, _ in exact}
    assert {at + n for at, n in rows} <= {at + n for at, n in exact}
    assert pages_of(rows) >= pages_of(exact)


def test_set_stays_small_however_a_guest_scatters() -> None:
    """Twenty thousand pages all over 64 bits take no more room than the limit."""
    pages = PageSet()
    rng = random.Random(1)
    for _ in range(20_000):
        pages.add(rng.getrandbits(64 - rng.randrange(52)), 4096)
    assert len(pages.islands()) <= 4096
    assert pages.gap > 0


def test_update_joins_two_sets() -> None:
    """All pages of both are in it; the other one is left alone."""
    one, other = PageSet(), PageSet()
    one.add(0, PAGE)
    other.add(PAGE, PAGE)
    other.add(8 * PAGE, 1)
    one.update(other)
    assert one.islands() == [(0, 2 * PAGE), (8 * PAGE, PAGE)]
    assert other.islands() == [(PAGE, PAGE), (8 * PAGE, PAGE)]
