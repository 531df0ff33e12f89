import mmap
import os
from pathlib import Path

from vhostblk.guest import GuestMemory, Region, slots_layout
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import PAGE


def test_a_touch_makes_a_page() -> None:
    """Pages appear when they are written or read, one by one, and looking makes none."""
    with GuestMemory([Region(16 * PAGE, 64 * PAGE)]) as memory:
        assert touched_pages(memory) == frozenset()
        memory.write(20 * PAGE + 5, b"x")
        memory.read(30 * PAGE, 1)
        assert touched_pages(memory) == {20 * PAGE, 30 * PAGE}
        assert touched_pages(memory) == {20 * PAGE, 30 * PAGE}


def test_regions_on_one_memfd_and_apart() -> None:
    """The pages of every region are found, at its guest addresses, up to its end."""
    for own in (False, True):
        with GuestMemory(slots_layout(3, 2 * PAGE, gap=PAGE, base=0), own_memfds=own) as memory:
            touched = {0, 4 * PAGE, 6 * PAGE, 7 * PAGE}
            for gpa in touched:
                memory.write(gpa, b"x")
            assert touched_pages(memory) == touched


def test_kernel_copies_and_other_mappings_are_seen(tmp_path: Path) -> None:
    """A touch through another mapping counts, be it by a CPU or inside a system call."""
    with GuestMemory([Region(0, 16 * PAGE)]) as memory:
        fd = memory.mappings[0].fd
        other = mmap.mmap(fd, 16 * PAGE, mmap.MAP_SHARED)
        assert other[3 * PAGE] == 0
        with (tmp_path / "file").open("wb", buffering=0) as file, memoryview(other) as view:
            file.write(view[8 * PAGE : 8 * PAGE + 10])
        assert touched_pages(memory) == {3 * PAGE, 8 * PAGE}
        other.close()


def test_pread_is_no_touch() -> None:
    """Reading the memfd as a file leaves holes; tests may look so at private pages."""
    with GuestMemory([Region(0, 4 * PAGE)]) as memory:
        assert os.pread(memory.mappings[0].fd, 8, PAGE) == bytes(8)
        assert touched_pages(memory) == frozenset()


def test_a_memfd_cut_off_has_no_pages() -> None:
    """Memory that vanished holds nothing."""
    with GuestMemory([Region(0, 4 * PAGE)]) as memory:
        memory.write(0, b"x")
        memory.vanish(0)
        assert touched_pages(memory) == frozenset()
