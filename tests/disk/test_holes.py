import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostblk.disk import holes, kernel
from vhostblk.disk.api import Extent

SIZE = 4 << 20
PIECE = 1 << 16


@pytest.fixture
def full(image: Path) -> Iterator[int]:
    """A file of 4 MiB, every byte stored."""
    image.write_bytes(b"x" * SIZE)
    fd = os.open(image, os.O_RDWR)
    os.fsync(fd)
    yield fd
    os.close(fd)


def test_probing_for_punches_changes_nothing(full: int) -> None:
    """Bytes, size and blocks are the same after the probe, which says yes here."""
    before = os.fstat(full)
    assert holes.can_punch(full, SIZE)
    after = os.fstat(full)
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
    assert os.pread(full, SIZE, 0) == b"x" * SIZE


def test_what_cannot_be_written_cannot_be_punched(image: Path) -> None:
    """A descriptor without the right gets no punches."""
    fd = os.open(image, os.O_RDONLY)
    try:
        assert not holes.can_punch(fd, SIZE)
    finally:
        os.close(fd)


def test_tmpfs_can_punch(tiny_tmpfs: Path) -> None:
    """A punch on tmpfs gives memory back."""
    path = tiny_tmpfs / "x"
    path.write_bytes(b"x" * (PIECE * 4))
    fd = os.open(path, os.O_RDWR)
    try:
        assert holes.can_punch(fd, PIECE * 4)
        holes.discard(fd, 0, PIECE, block_device=False)
        assert os.fstat(fd).st_blocks == 3 * PIECE // 512
    finally:
        os.close(fd)


def test_a_discarded_range_is_a_hole(full: int) -> None:
    """Its blocks are free, it reads as zeroes, and its neighbours stay."""
    before = os.fstat(full).st_blocks
    holes.discard(full, PIECE, PIECE, block_device=False)
    assert before - os.fstat(full).st_blocks == PIECE // 512
    assert os.pread(full, 3 * PIECE, 0) == b"x" * PIECE + bytes(PIECE) + b"x" * PIECE


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes_leave_a_hole_only_where_it_is_welcome(full: int, *, unmap: bool) -> None:
    """With unmap the blocks go, without it they stay; either way zeroes are read."""
    before = os.fstat(full).st_blocks
    if not holes.zero(full, PIECE, PIECE, unmap=unmap):
        pytest.skip("this file system has no FALLOC_FL_ZERO_RANGE: ext4 and xfs have")
    freed = before - os.fstat(full).st_blocks
    assert freed == (PIECE // 512 if unmap else 0)
    assert os.pread(full, 3 * PIECE, 0) == b"x" * PIECE + bytes(PIECE) + b"x" * PIECE


def test_a_file_system_without_the_operation_says_so(
    full: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EOPNOTSUPP of every mode is False, and every mode was tried."""
    modes: list[int] = []

    def unable(fd: int, mode: int, offset: int, length: int) -> None:
        del fd, offset, length
        modes.append(mode)
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(kernel, "fallocate", unable)
    assert not holes.zero(full, 0, PIECE, unmap=True)
    assert modes == [kernel.PUNCH_HOLE | kernel.KEEP_SIZE, kernel.ZERO_RANGE | kernel.KEEP_SIZE]


def test_another_error_is_one(full: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not taken for a missing operation."""

    def no_space(fd: int, mode: int, offset: int, length: int) -> None:
        del fd, mode, offset, length
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(kernel, "fallocate", no_space)
    with pytest.raises(OSError, match="full"):
        holes.zero(full, 0, PIECE, unmap=False)


def test_extents_tell_data_from_holes(image: Path) -> None:
    """Runs come in order, without gaps, cut at the ends of what is asked."""
    fd = os.open(image, os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * PIECE, PIECE)
        os.pwrite(fd, b"x" * PIECE, 3 * PIECE)
        assert list(holes.extents(fd, 0, SIZE)) == [
            Extent(0, PIECE, hole=True),
            Extent(PIECE, PIECE, hole=False),
            Extent(2 * PIECE, PIECE, hole=True),
            Extent(3 * PIECE, PIECE, hole=False),
            Extent(4 * PIECE, SIZE - 4 * PIECE, hole=True),
        ]
        assert list(holes.extents(fd, PIECE + 512, PIECE)) == [
            Extent(PIECE + 512, PIECE - 512, hole=False),
            Extent(2 * PIECE, 512, hole=True),
        ]
        assert list(holes.extents(fd, 8 * PIECE, PIECE)) == [Extent(8 * PIECE, PIECE, hole=True)]
        assert list(holes.extents(fd, 3 * PIECE, PIECE)) == [Extent(3 * PIECE, PIECE, hole=False)]
        assert list(holes.extents(fd, 0, 0)) == []
    finally:
        os.close(fd)


def test_a_device_can_be_discarded(loop_device: Path, image: Path) -> None:
    """BLKDISCARD on a loop device punches its file."""
    fd = os.open(loop_device, os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * (4 * PIECE), 0)
        os.fsync(fd)
        before = image.stat().st_blocks
        holes.discard(fd, PIECE, PIECE, block_device=True)
        assert before - image.stat().st_blocks == PIECE // 512
        assert os.pread(fd, 3 * PIECE, 0) == b"x" * PIECE + bytes(PIECE) + b"x" * PIECE
        assert list(holes.extents(fd, 0, PIECE)) == [Extent(0, PIECE, hole=False)]
    finally:
        os.close(fd)
