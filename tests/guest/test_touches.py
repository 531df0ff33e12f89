"""
Pages that are touched, by whom they are touched.

In one process, so every touch here is made by the kernel for a system call, which lets Python's
other threads run; tests/server/test_touched_pages.py has back-ends of their own.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from auditing import needs_userfaultfd

from vhostblk.guest import GuestError, GuestMemory, Region
from vhostblk.guest.layout import PAGE
from vhostblk.guest.touches import Auditor, Report, Touch

PAGES = 16
BASE = 64 * PAGE
"""GPA of the region."""


class Watched:
    """A mapping of a guest's memory that is reported to an auditor."""

    def __init__(self, directory: Path, memory: GuestMemory, flags: int = mmap.MAP_SHARED) -> None:
        fd = memory.mappings[0].fd
        self.map = mmap.mmap(fd, PAGES * PAGE, flags=flags)
        exported = ctypes.c_char.from_buffer(self.map)
        address = ctypes.addressof(exported)
        del exported
        self.report = Report(directory / "a", fd=fd, address=address, length=PAGES * PAGE, offset=0)

    def read(self, page: int) -> bytes:
        """Have the kernel read 8 bytes."""
        ends = os.pipe()
        try:
            with memoryview(self.map) as view:
                os.write(ends[1], view[page * PAGE : page * PAGE + 8])
            return os.read(ends[0], 8)
        finally:
            for end in ends:
                os.close(end)

    def write(self, page: int) -> None:
        """Have the kernel write 8 bytes."""
        with (
            Path("/proc/self/status").open("rb", buffering=0) as file,
            memoryview(self.map) as view,
        ):
            assert file.readinto(view[page * PAGE : page * PAGE + 8]) == 8


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Make 16 pages, the first of which holds something."""
    needs_userfaultfd()
    with GuestMemory([Region(BASE, PAGES * PAGE)]) as made:
        made.write(BASE, b"in guest")
        yield made


@pytest.fixture
def auditor(tmp_path: Path) -> Iterator[Auditor]:
    """Run an auditor."""
    with Auditor(tmp_path / "a") as running:
        yield running


def at(*pages: int) -> set[int]:
    return {BASE + page * PAGE for page in pages}


def test_reads_and_writes_are_told_apart(
    tmp_path: Path, memory: GuestMemory, auditor: Auditor
) -> None:
    """Of pages that are there and of holes; a page that is read first is written later."""
    watched = Watched(tmp_path, memory)
    assert auditor.mappings == 1
    assert watched.read(0) == b"in guest"
    assert watched.read(3) == bytes(8)
    watched.write(5)
    assert auditor.touched(memory) == at(0, 3, 5)
    assert auditor.written(memory) == at(5)
    watched.write(3)
    assert auditor.written(memory) == at(3, 5)
    assert memory.read(BASE + 3 * PAGE, 4) == b"Name"
    watched.report.close()


def test_the_guests_own_touches_are_not_listed(
    tmp_path: Path, memory: GuestMemory, auditor: Auditor
) -> None:
    """Only the process that reports is watched, and what the guest writes it sees."""
    watched = Watched(tmp_path, memory)
    memory.write(BASE + 7 * PAGE, b"late  in")
    assert auditor.touched(memory) == frozenset()
    assert watched.read(7) == b"late  in"
    watched.report.close()


def test_pages_that_were_brought_are_listed(
    tmp_path: Path, memory: GuestMemory, auditor: Auditor
) -> None:
    """What MAP_POPULATE does before anybody could watch is a touch of every page."""
    watched = Watched(tmp_path, memory, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    assert auditor.touched(memory) == at(*range(PAGES))
    auditor.forget()
    watched.read(2)
    assert auditor.touched(memory) == at(2)
    watched.report.close()


def test_an_auditor_judges_while_the_touch_waits(tmp_path: Path, memory: GuestMemory) -> None:
    """It is told the page and whether it is a write, and what it does not allow is a stray."""
    offsets = []

    def judge(touch: Touch, fd: int) -> bool:
        offsets.append(touch.offset)
        assert os.path.sameopenfile(fd, memory.mappings[0].fd)
        return not touch.write

    with Auditor(tmp_path / "a", judge=judge) as auditor:
        watched = Watched(tmp_path, memory)
        watched.read(1)
        watched.write(2)
        assert offsets == [PAGE, 2 * PAGE]
        assert [(touch.offset, touch.write) for touch in auditor.strays] == [(2 * PAGE, True)]
        watched.report.close()


def test_nobody_waits_for_an_auditor_that_is_gone(tmp_path: Path, memory: GuestMemory) -> None:
    """Its end, or its failure, lets all touches pass, unseen; the failure is raised."""

    def judge(_touch: Touch, _fd: int) -> bool:
        raise ZeroDivisionError

    auditor = Auditor(tmp_path / "a", judge=judge)
    auditor.__enter__()
    watched = Watched(tmp_path, memory)
    assert watched.read(0) == b"in guest"
    with pytest.raises(ZeroDivisionError):
        auditor.__exit__()
    assert watched.read(1) == bytes(8)
    watched.report.close()


def test_a_mapping_that_went_is_not_forgotten_nor_touched(
    tmp_path: Path, memory: GuestMemory, auditor: Auditor
) -> None:
    """What it touched stays known; to begin anew leaves alone what has its addresses now."""
    watched = Watched(tmp_path, memory)
    watched.write(4)
    watched.report.close()
    assert auditor.touched(memory) == at(4)
    auditor.forget()
    assert auditor.touched(memory) == frozenset()
    assert watched.map[4 * PAGE : 4 * PAGE + 4] == b"Name"


def test_without_an_auditor_nothing_is_watched(tmp_path: Path, memory: GuestMemory) -> None:
    """The error says where nobody listens."""
    with pytest.raises(GuestError, match=r"no auditor at .*/a"):
        Watched(tmp_path, memory)
