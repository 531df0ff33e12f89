"""What is built again and again of what an IOMMU has told."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.memory.iotlb import Iotlb
from vhostblk.memory.regions import RegionTable, Wanted
from vhostblk.memory.space import Access, AddressSpace, Cuts, Translation

PAGE = 4096
UVA = 1 << 40
BOTH = Access.READ | Access.WRITE
STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 31), st.integers(1, 6), st.integers(0, 7)), max_size=30
)


@pytest.fixture(scope="module")
def table(wanted: Callable[..., Wanted]) -> Iterator[RegionTable]:
    """Return three regions with a hole between."""
    made = RegionTable().replace([wanted(0), wanted(PAGE, 2), wanted(5 * PAGE, 3)]).table
    yield made
    for region in made.regions:
        region.mapping.release()


def at(iova: int, *, uaddr: int = UVA, size: int = PAGE) -> Translation:
    return Translation(iova=iova, size=size, uaddr=uaddr, access=BOTH)


def test_only_what_is_new_is_made(table: RegionTable) -> None:
    """The rows of what was known before are the same objects, whatever came or went between."""
    cuts = Cuts(table)
    first, second, third = at(0), at(2 * PAGE), at(4 * PAGE)
    before = AddressSpace.build(table, [first, third], cuts=cuts).segments
    after = AddressSpace.build(table, [first, second, third], cuts=cuts).segments
    assert after[0] is before[0]
    assert after[2] is before[1]
    assert AddressSpace.build(table, [third], cuts=cuts).segments[0] is before[1]
    again = AddressSpace.build(table, [first], cuts=cuts).segments[0]
    assert again == before[0]
    assert again is not before[0], "what was unknown meanwhile is not held"


@given(steps=STEPS)
def test_it_is_the_same_space(table: RegionTable, steps: list[tuple[bool, int, int, int]]) -> None:
    """Whatever is told and taken back, the space is the one that is built from nothing."""
    cuts, iotlb = Cuts(table), Iotlb(limit=8)
    for maps, page, pages, where in steps:
        if maps:
            uaddr = UVA + where * PAGE
            iotlb.update(at(page * PAGE, uaddr=uaddr, size=pages * PAGE))
        else:
            iotlb.invalidate(page * PAGE, pages * PAGE)
        known = iotlb.translations
        assert AddressSpace.build(table, known, cuts=cuts) == AddressSpace.build(table, known)
