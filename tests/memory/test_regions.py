import os
from collections.abc import Callable
from dataclasses import replace
from errno import ENOENT, ENOSPC

import pytest

from vhostblk.errors import Refused
from vhostblk.memory.regions import Place, RegionTable, Wanted

PAGE = 4096
MakeWanted = Callable[..., Wanted]


def forget(table: RegionTable) -> None:
    for region in table.regions:
        region.mapping.release()


def gpas(table: RegionTable) -> list[int]:
    return [region.place.gpa for region in table.regions]


def test_table_is_sorted_whatever_the_order(wanted: MakeWanted) -> None:
    """Regions are in the order of their guest physical addresses."""
    table = RegionTable()
    for gpa in (0x30000, 0x10000, 0x20000):
        change = table.add(wanted(gpa))
        assert change.kept == table.regions
        assert len(change.added) == 1
        assert change.removed == ()
        table = change.table
    assert gpas(table) == [0x10000, 0x20000, 0x30000]
    forget(table)


def test_remove_matches_gpa_size_and_uva(wanted: MakeWanted) -> None:
    """All three; nothing else is looked at."""
    table = RegionTable().add(wanted(0x10000)).table
    place = table.regions[0].place
    for other in (
        replace(place, gpa=place.gpa + PAGE),
        replace(place, size=place.size + PAGE),
        replace(place, uva=place.uva + PAGE),
    ):
        with pytest.raises(Refused, match="to remove") as caught:
            table.remove(other)
        assert caught.value.errno == ENOENT
    change = table.remove(place)
    assert change.table == RegionTable()
    assert change.removed == table.regions
    assert change.removed[0].mapping.alive
    forget(table)


@pytest.mark.parametrize(
    ("gpa", "uva", "why"),
    [
        (0x10000, 1 << 50, "overlap at guest physical"),
        (0x11FFF, 1 << 50, "overlap at guest physical"),
        (0x0F001, 1 << 50, "overlap at guest physical"),
        (0x90000, (1 << 40) + 0x10000, "overlap at front-end"),
        (0x90000, (1 << 40) + 0x0F001, "overlap at front-end"),
    ],
)
def test_overlap_is_refused(wanted: MakeWanted, gpa: int, uva: int, why: str) -> None:
    """Two regions share no guest physical and no front-end address, by one byte even."""
    table = RegionTable().add(wanted(0x10000, 2)).table
    with pytest.raises(Refused, match=why):
        table.add(wanted(gpa, uva=uva))
    forget(table)


def test_neighbours_do_not_overlap(wanted: MakeWanted) -> None:
    """End and beginning may meet."""
    table = RegionTable().add(wanted(0x10000, 2)).table
    for gpa in (0x0F000, 0x12000):
        table = table.add(wanted(gpa)).table
    assert len(table.regions) == 3
    forget(table)


def test_region_without_size_is_refused(wanted: MakeWanted) -> None:
    """A region has at least one byte."""
    with pytest.raises(Refused, match="size 0"):
        RegionTable().add(wanted(0x10000, 0))


@pytest.mark.parametrize(
    ("gpa", "uva", "offset"),
    [((1 << 64) - PAGE + 1, 0, 0), (0, (1 << 64) - PAGE + 1, 0), (0, 0, (1 << 64) - PAGE + 1)],
)
def test_region_beyond_64_bits_is_refused(
    wanted: MakeWanted, gpa: int, uva: int, offset: int
) -> None:
    """Neither address may wrap, nor the offset."""
    with pytest.raises(Refused, match="beyond 64 bits"):
        RegionTable().add(wanted(gpa, uva=uva, offset=offset))


def test_region_may_end_at_the_last_byte(wanted: MakeWanted) -> None:
    """The last page of 64 bits is a page."""
    last = (1 << 64) - PAGE
    table = RegionTable().add(wanted(last, uva=last)).table
    assert table.uva_to_gpa((1 << 64) - 1) == (1 << 64) - 1
    forget(table)


