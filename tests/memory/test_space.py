import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import Refused
from vhostblk.memory.parts import AVAIL, DESC, USED, RingPart
from vhostblk.memory.regions import Place, RegionTable, Wanted
from vhostblk.memory.space import Access, AddressSpace, Denied, Segment

PAGE = 4096
PAGES = 24
BOTH = Access.READ | Access.WRITE
UVA = 1 << 40
MakeWanted = Callable[..., Wanted]


@contextmanager
def space_of(*wanted: Wanted) -> Iterator[AddressSpace]:
    """Give the address space of these regions; their memory goes afterwards."""
    table = RegionTable().replace(wanted).table
    yield AddressSpace.build(table)
    for region in table.regions:
        region.mapping.release()


def test_segment_is_a_region(wanted: MakeWanted) -> None:
    """Without an IOMMU the driver's addresses are guest physical ones."""
    with space_of(wanted(0x100000, 2), wanted(0x10000)) as space:
        low, high = (region.mapping.address for region in space.table.regions)
        assert space.segments == (
            Segment(0x10000, PAGE, low, BOTH),
            Segment(0x100000, 2 * PAGE, high, BOTH),
        )


def test_translate_returns_the_exact_part(wanted: MakeWanted) -> None:
    """First byte, length, host address and log page of the part that was asked for."""
    with space_of(wanted(0x10000, 3)) as space:
        host = space.segments[0].host
        assert space.translate(0x11010, 0x20, Access.READ) == [
            Segment(0x11010, 0x20, host + 0x1010, BOTH)
        ]


def test_translate_crosses_regions(wanted: MakeWanted) -> None:
    """Neighbours in the guest are two pieces here."""
    with space_of(wanted(0x10000), wanted(0x11000)) as space:
        low, high = (segment.host for segment in space.segments)
        assert space.translate(0x10800, PAGE, Access.WRITE) == [
            Segment(0x10800, 0x800, low + 0x800, BOTH),
            Segment(0x11000, 0x800, high, BOTH),
        ]


@pytest.mark.parametrize(
    ("iova", "length", "where"),
    [
        (0x0FFFF, 1, 0x0FFFF),
        (0x11000, 1, 0x11000),
        (0x10FFF, 2, 0x11000),
        (0, 1, 0),
        ((1 << 64) - 1, 2, (1 << 64) - 1),
        (0x10000, 1 << 64, 0x11000),
        (0x10800, 0x2000, 0x11000),
    ],
)
def test_translate_denies_what_is_not_mapped(
    wanted: MakeWanted, iova: int, length: int, where: int
) -> None:
    """By one byte even, and it says which; the next region does not help over a hole."""
    with space_of(wanted(0x10000), wanted(0x12000)) as space:
        with pytest.raises(Denied, match=f"{where:#x}") as caught:
            space.translate(iova, length, Access.READ)
        assert (caught.value.iova, caught.value.access) == (where, Access.READ)


def test_translate_asks_for_the_right() -> None:
    """A segment gives what it gives; one with access 0 gives nothing."""
    rows = (Segment(0, 16, 0x1000, Access.READ), Segment(16, 16, 0x2000, Access(0)))
    space = AddressSpace(rows, RegionTable())
    assert space.translate(0, 16, Access.READ) == [rows[0]]
    for iova, access in ((0, Access.WRITE), (0, BOTH), (16, Access.READ), (16, Access.WRITE)):
        with pytest.raises(Denied):
            space.translate(iova, 8, access)
    with pytest.raises(Denied) as caught:
        space.translate(8, 16, Access.READ)
    assert caught.value.iova == 16


def test_empty_space_denies_everything() -> None:
    """Before the first region nothing may be touched."""
    with pytest.raises(Denied):
        AddressSpace.build(RegionTable()).translate(0, 1, Access.READ)


LAYOUTS = st.lists(st.integers(0, 3), min_size=1, max_size=8)
"""Pages of hole and region in turn."""


def regions_of(layout: list[int], memory: int) -> list[Wanted]:
    made, at = [], 0
    for turn, pages in enumerate(layout):
        if turn % 2 and pages:
            place = Place(gpa=at * PAGE, size=pages * PAGE, uva=UVA - (at + pages) * PAGE)
            made.append(Wanted(place=place, mmap_offset=at * PAGE, fd=os.dup(memory)))
        at += pages
    return made


