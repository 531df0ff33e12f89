import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostblk.disk.make import make
from vhostblk.disk.memfd import Memfd
from vhostblk.errors import VhostBlkError

SIZE = 1 << 40  # far more than any test machine has
PAGE = 4096


@pytest.fixture
def disk() -> Iterator[Memfd]:
    """An open disk of 1 TiB."""
    disk = Memfd(SIZE)
    disk.open()
    yield disk
    disk.close()


def used(disk: Memfd) -> int:
    """Return the bytes of memory behind the disk."""
    return os.fstat(disk.native().fd).st_blocks * 512


def fetch(disk: Memfd, offset: int, length: int) -> bytes:
    data = bytearray(length)
    disk.read(offset, [memoryview(data)[: length // 3], memoryview(data)[length // 3 :]])
    return bytes(data)


def test_memory_comes_with_a_write_and_goes_with_a_discard(disk: Memfd) -> None:
    """Reading what was never written costs none; what is given back reads as zeroes."""
    assert fetch(disk, 0, 1 << 20) == bytes(1 << 20)
    assert used(disk) == 0
    disk.write(SIZE - 2 * PAGE, [memoryview(b"a" * PAGE), memoryview(b"b" * PAGE)])
    assert fetch(disk, SIZE - 2 * PAGE, 2 * PAGE) == b"a" * PAGE + b"b" * PAGE
    assert used(disk) == 2 * PAGE
    disk.discard(SIZE - 2 * PAGE, PAGE)
    assert used(disk) == PAGE
    disk.write_zeroes(SIZE - PAGE, PAGE, unmap=False)
    assert used(disk) == PAGE
    disk.write_zeroes(SIZE - PAGE, PAGE, unmap=True)
    assert used(disk) == 0
    assert fetch(disk, SIZE - 2 * PAGE, 2 * PAGE) == bytes(2 * PAGE)
    assert next(disk.block_status(0, SIZE)).hole


def test_another_process_goes_on_with_it(disk: Memfd) -> None:
    """What adopts the descriptor is the same disk, and it outlives the first."""
    disk.write(0, [memoryview(b"x" * 512)])
    other = Memfd(SIZE)
    other.adopt([os.dup(fd) for fd in disk.share()])
    other.open()
    disk.close()
    assert fetch(other, 0, 512) == b"x" * 512
    other.close()


def test_a_disk_of_another_size_is_not_adopted(disk: Memfd) -> None:
    """A size that was changed is told; nothing is guessed."""
    other = Memfd(2 * SIZE)
    with pytest.raises(VhostBlkError, match=f"has {SIZE} bytes, not {2 * SIZE}"):
        other.adopt([os.dup(fd) for fd in disk.share()])
    other.close()


def test_nobody_can_cut_it_off(disk: Memfd) -> None:
    """Its size is sealed: no request can meet the end of it."""
    seals = fcntl.fcntl(disk.native().fd, fcntl.F_GET_SEALS)
    assert seals & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(disk.native().fd, 0)


def test_it_is_made_by_name() -> None:
    """``memfd=on`` makes one; without it memory is private."""
    assert isinstance(make("memory:1M,memfd=on"), Memfd)
    assert not isinstance(make("memory:1M"), Memfd)


def test_more_than_a_file_can_be_is_told() -> None:
    """The kernel's refusal is one line, and no descriptor is left."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(VhostBlkError, match="bytes cannot be had"):
        Memfd(1 << 63).open()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
