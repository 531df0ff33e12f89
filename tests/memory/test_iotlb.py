from collections.abc import Callable, Iterator
from errno import EINVAL, ENOSPC
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import Refused
from vhostblk.memory.iotlb import EVERYWHERE, Iotlb, checked
from vhostblk.memory.parts import AVAIL, DESC, USED
from vhostblk.memory.regions import RegionTable, Wanted
from vhostblk.memory.space import Access, AddressSpace, Denied, Missing, Segment, Translation

PAGE = 4096
UVA = 1 << 40
BOTH = Access.READ | Access.WRITE
TOP = 1 << 64
MakeWanted = Callable[..., Wanted]


def at(iova: int, size: int, uaddr: int, access: Access = BOTH) -> Translation:
    return Translation(iova=iova, size=size, uaddr=uaddr, access=access)


# ---- the map ------------------------------------------------------------------------------

CELLS = 24
STEP = st.one_of(
    st.tuples(
        st.just("update"),
        st.integers(0, CELLS - 1),
        st.integers(1, 6),
        st.integers(0, 40),
        st.sampled_from([Access.READ, Access.WRITE, BOTH]),
    ),
    st.tuples(
        st.just("forget"),
        st.integers(0, CELLS - 1),
        st.integers(1, CELLS),
        st.just(0),
        st.just(BOTH),
    ),
)


@settings(max_examples=40)
@given(st.lists(STEP, max_size=30), st.integers(0, CELLS), st.integers(1, CELLS))
def test_map_agrees_with_one_that_keeps_every_byte(
    steps: list[tuple[str, int, int, int, Access]], start: int, length: int
) -> None:
    """Any updates and invalidations: each byte is where the newest update put it, or nowhere."""
    iotlb = Iotlb()
    model: dict[int, tuple[int, Access]] = {}
    for what, iova, size, uaddr, access in steps:
        if what == "update":
            iotlb.update(at(iova, size, uaddr, access))
            model |= {iova + i: (uaddr + i, access) for i in range(size)}
        else:
            iotlb.invalidate(iova, size)
            model = {k: v for k, v in model.items() if not iova <= k < iova + size}
    found = {
        one.iova + i: (one.uaddr + i, one.access)
        for one in iotlb.translations
        for i in range(one.size)
    }
    assert found == model
    assert sum(one.size for one in iotlb.translations) == len(model)
    gaps = {iova + i for iova, n in iotlb.gaps(start, length, Access.READ) for i in range(n)}
    known = {k for k, (_, access) in model.items() if Access.READ in access}
    assert gaps == set(range(start, start + length)) - known


@settings(max_examples=30)
@given(st.lists(STEP, max_size=30))
def test_map_is_sorted_and_no_larger_than_its_rows_need(
    steps: list[tuple[str, int, int, int, Access]],
) -> None:
    """Rows are disjoint, and telling them all anew joins none that was not joined already."""
    iotlb, again = Iotlb(), Iotlb()
    for what, iova, size, uaddr, access in steps:
        if what == "update":
            iotlb.update(at(iova, size, uaddr, access))
    rows = iotlb.translations
    for low, high in pairwise(rows):
        assert low.iova + low.size <= high.iova
    for row in rows:
        again.update(row)
    assert again.translations == rows


def test_neighbours_become_one_row() -> None:
    """Whatever came first; not with other rights, nor when the front-end's side has a gap."""
    iotlb = Iotlb()
    for page in (2, 0, 1):
        iotlb.update(at(page * PAGE, PAGE, UVA + page * PAGE))
    assert iotlb.translations == (at(0, 3 * PAGE, UVA),)
    iotlb.update(at(3 * PAGE, PAGE, UVA + 3 * PAGE, Access.READ))
    iotlb.update(at(4 * PAGE, PAGE, UVA + 5 * PAGE, Access.READ))
    assert len(iotlb.translations) == 3


