import os
from collections.abc import Iterator

import pytest

from vhostblk.memory.mapping import Mapping
from vhostblk.memory.ranges import Range
from vhostblk.memory.regions import Place, RegionTable, Wanted
from vhostblk.memory.space import Access, AddressSpace, Translation
from vhostblk.server.glance import glance
from vhostblk.server.place import Addresses, layout, lies_in

PAGE = 4096
UVA = 1 << 40
GPA = 1 << 32
NUM = 16
BOTH = Access.READ | Access.WRITE
CONTENTS = bytes(range(1, 256)) * 65


def parts_of(where: Addresses, space: AddressSpace) -> list[list[Range]]:
    """Return where the parts of a ring are in the guest."""
    return [lies_in(part, space) for part in layout(NUM, where)]


@pytest.fixture
def table() -> Iterator[RegionTable]:
    """Return four pages at 4 GiB, each byte of which tells where it is."""
    fd = os.memfd_create("guest")
    os.pwrite(fd, CONTENTS[: 4 * PAGE], 0)
    wanted = Wanted(place=Place(gpa=GPA, size=4 * PAGE, uva=UVA), mmap_offset=0, fd=fd)
    made = RegionTable().add(wanted).table
    yield made
    made.regions[0].mapping.release()


def test_glance_has_the_bytes_of_the_ring_and_no_other(
    table: RegionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three reads, each of exactly its part; the GPA is where the descriptors begin."""
    asked = []
    peek = Mapping.peek

    def noting(self: Mapping, offset: int, length: int) -> bytes | None:
        asked.append((offset, length))
        return peek(self, offset, length)

    monkeypatch.setattr(Mapping, "peek", noting)
    where = Addresses(desc=UVA + 0x40, avail=UVA + 0x1002, used=UVA + 0x2004)
    seen = glance(parts_of(where, AddressSpace.build(table)), table)
    assert asked == [(0x40, 16 * NUM), (0x1002, 6 + 2 * NUM), (0x2004, 6 + 8 * NUM)]
    assert seen is not None
    assert seen.gpa == GPA + 0x40
    assert seen.desc == CONTENTS[0x40 : 0x40 + 16 * NUM]
    assert seen.avail == CONTENTS[0x1002 : 0x1002 + 6 + 2 * NUM]
    assert seen.used == CONTENTS[0x2004 : 0x2004 + 6 + 8 * NUM]
    assert seen.whole == seen.desc + seen.avail + seen.used
    assert seen.idx == int.from_bytes(CONTENTS[0x1004:0x1006], "little")
    assert not seen.blank


def test_glance_behind_an_iommu_names_the_gpa(table: RegionTable) -> None:
    """A ring in two pages that lie elsewhere, in another order."""
    both = [
        Translation(iova=0x10000, size=PAGE, uaddr=UVA + 3 * PAGE, access=BOTH),
        Translation(iova=0x11000, size=PAGE, uaddr=UVA, access=BOTH),
    ]
    where = Addresses(desc=0x10F80, avail=0x11100, used=0x11200)
    space = AddressSpace.build(table, both)
    seen = glance(parts_of(where, space), table)
    assert seen is not None
    assert seen.gpa == GPA + 3 * PAGE + 0xF80
    assert seen.desc == CONTENTS[3 * PAGE + 0xF80 : 4 * PAGE] + CONTENTS[:0x80]


def test_glance_misses_what_is_gone(table: RegionTable) -> None:
    """A part that was cut off, is not known, or whose region was taken away; or all of it."""
    where = Addresses(desc=UVA, avail=UVA + PAGE, used=UVA + 2 * PAGE)
    parts = parts_of(where, AddressSpace.build(table))
    assert glance(parts, table) is not None
    assert glance([], table) is None
    assert glance([parts[0], [], parts[2]], table) is None
    assert glance(parts, RegionTable()) is None
    os.ftruncate(table.regions[0].mapping.fileno(), 2 * PAGE + 8)
    assert glance(parts, table) is None
