import gc
import os
import resource
from itertools import count, islice
from pathlib import Path

import pytest

from vhostblk.guest import GuestError, GuestMemory, Region, pc_layout, slots_layout
from vhostblk.guest.layout import PAGE


def open_fds() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def limit_that_leaves(n: int) -> int:
    """Return the limit under which *n* numbers are free: it is one of numbers, not of files."""
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (number for number in count() if number not in used)
    return next(islice(free, n, None))


@pytest.mark.parametrize("own", [False, True])
def test_write_lands_in_the_memfd(*, own: bool) -> None:
    """What the guest writes is in the file the back-end maps, at the region's offset."""
    with GuestMemory(slots_layout(3, PAGE, gap=PAGE), own_memfds=own) as memory:
        for i, mapping in enumerate(memory.mappings):
            memory.write(mapping.region.gpa + 5, bytes([i]) * 3)
            assert os.pread(mapping.fd, 9, mapping.offset) == b"\0" * 5 + bytes([i]) * 3 + b"\0"
        assert [m.offset for m in memory.mappings] == ([0] * 3 if own else [0, PAGE, 2 * PAGE])
        assert len({m.fd for m in memory.mappings}) == (3 if own else 1)


def test_read_sees_what_the_device_writes() -> None:
    """What another mapping of the file holds is what the guest reads."""
    with GuestMemory([Region(PAGE, PAGE)]) as memory:
        os.pwrite(memory.mappings[0].fd, b"device", 100)
        assert memory.read(PAGE + 100, 6) == b"device"


def test_access_crosses_adjacent_regions() -> None:
    """Regions that touch are one piece of RAM to the guest."""
    with GuestMemory(slots_layout(3, PAGE, base=PAGE), own_memfds=True) as memory:
        data = os.urandom(PAGE + 20)
        memory.write(2 * PAGE - 10, data)
        assert memory.read(2 * PAGE - 10, len(data)) == data
        assert memory.read(3 * PAGE, 10) == data[-10:]


@pytest.mark.parametrize(("gpa", "length"), [(0, 1), (2 * PAGE - 1, 2), (9 * PAGE, 1)])
def test_access_needs_ram(gpa: int, length: int) -> None:
    """Holes are errors, and a write that would reach one writes nothing."""
    with GuestMemory(slots_layout(2, PAGE, gap=PAGE, base=PAGE)) as memory:
        with pytest.raises(GuestError, match="is no RAM"):
            memory.read(gpa, length)
        with pytest.raises(GuestError, match="is no RAM"):
            memory.write(gpa, b"x" * length)
        assert not memory.is_ram(gpa, length)
        assert memory.read(PAGE, PAGE) == bytes(PAGE)


def test_words_are_little_endian() -> None:
    """A 16-bit word is two bytes, the low one first."""
    with GuestMemory([Region(PAGE, PAGE)]) as memory:
        memory.store_u16(PAGE + 6, 0xABCD)
        assert memory.read(PAGE + 5, 4) == b"\0\xcd\xab\0"
        assert memory.load_u16(PAGE + 6) == 0xABCD


def test_uva_is_another_space() -> None:
    """User addresses are far apart, in the other order, and never equal to guest addresses."""
    with GuestMemory(slots_layout(2, PAGE)) as memory:
        low, high = memory.mappings
        assert low.region.end == high.region.gpa
        assert high.uva + PAGE < low.uva
        assert memory.uva(low.region.gpa + 9) == low.uva + 9
        with pytest.raises(GuestError, match="is no RAM"):
            memory.uva(0)


def test_hole_is_no_ram() -> None:
    """A hole is found between regions, or behind the last."""
    with GuestMemory(pc_layout(PAGE, PAGE)) as memory:
        assert memory.hole() == PAGE
        assert memory.hole(1 << 40) == (1 << 32) + PAGE
        assert not memory.is_ram(memory.hole())


@pytest.mark.parametrize(
    "region", [Region(1, PAGE), Region(0, 1), Region(0, 0), Region(-PAGE, PAGE), Region(PAGE, PAGE)]
)
def test_add_region_checks(region: Region) -> None:
    """Regions are whole pages and do not overlap."""
    with GuestMemory([Region(PAGE, 2 * PAGE)]) as memory, pytest.raises(GuestError):
        memory.add_region(region)


def test_regions_come_and_go() -> None:
    """A region that is added can be allocated from; one that is removed leaves no descriptor."""
    before = open_fds()
    with GuestMemory([Region(0, PAGE)]) as memory:
        alone = open_fds()
        memory.add_region(Region(1 << 32, PAGE))
        gpa = memory.allocate(8)
        assert gpa == 1 << 32
        with pytest.raises(GuestError, match="still in use"):
            memory.remove_region(1 << 32)
        memory.free(gpa)
        with pytest.raises(GuestError, match="no region begins"):
            memory.remove_region((1 << 32) + 8)
        memory.remove_region(1 << 32)
        assert not memory.is_ram(1 << 32)
        assert open_fds() == alone
    assert open_fds() == before


def test_vanish_cuts_the_memfd_off() -> None:
    """The back-end's pages are gone; the guest reads zeros and lives, other regions stay."""
    with GuestMemory(slots_layout(2, PAGE), own_memfds=True) as memory:
        low, high = memory.mappings
        memory.write(low.region.gpa, b"x" * 2 * PAGE)
        memory.vanish(low.region.gpa)
        assert os.fstat(low.fd).st_size == 0
        assert memory.read(low.region.gpa, PAGE) == bytes(PAGE)
        memory.write(low.region.gpa, b"goes nowhere")
        assert memory.read(high.region.gpa, PAGE) == b"x" * PAGE


def test_vanish_needs_a_memfd_of_its_own() -> None:
    """A memfd with several regions is not cut off under the others."""
    with (
        GuestMemory(slots_layout(2, PAGE)) as memory,
        pytest.raises(GuestError, match="memfd of its own"),
    ):
        memory.vanish(memory.mappings[0].region.gpa)


def test_failed_construction_leaves_nothing_open() -> None:
    """Overlapping regions are refused without a leak."""
    before = open_fds()
    with pytest.raises(GuestError, match="overlaps"):
        GuestMemory([Region(0, PAGE), Region(0, PAGE)], own_memfds=True)
    assert open_fds() == before


def test_kernel_refusals_are_guest_errors() -> None:
    """Without descriptors there is no memory, an error that says so, and nothing left open."""
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_that_leaves(5), hard))
    try:
        with pytest.raises(GuestError, match=r"guest memory: .*Too many open files"):
            GuestMemory(slots_layout(10, PAGE), own_memfds=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


def test_huge_pages_are_there_or_missed() -> None:
    """With a free huge page the guest has one; without, the error says what could not be had."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    size = int(meminfo["Hugepagesize"].split()[0]) << 10
    if int(meminfo["HugePages_Free"]):
        with GuestMemory([Region(0, size)], hugetlb=True) as memory:
            memory.write(size - 4, b"huge")
            assert os.fstat(memory.mappings[0].fd).st_blksize == size
            assert os.pread(memory.mappings[0].fd, 4, size - 4) == b"huge"
    else:
        with pytest.raises(GuestError, match=f"cannot map {size} bytes of guest memory"):
            GuestMemory([Region(0, size)], hugetlb=True)
