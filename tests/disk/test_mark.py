import os
import re
from pathlib import Path

import pytest

from vhostblk.disk import lock, mark
from vhostblk.disk.call import Calls, marked
from vhostblk.disk.file import File, Locking
from vhostblk.disk.layer import Layer
from vhostblk.disk.memory import Memory

ANY = 0x1234_5678_9ABC_DEF0
LARGEST = (1 << 64) - 1
MAX_OFFSET = (1 << 63) - 1


def locks(image: Path) -> set[tuple[int, int]]:
    """Return the OFD locks of a file, as the kernel lists them."""
    inode = image.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    found = (
        re.search(rf"OFDLCK .* [0-9a-f]+:[0-9a-f]+:{inode} (\d+) (\d+)$", line) for line in lines
    )
    return {(int(one[1]), int(one[2])) for one in found if one is not None}


@pytest.mark.parametrize("number", [0, 1, 100, 201, ANY, mark.SPAN - 1, mark.SPAN, LARGEST])
def test_a_mark_is_one_byte_beyond_any_image(image: Path, number: int) -> None:
    """It meets neither QEMU's bytes nor the end of what an offset can say."""
    fd = os.open(image, os.O_RDONLY)
    mark.put(fd, number)
    ((first, last),) = locks(image)
    assert first == last
    assert max(lock.USED_BASE, lock.DENIED_BASE) + 100 < first < MAX_OFFSET
    mark.take_off(fd, number)
    assert locks(image) == set()
    os.close(fd)


def test_a_mark_is_seen_by_others_only(image: Path) -> None:
    """The open file that has it does not meet itself, nor do its copies; of two each sees one."""
    first, second = (os.open(image, os.O_RDONLY) for _ in range(2))
    mark.put(first, ANY)
    copy = os.dup(first)
    assert not mark.by_others(first, ANY)
    assert not mark.by_others(copy, ANY)
    assert mark.by_others(second, ANY)
    assert not mark.by_others(second, ANY + 1)
    mark.put(second, ANY)
    assert mark.by_others(first, ANY)
    mark.take_off(copy, ANY)
    assert not mark.by_others(second, ANY)
    assert mark.by_others(first, ANY)
    os.close(first)
    os.close(copy)
    os.close(second)


def test_a_mark_lasts_as_long_as_any_copy_of_the_open_file(image: Path) -> None:
    """So the kernel keeps it with its reference, while the I/O of a dead process is under way."""
    first, second = (os.open(image, os.O_RDONLY) for _ in range(2))
    copy = os.dup(first)
    mark.put(first, ANY)
    os.close(first)
    assert mark.by_others(second, ANY)
    os.close(copy)
    assert not mark.by_others(second, ANY)
    os.close(second)


def test_neighbours_do_not_hide_each_other(image: Path) -> None:
    """The kernel joins locks that touch; taking one off leaves the other."""
    first, second = (os.open(image, os.O_RDONLY) for _ in range(2))
    mark.put(first, ANY)
    mark.put(first, ANY + 1)
    assert mark.by_others(second, ANY)
    assert mark.by_others(second, ANY + 1)
    mark.take_off(first, ANY)
    assert not mark.by_others(second, ANY)
    assert mark.by_others(second, ANY + 1)
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("locking", list(Locking))
def test_readers_mark_a_file_whatever_its_lock(image: Path, locking: Locking) -> None:
    """QEMU's locks hide readers from each other, and without locks there are none: marks are."""
    first, second = (File(image, read_only=True, locking=locking) for _ in range(2))
    first.open()
    second.open()
    first.mark(ANY)
    assert second.marked_by_others(ANY)
    assert not first.marked_by_others(ANY)
    first.unmark(ANY)
    assert not second.marked_by_others(ANY)
    first.mark(ANY)
    first.close()
    first.unmark(ANY)
    assert not second.marked_by_others(ANY)
    second.close()


def test_a_mark_goes_with_the_descriptor_that_is_shared(image: Path) -> None:
    """A process that takes over has the same open file: it does not wait for itself."""
    old, new, other = (File(image, read_only=True) for _ in range(3))
    old.open()
    other.open()
    old.mark(ANY)
    new.adopt([os.dup(fd) for fd in old.share()])
    new.open()
    assert not new.marked_by_others(ANY)
    old.close()
    assert other.marked_by_others(ANY)
    new.close()
    assert not other.marked_by_others(ANY)
    other.close()


def test_the_file_goes_on_without_locks(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has none, nothing is marked, seen, or raised."""

    def no_locks(*_: object) -> bytes:
        raise OSError(37, "No locks available")

    file = File(image, locking=Locking.OFF)
    file.open()
    monkeypatch.setattr("fcntl.fcntl", no_locks)
    file.mark(ANY)
    assert not file.marked_by_others(ANY)
    file.unmark(ANY)
    monkeypatch.undo()
    file.close()


def test_only_files_can_be_marked(image: Path) -> None:
    """What is known of other disks is nothing; and nothing that waits is called off."""
    assert marked(File(image)) is not None
    assert marked(Memory(512)) is None
    Calls(Memory(512)).call_off()


def test_a_layer_can_be_marked_where_its_disk_can(image: Path) -> None:
    """
    The marks are those of the disk below, on every Python.

    Source: Python 3.12, What's New: isinstance() with a runtime-checkable protocol looks the
    members up without `__getattr__`, by which a layer has them.
    """
    assert marked(Layer(Memory(512))) is None
    file = File(image)
    layered = marked(Layer(Layer(file)))
    assert layered is not None
    file.open()
    layered.mark(7)
    other = File(image, locking=Locking.OFF)
    other.open()
    assert other.marked_by_others(7)
    layered.unmark(7)
    assert not other.marked_by_others(7)
    other.close()
    file.close()