def test_holes_do_not_make_more_than_are_kept() -> None:
    """A large translation that is invalidated page by page falls apart, but not without end."""
    iotlb = Iotlb(4)
    iotlb.update(at(0, 64 * PAGE, UVA))
    for page in range(1, 64, 2):
        iotlb.invalidate(page * PAGE, PAGE, keep=[(2 * PAGE, PAGE)])
        assert len(iotlb.translations) <= 4
    assert not iotlb.gaps(2 * PAGE, PAGE, BOTH)
    iotlb.update(at(1 << 40, 8 * PAGE, UVA))
    iotlb.invalidate((1 << 40) + PAGE, PAGE)
    iotlb.update(at((1 << 40) + 4 * PAGE, PAGE, UVA + (1 << 30)))
    assert len(iotlb.translations) <= 4


@pytest.mark.parametrize(
    ("iova", "size", "left"),
    [
        (0, 0xFEE00000, [0xFEF00000, TOP - 2 * PAGE]),
        (0xFEF00000, 0xFFFFFFFF01100000, [0]),
        (TOP - PAGE, 2 * PAGE, [0xFEF00000]),
        (0, TOP - 1, []),
    ],
)
def test_invalidate_reaches_the_top_and_wraps(iova: int, size: int, left: list[int]) -> None:
    """QEMU without ATS flushes everything in two halves; the second ends at 2 to the 64."""
    iotlb = Iotlb()
    for where in (0, 0xFEF00000, TOP - 2 * PAGE):
        iotlb.update(at(where, PAGE, UVA + where % (1 << 32)))
    if iova == TOP - PAGE:  # the last page of all cannot be mapped: the one below it can
        iova -= PAGE
        size += PAGE
    ranges = iotlb.invalidate(iova, size)
    assert [one.iova for one in iotlb.translations] == left
    assert sum(length for _, length in ranges) == size


def test_eviction_takes_the_oldest() -> None:
    """A map that is full forgets what was told longest ago, not what was told again."""
    iotlb = Iotlb(limit=3)
    for page in (0, 2, 4):
        iotlb.update(at(page * PAGE, PAGE, UVA))
    iotlb.update(at(0, PAGE, UVA))
    iotlb.update(at(6 * PAGE, PAGE, UVA))
    assert [one.iova // PAGE for one in iotlb.translations] == [0, 4, 6]


def pages(iotlb: Iotlb) -> list[int]:
    return [one.iova // PAGE for one in iotlb.translations]


def test_eviction_spares_waiting_chains() -> None:
    """What they need stays, however old; where all is needed it is more than the limit for once."""
    iotlb = Iotlb(limit=2, most=3)
    iotlb.update(at(0, PAGE, UVA))
    iotlb.update(at(2 * PAGE, PAGE, UVA))
    iotlb.update(at(4 * PAGE, PAGE, UVA), keep=[(100, 1)])
    assert pages(iotlb) == [0, 4]
    needed = [(4 * PAGE, 1), (0, 8), (4, PAGE - 4)]
    iotlb.update(at(6 * PAGE, PAGE, UVA), keep=needed)
    assert pages(iotlb) == [0, 4, 6]
    with pytest.raises(Refused) as caught:
        iotlb.update(at(8 * PAGE, PAGE, UVA), keep=[*needed, (6 * PAGE, PAGE)])
    assert caught.value.errno == ENOSPC
    assert pages(iotlb) == [0, 4, 6]
    iotlb.update(at(8 * PAGE, PAGE, UVA), keep=[(6 * PAGE, PAGE)])
    assert pages(iotlb) == [6, 8], "when they are through, the limit holds again"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8))
def test_eviction_spares_exactly_what_is_needed(keep: list[tuple[int, int]]) -> None:
    """Whatever overlaps: with no room for others, those that touch what is needed are left."""
    iotlb = Iotlb(limit=0)
    for i in range(16):
        iotlb.update(at(5 * i, 3, UVA + 100 * i), keep=[(0, 100)])
    iotlb.invalidate(1 << 40, 1, keep=keep)
    left = {one.iova for one in iotlb.translations}
    assert left == {
        5 * i for i in range(16) if any(a < 5 * i + 3 and 5 * i < a + n for a, n in keep)
    }


