"""The dirty log as the front-end reads it."""

import mmap
from collections.abc import Iterator

import pytest

from vhostblk.guest import GuestMemory, Region
from vhostblk.guest.dirty import DirtyLog
from vhostblk.guest.layout import PAGE

HIGH = 1 << 32


@pytest.fixture
def log() -> Iterator[DirtyLog]:
    with GuestMemory([Region(0, 16 * PAGE), Region(HIGH, PAGE)]) as memory:
        made = DirtyLog(memory)
        yield made
        made.close()


def mark(log: DirtyLog, *pages: int) -> None:
    """Do what the device does."""
    with mmap.mmap(log.fd, log.size) as bits:
        for page in pages:
            bits[page // PAGE // 8] |= 1 << page // PAGE % 8


def test_the_size_is_qemus(log: DirtyLog) -> None:
    """Whole words of 64 pages, as far as the last page of RAM; holes count."""
    assert log.size == 8 * ((1 << 20) // 64 + 1)


def test_pages_are_taken_once(log: DirtyLog) -> None:
    """What is marked is told by its GPA, in order, and then not any more."""
    pages = [0, PAGE, 9 * PAGE, 15 * PAGE, HIGH]
    mark(log, *pages)
    assert log.peek() == pages
    assert log.take() == pages
    assert log.take() == []


def test_what_is_marked_meanwhile_stays(log: DirtyLog) -> None:
    """Only the marks that were seen are taken away, in a word that has others."""
    mark(log, 3 * PAGE)
    seen = log.peek()
    mark(log, 4 * PAGE)
    log.clear(seen)
    assert log.take() == [4 * PAGE]


def test_every_bit_of_a_word_can_be_cleared(log: DirtyLog) -> None:
    """Bit 31 too, whose operand is negative to the kernel."""
    pages = [HIGH - PAGE * (1 + i) for i in reversed(range(64))]
    mark(log, *pages)
    log.clear([pages[i] for i in (0, 31, 32, 63)])
    assert log.take() == [page for i, page in enumerate(pages) if i not in {0, 31, 32, 63}]
