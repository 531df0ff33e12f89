"""Sets of bytes against sets of Python."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.disk.ranges import Index, Range, both, bytes_in, joined, without

MIB = 1 << 20
pairs = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda p: (p[0], p[0] + p[1]))
sets = st.lists(pairs, max_size=6).map(joined)


def members(ranges: list[Range]) -> set[int]:
    return {byte for start, end in ranges for byte in range(start, end)}


@settings(max_examples=100, deadline=None)
@given(sets, sets)
def test_ranges_are_sets(one: list[Range], other: list[Range]) -> None:
    """Difference, intersection, union and count are those of the bytes in them."""
    assert members(without(one, other)) == members(one) - members(other)
    assert members(both(one, other)) == members(one) & members(other)
    assert members(joined([*one, *other])) == members(one) | members(other)
    assert bytes_in(one) == len(members(one))


@dataclass(frozen=True)
class Item:
    """What lies somewhere."""

    number: int
    offset: int
    length: int


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300 * MIB), st.integers(1, 200 * MIB)), max_size=8),
    st.integers(0, 300 * MIB),
    st.integers(1, 64 * MIB),
)
def test_an_index_finds_what_overlaps(
    places: list[tuple[int, int]], start: int, length: int
) -> None:
    """Short ones and those of the whole disk, in the order of their numbers, until removed."""
    items = [Item(number, *place) for number, place in enumerate(places)]
    index: Index[Item] = Index()
    for item in items:
        index.add(item)
    for item in items[::3]:
        index.remove(item)
    left = [item for item in items if item not in items[::3]]
    end = start + length
    found = [i for i in left if i.offset < end and start < i.offset + i.length]
    assert index.over(start, end) == found
    assert list(index) == left