def test_clear_forgets_everything() -> None:
    """Nothing of an earlier start is known at the next."""
    iotlb = Iotlb()
    iotlb.update(at(0, PAGE, UVA))
    iotlb.clear()
    assert iotlb.translations == ()
    assert iotlb.gaps(0, PAGE, Access.READ) == [(0, PAGE)]


# ---- what an update may say ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("iova", "size", "uaddr", "perm"),
    [
        (0, 0, UVA, 3),
        (TOP - PAGE, PAGE, UVA, 3),
        (TOP - PAGE, 2 * PAGE, UVA, 3),
        (0, PAGE, UVA, 0),
        (0, PAGE, UVA, 4),
        (0, PAGE, UVA - 1, 3),
        (0, PAGE + 1, UVA + PAGE, 3),
        (0, PAGE, UVA + 2 * PAGE, 3),
        (0, 2 * PAGE, UVA + PAGE, 3),
        (0, PAGE, TOP - 1, 3),
    ],
)
def test_update_is_checked(wanted: MakeWanted, iova: int, size: int, uaddr: int, perm: int) -> None:
    """It has bytes, ends below the top, is in one region, and allows something."""
    table = RegionTable().replace([wanted(0, 2, uva=UVA), wanted(1 << 20, uva=UVA + (1 << 20))])
    try:
        with pytest.raises(Refused) as caught:
            checked(table.table, iova=iova, size=size, uaddr=uaddr, perm=perm)
        assert caught.value.errno == EINVAL
        assert checked(table.table, iova=7, size=2 * PAGE, uaddr=UVA, perm=1) == at(
            7, 2 * PAGE, UVA, Access.READ
        )
    finally:
        for region in table.table.regions:
            region.mapping.release()


# ---- the space it makes -------------------------------------------------------------------


@pytest.fixture
def table(wanted: MakeWanted) -> Iterator[RegionTable]:
    """Two regions that are neighbours in the front-end, in the other order in the guest."""
    made = RegionTable().replace(
        [wanted(1 << 20, 2, uva=UVA), wanted(0, 2, uva=UVA + 2 * PAGE, offset=4 * PAGE)]
    )
    yield made.table
    for region in made.table.regions:
        region.mapping.release()


def here(table: RegionTable, uaddr: int) -> int:
    region = table.at_uva(uaddr)
    assert region is not None
    return region.mapping.address + uaddr - region.place.uva


def test_memory_of_a_range_is_where_it_leads(table: RegionTable) -> None:
    """To the byte, sorted by address here, what two translations share named once."""
    iotlb = Iotlb()
    iotlb.update(at(0, 2 * PAGE, UVA + PAGE))  # across two regions
    iotlb.update(at(8 * PAGE, PAGE, UVA + PAGE))
    assert iotlb.memory(16, PAGE, table) == sorted(
        [(here(table, UVA + PAGE) + 16, PAGE - 16), (here(table, UVA + 2 * PAGE), 16)]
    )
    assert iotlb.memory(0, 9 * PAGE, table) == sorted(
        [(here(table, UVA + PAGE), PAGE), (here(table, UVA + 2 * PAGE), PAGE)]
    )
    assert iotlb.memory(TOP - PAGE, PAGE + 8, table) == [(here(table, UVA + PAGE), 8)]
    assert iotlb.memory(9 * PAGE, PAGE, table) == []
    iotlb.invalidate(0, PAGE)
    assert iotlb.memory(0, PAGE, table) == []


