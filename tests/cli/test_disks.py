from pathlib import Path

import pytest

from vhostblk.cli import disks
from vhostblk.disk.file import File
from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError


def test_make_disk_puts_cache_and_read_only_into_a_file(tmp_path: Path) -> None:
    """What the command was told of the file reaches the file, which opens and locks itself so."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    disk = disks.make_disk(parse(str(image)), cache="writethrough", read_only=True)
    assert isinstance(disk, File)
    disk.open()
    assert (disk.writeback, disk.info().read_only) == (False, True)
    disk.close()


def test_make_disk_serves_any_disk_read_only() -> None:
    """--read-only is the device's for a disk that has no such option itself."""
    assert isinstance(disks.make_disk(parse("memory:1M"), cache=None, read_only=True), Memory)


def test_make_disk_refuses_two_answers_to_one_question() -> None:
    """An option of the command and one of the disk may not differ."""
    spec = parse("file:disk.img,cache=none")
    with pytest.raises(VhostBlkError, match="cache=none here, but cache=writeback elsewhere"):
        disks.make_disk(spec, cache="writeback", read_only=False)


def test_make_disk_refuses_an_option_the_disk_has_not() -> None:
    """--cache says nothing about memory."""
    spec = parse("memory:1M")
    with pytest.raises(VhostBlkError, match="a memory: disk has no host cache"):
        disks.make_disk(spec, cache="none", read_only=False)


def test_make_disk_takes_a_file_of_any_name() -> None:
    """A back-end program is given a path, never a scheme."""
    disk = disks.make_disk(DiskSpec("file", "memory:1M"), cache=None, read_only=False)
    assert isinstance(disk, File)
