from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vhostblk.memory.ranges import PAGE, TOP, Range, Ranges

SMALL = st.integers(0, 24)
LISTS = st.lists(st.tuples(SMALL, SMALL), max_size=6)


def addresses(ranges: list[Range]) -> set[int]:
    return {at for start, length in ranges for at in range(start, start + length)}


@given(LISTS)
def test_of_keeps_every_address_once(ranges: list[Range]) -> None:
    """Runs are sorted, have a gap between them, and hold what was given and nothing else."""
    made = Ranges.of(ranges)
    assert addresses(list(made)) == addresses(ranges)
    assert all(a[1] < b[0] for a, b in pairwise(made.rows))
    assert all(start < end for start, end in made.rows)
    assert made.size == len(addresses(ranges))
    assert bool(made) == bool(addresses(ranges))


@given(LISTS, LISTS)
def test_union_is_that_of_sets(some: list[Range], others: list[Range]) -> None:
    """Every address of one or the other."""
    union = Ranges.of(some) | Ranges.of(others)
    assert addresses(list(union)) == addresses(some) | addresses(others)


@given(LISTS, SMALL, st.integers(1, 24))
def test_holds_is_every_byte(ranges: list[Range], start: int, length: int) -> None:
    """A range is held if each of its addresses is."""
    held = set(range(start, start + length)) <= addresses(ranges)
    assert Ranges.of(ranges).holds(start, length) == held


@given(LISTS, SMALL, SMALL)
def test_split_says_of_every_byte_where_it_is(ranges: list[Range], start: int, length: int) -> None:
    """The pieces follow each other, fill the range, alternate, and are right byte by byte."""
    pieces = list(Ranges.of(ranges).split(start, length))
    at = start
    for first, size, inside in pieces:
        assert first == at
        assert size > 0
        assert {byte in addresses(ranges) for byte in range(first, first + size)} == {inside}
        at += size
    assert at == start + length
    assert all(a[2] != b[2] for a, b in pairwise(pieces))


@given(LISTS, SMALL)
def test_widened_reaches_further_on_both_sides(ranges: list[Range], slack: int) -> None:
    """By so many bytes, but not below 0."""
    wide = {near for at in addresses(ranges) for near in range(max(at - slack, 0), at + slack + 1)}
    assert addresses(list(Ranges.of(ranges).widened(slack))) == wide


def test_nothing_reaches_beyond_64_bits() -> None:
    """Neither a range that was given so, nor one that wraps when it is looked for."""
    last = Ranges.of([(TOP - PAGE, 2 * PAGE)])
    assert last.rows == ((TOP - PAGE, TOP),)
    assert last.holds(TOP - 1, 1)
    assert not last.holds(TOP - 1, 2)
    assert not Ranges.of([(0, PAGE), (TOP - PAGE, PAGE)]).holds(TOP - PAGE, 2 * PAGE)
    assert list(last.split(TOP - 2 * PAGE, 2 * PAGE)) == [
        (TOP - 2 * PAGE, PAGE, False),
        (TOP - PAGE, PAGE, True),
    ]
    assert last.widened(PAGE).rows == ((TOP - 2 * PAGE, TOP),)


def test_whole_pages() -> None:
    """One byte of a page means all of it; neighbours become one run."""
    few = Ranges.of([(PAGE - 1, 2), (5 * PAGE, 1), (7 * PAGE, PAGE)])
    assert few.whole_pages().rows == (
        (0, 2 * PAGE),
        (5 * PAGE, 6 * PAGE),
        (7 * PAGE, 8 * PAGE),
    )