def test_memory_that_was_dropped_is_anywhere(table: RegionTable) -> None:
    """Evicted, or dropped with the regions: until a start, requests may go on with it."""
    evicted, dropped = Iotlb(limit=1), Iotlb()
    for i in range(2):
        evicted.update(at(4 * i * PAGE, PAGE, UVA))
    dropped.update(at(0, PAGE, UVA))
    dropped.drop()
    for iotlb in (evicted, dropped):
        assert iotlb.memory(0, PAGE, table) == EVERYWHERE
        iotlb.update(at(0, PAGE, UVA + PAGE))
        assert iotlb.memory(0, PAGE, table) == [(here(table, UVA + PAGE), PAGE)]
        iotlb.clear()
        assert iotlb.memory(0, PAGE, table) == []


def test_space_cuts_translations_at_region_borders(table: RegionTable) -> None:
    """IOVA to front-end address to region to here; the log page is the guest's."""
    low, high = (region.mapping.address for region in table.regions)
    space = AddressSpace.build(table, [at(0x10000, 3 * PAGE, UVA + PAGE, Access.READ)])
    assert space.segments == (
        Segment(0x10000, PAGE, high + PAGE, Access.READ),
        Segment(0x11000, 2 * PAGE, low, Access.READ),
    )


def test_space_leaves_out_what_is_in_no_region(table: RegionTable) -> None:
    """A region may have gone since its translation came."""
    space = AddressSpace.build(
        table, [at(0, 2 * PAGE, UVA - PAGE), at(1 << 20, 2 * PAGE, UVA + 3 * PAGE)]
    )
    assert [(row.iova, row.length) for row in space.segments] == [(PAGE, PAGE), (1 << 20, PAGE)]


def test_space_asks_for_what_it_does_not_know(table: RegionTable) -> None:
    """Unmapped, or mapped without the right: it says from where on and how much is needed."""
    space = AddressSpace.build(table, [at(0, PAGE, UVA, Access.READ)])
    for iova, length, access, where in (
        (PAGE - 8, 16, Access.READ, PAGE),
        (8, 16, Access.WRITE, 8),
    ):
        with pytest.raises(Missing) as caught:
            space.translate(iova, length, access)
        missing = caught.value
        assert (missing.iova, missing.access) == (where, access)
        assert missing.length == iova + length - where
    with pytest.raises(Missing):
        AddressSpace.build(table, []).translate(0, 1, Access.READ)


def test_space_does_not_ask_for_what_is_denied() -> None:
    """A segment that allows nothing is an answer."""
    space = AddressSpace((Segment(0, PAGE, 1, Access(0)),), RegionTable(), asks=True)
    with pytest.raises(Denied):
        space.translate(0, 1, Access.READ)


def test_ring_by_iova_may_lie_in_pieces(table: RegionTable) -> None:
    """A 1024-entry used ring has three pages, each of which may be anywhere."""
    low, high = (region.mapping.address for region in table.regions)
    space = AddressSpace.build(table, [at(0, PAGE, UVA + PAGE), at(PAGE, PAGE, UVA + 2 * PAGE)])
    assert space.ring_pieces_by_iova(PAGE - 16, 32, DESC) == [
        (high + 2 * PAGE - 16, 16),
        (low, 16),
    ]


def test_ring_by_iova_needs_the_right(table: RegionTable) -> None:
    """The device reads descriptors and the avail ring, and writes the used ring."""
    space = AddressSpace.build(table, [at(0, PAGE, UVA, Access.READ)])
    assert space.ring_pieces_by_iova(0, 64, DESC)
    assert space.ring_pieces_by_iova(0, 64, AVAIL)
    with pytest.raises(Missing) as caught:
        space.ring_pieces_by_iova(0, 64, USED)
    assert caught.value.access == Access.WRITE


def test_ring_by_iova_is_refused_where_it_cannot_lie(table: RegionTable) -> None:
    """Misaligned, or with an element that lies in two translations."""
    space = AddressSpace.build(table, [at(8, PAGE, UVA + 8), at(PAGE + 8, 64, UVA + 8)])
    with pytest.raises(Refused, match="aligned"):
        space.ring_pieces_by_iova(8, 16, DESC)
    with pytest.raises(Refused, match="splits"):
        space.ring_pieces_by_iova(PAGE - 8, 32, USED)