@settings(max_examples=60)
@given(LAYOUTS, st.integers(0, PAGES * PAGE), st.integers(1, 4 * PAGE))
def test_translate_agrees_with_looking_at_every_byte(
    memory: int, layout: list[int], iova: int, length: int
) -> None:
    """Any table, any range: denied at the first unmapped byte, else each byte where it is."""
    with space_of(*regions_of(layout, memory)) as space:

        def host(address: int) -> int | None:
            for region in space.table.regions:
                if 0 <= address - region.place.gpa < region.place.size:
                    return region.mapping.address + address - region.place.gpa
            return None

        # Borders are at pages, so page starts and both ends stand for every byte.
        probes = [iova, *range((iova // PAGE + 1) * PAGE, iova + length, PAGE)]
        missing = [address for address in probes if host(address) is None]
        if missing:
            with pytest.raises(Denied) as caught:
                space.translate(iova, length, Access.READ)
            assert caught.value.iova == missing[0]
            return
        pieces = space.translate(iova, length, Access.READ)
        assert sum(piece.length for piece in pieces) == length
        at = iova
        for piece in pieces:
            assert (piece.iova, piece.host) == (at, host(at))
            assert piece.host + piece.length - 1 == host(at + piece.length - 1)
            at += piece.length


def test_ring_in_one_region_is_one_piece(wanted: MakeWanted) -> None:
    """Addressed by the front-end's virtual address, not by the guest's."""
    with space_of(wanted(0x10000, 4, uva=UVA)) as space:
        host = space.segments[0].host
        assert space.ring_pieces(UVA + 0x1000, 2048, DESC) == [(host + 0x1000, 2048)]
        assert space.ring_pieces(UVA + 0x3FFE, 2, AVAIL) == [(host + 0x3FFE, 2)]


@pytest.mark.parametrize(
    ("part", "before"),
    [(DESC, 16), (DESC, 4080), (AVAIL, 4), (AVAIL, 6), (USED, 4), (USED, 12)],
)
def test_ring_may_cross_regions_between_elements(
    wanted: MakeWanted, part: RingPart, before: int
) -> None:
    """Two regions that are neighbours for the front-end make two pieces."""
    with space_of(wanted(0, uva=UVA), wanted(0x10000, uva=UVA + PAGE)) as space:
        low, high = (segment.host for segment in space.segments)
        assert space.ring_pieces(UVA + PAGE - before, before + 64, part) == [
            (low + PAGE - before, before),
            (high, 64),
        ]


@pytest.mark.parametrize(("part", "before"), [(USED, 8), (AVAIL, 2), (USED, 0x10)])
def test_border_inside_an_element_is_refused(
    wanted: MakeWanted, part: RingPart, before: int
) -> None:
    """An element, or the header, in two places could not be read at once."""
    with (
        space_of(wanted(0, uva=UVA), wanted(0x10000, uva=UVA + PAGE)) as space,
        pytest.raises(Refused, match="splits the ring") as caught,
    ):
        space.ring_pieces(UVA + PAGE - before, before + 64, part)
    assert caught.value.errno == EINVAL


@pytest.mark.parametrize(("part", "skew"), [(DESC, 8), (DESC, 1), (AVAIL, 1), (USED, 2)])
def test_misaligned_ring_is_refused(wanted: MakeWanted, part: RingPart, skew: int) -> None:
    """Whether the address is at fault or what is mapped there."""
    with (
        space_of(wanted(0, uva=UVA)) as space,
        pytest.raises(Refused, match="not aligned"),
    ):
        space.ring_pieces(UVA + skew, 64, part)
    with (
        space_of(wanted(0, uva=UVA, offset=skew)) as space,
        pytest.raises(Refused, match="not aligned"),
    ):
        space.ring_pieces(UVA, 64, part)


@pytest.mark.parametrize("uva", [UVA - 16, UVA + PAGE, 0, (1 << 64) - 16])
def test_ring_outside_memory_is_refused(wanted: MakeWanted, uva: int) -> None:
    """Where no region is, and where one ends before the ring does."""
    with space_of(wanted(0, uva=UVA)) as space:
        with pytest.raises(Refused, match="no memory region holds"):
            space.ring_pieces(uva, 64, DESC)
        with pytest.raises(Refused, match="no memory region holds"):
            space.ring_pieces(UVA + PAGE - 32, 48, DESC)


def test_ring_without_any_memory_says_what_qemu_needs() -> None:
    """A front-end that has shared nothing is told how, not where."""
    with pytest.raises(Refused, match=r"no guest memory: give QEMU .* share=on"):
        AddressSpace.build(RegionTable()).ring_pieces(UVA, 64, DESC)