def test_table_holds_509_regions(wanted: MakeWanted) -> None:
    """As many as GET_MAX_MEM_SLOTS says, and not one more."""
    table = RegionTable()
    for slot in range(509):
        table = table.add(wanted(slot * PAGE)).table
    with pytest.raises(Refused, match="more than 509") as caught:
        table.add(wanted(509 * PAGE))
    assert caught.value.errno == ENOSPC
    forget(table)


def test_same_table_again_changes_nothing(wanted: MakeWanted) -> None:
    """SET_MEM_TABLE with what is there keeps every mapping, and closes the new descriptors."""
    first = RegionTable().replace([wanted(0), wanted(PAGE, offset=PAGE)])
    again = first.table.replace([wanted(PAGE, offset=PAGE), wanted(0)])
    assert again.table == first.table
    assert again.added == ()
    assert again.removed == ()
    assert set(again.kept) == set(first.added)
    forget(again.table)


def test_replace_says_what_stays_comes_and_goes(wanted: MakeWanted) -> None:
    """The whole table is sent to change a part of it."""
    old = RegionTable().replace([wanted(0), wanted(PAGE)]).table
    change = old.replace([wanted(0), wanted(2 * PAGE)])
    assert change.kept == old.regions[:1]
    assert change.removed == old.regions[1:]
    assert [region.place.gpa for region in change.added] == [2 * PAGE]
    assert gpas(change.table) == [0, 2 * PAGE]
    forget(change.table)
    change.removed[0].mapping.release()


def test_replace_maps_anew_what_lies_elsewhere(wanted: MakeWanted) -> None:
    """The same place at another offset, or in another file, is another region."""
    old = RegionTable().replace([wanted(0), wanted(PAGE)]).table
    other = os.memfd_create("guest")
    os.ftruncate(other, PAGE)
    elsewhere = Wanted(place=old.regions[1].place, mmap_offset=0, fd=other)
    change = old.replace([wanted(0, offset=PAGE), elsewhere])
    assert change.kept == ()
    assert change.removed == old.regions
    assert len(change.added) == 2
    forget(old)
    forget(change.table)


def test_replace_that_fails_changes_nothing(wanted: MakeWanted) -> None:
    """Whatever was mapped on the way is unmapped, every descriptor closed."""
    old = RegionTable().replace([wanted(0)]).table
    beyond = wanted(2 * PAGE, offset=4 << 20)
    with pytest.raises(Refused, match="of a file of"):
        old.replace([wanted(0), wanted(PAGE), beyond, wanted(3 * PAGE)])
    with pytest.raises(Refused, match="overlap"):
        old.replace([wanted(0), wanted(0)])
    assert old.regions[0].mapping.alive
    forget(old)


def test_replace_by_nothing_removes_all(wanted: MakeWanted) -> None:
    """An empty table is a table."""
    old = RegionTable().replace([wanted(0)]).table
    change = old.replace([])
    assert change.table == RegionTable()
    assert change.removed == old.regions
    forget(old)


def test_uva_to_gpa_knows_every_byte_of_a_region(wanted: MakeWanted) -> None:
    """First and last byte, and none beside them."""
    table = RegionTable().add(wanted(0x10000, uva=0x70000)).table
    assert table.uva_to_gpa(0x70000) == 0x10000
    assert table.uva_to_gpa(0x70FFF) == 0x10FFF
    for uva in (0x6FFFF, 0x71000, 0):
        with pytest.raises(Refused, match="no memory region holds"):
            table.uva_to_gpa(uva)
    forget(table)


def test_place_is_three_numbers() -> None:
    """Equal if all are."""
    assert Place(gpa=1, size=2, uva=3) == Place(uva=3, size=2, gpa=1)


def test_region_is_found_by_gpa(wanted: MakeWanted) -> None:
    """Every byte of it, and none beside it."""
    table = RegionTable().replace([wanted(0x10000, 2), wanted(0x40000)]).table
    low, high = table.regions
    found = [table.at_gpa(gpa) for gpa in (0xFFFF, 0x10000, 0x11FFF, 0x12000, 0x40000)]
    assert found == [None, low, low, None, high]
    forget(table)
