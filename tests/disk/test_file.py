import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostblk.disk import holes
from vhostblk.disk.api import Extent, FileIo, NativeFile
from vhostblk.disk.call import Calls, starts_writeback
from vhostblk.disk.file import CacheMode, File, Locking
from vhostblk.errors import VhostBlkError

SIZE = 4 << 20
PIECE = 1 << 16


@contextmanager
def serving(disk: File) -> Iterator[File]:
    """Have a disk open."""
    disk.open()
    try:
        yield disk
    finally:
        disk.close()


def fetch(disk: File, offset: int, length: int) -> bytes:
    """Read through two views of odd lengths."""
    data = bytearray(length)
    with memoryview(data) as whole:
        disk.read(offset, [whole[: length // 3], whole[length // 3 :]])
    return bytes(data)


@pytest.mark.parametrize("cache", CacheMode)
def test_bytes_reach_the_file_in_every_cache_mode(direct_image: Path, cache: CacheMode) -> None:
    """What is written and flushed is in the file, and reads back, whatever the mode."""
    data = os.urandom(8192)
    with serving(File(direct_image, cache=cache)) as disk:
        with memoryview(data) as view:
            disk.write(4096, [view[:1000], view[1000:]])
            disk.write(65536, [view], fua=True)
        disk.flush()
        assert fetch(disk, 4096, 8192) == data
    stored = direct_image.read_bytes()
    assert stored[4096:12288] == data
    assert stored[65536:73728] == data
    assert len(stored) == SIZE


@pytest.mark.parametrize(
    ("cache", "direct", "writeback"),
    [
        ("writeback", False, True),
        ("none", True, True),
        ("writethrough", False, False),
        ("directsync", True, False),
    ],
)
def test_cache_modes_mean_what_they_mean_to_qemu(
    direct_image: Path, cache: str, *, direct: bool, writeback: bool
) -> None:
    """O_DIRECT for none and directsync; the write cache starts off for the two that say so."""
    with serving(File(direct_image, cache=CacheMode(cache))) as disk:
        native = disk.native()
        assert native.direct == direct
        assert starts_writeback(disk) == writeback
        # The driver may switch the cache on, and a flush does something then.
        assert Calls(disk).info().volatile


def test_the_core_gets_what_it_needs(image: Path) -> None:
    """`native` names the open file and what its transfers need."""
    with serving(File(image)) as disk:
        native = disk.native()
        assert native == NativeFile(fd=native.fd)
        assert os.fstat(native.fd).st_ino == image.stat().st_ino


@pytest.mark.parametrize("io", FileIo)
def test_the_core_is_told_which_way_to_take(image: Path, io: FileIo) -> None:
    """What ``io=`` says is passed on; it is no concern of Python's."""
    with serving(File(image, io=io)) as disk:
        assert disk.native().io is io


def test_a_file_can_everything(image: Path) -> None:
    """All abilities of the contract, where the file system has them."""
    with serving(File(image)) as disk:
        can = Calls(disk).abilities()
        assert can.write
        assert can.flush
        assert can.discard
        assert can.write_zeroes
        assert can.fua
        assert can.block_status


@pytest.mark.parametrize("how", ["off", "unable"])
def test_discard_is_not_offered_where_it_is_not(
    image: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Neither with discard=off nor where the file system cannot punch; then zeroes stay data."""
    if how == "unable":
        monkeypatch.setattr(holes, "can_punch", lambda _fd, _size: False)
    with serving(File(image, discard=how != "off")) as disk:
        info = Calls(disk).info()
        assert (info.max_discard, info.may_unmap) == (0, False)
        assert not Calls(disk).abilities().discard


def test_discard_off_makes_no_holes_of_zeroes(image: Path) -> None:
    """With discard=off the blocks stay, even if the driver would welcome a hole."""
    image.write_bytes(b"x" * SIZE)
    with serving(File(image, discard=False)) as disk:
        disk.flush()
        before = image.stat().st_blocks
        disk.write_zeroes(0, PIECE, unmap=True)
        disk.flush()
        assert image.stat().st_blocks >= before
        assert fetch(disk, 0, 2 * PIECE) == bytes(PIECE) + b"x" * PIECE


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_zeroes_are_written_where_nothing_else_makes_them(
    direct_image: Path, monkeypatch: pytest.MonkeyPatch, cache: CacheMode
) -> None:
    """A file system without ZERO_RANGE gets zeroes written, over more than one chunk."""
    direct_image.write_bytes(b"x" * SIZE)
    monkeypatch.setattr(holes, "zero", lambda *_args, **_kwargs: False)
    with serving(File(direct_image, cache=cache)) as disk:
        disk.write_zeroes(4096, (2 << 20) + 4096, unmap=True)
    end = 4096 + (2 << 20) + 4096
    assert direct_image.read_bytes() == b"x" * 4096 + bytes(end - 4096) + b"x" * (SIZE - end)


def test_a_discard_frees_blocks(image: Path) -> None:
    """Discarding and zeroing with unmap both give blocks back; reading makes none."""
    image.write_bytes(b"x" * SIZE)
    with serving(File(image)) as disk:
        disk.flush()
        before = image.stat().st_blocks
        disk.discard(0, PIECE)
        disk.write_zeroes(2 * PIECE, PIECE, unmap=True)
        assert before - image.stat().st_blocks == 2 * PIECE // 512
        assert fetch(disk, 0, 2 * PIECE) == bytes(PIECE) + b"x" * PIECE
        assert list(disk.block_status(0, 2 * PIECE)) == [
            Extent(0, PIECE, hole=True),
            Extent(PIECE, PIECE, hole=False),
        ]


def test_a_sparse_file_stays_sparse(image: Path) -> None:
    """Opening, measuring, probing and reading store nothing."""
    with serving(File(image)) as disk:
        fetch(disk, 0, SIZE)
        disk.flush()
    assert image.stat().st_blocks == 0
    assert image.stat().st_size == SIZE


def test_a_full_file_system_is_enospc(tiny_tmpfs: Path) -> None:
    """The request fails with ENOSPC and the disk goes on being served."""
    path = tiny_tmpfs / "x"
    with path.open("wb") as file:
        file.truncate(SIZE)
    with serving(File(path)) as disk:
        block = memoryview(b"x" * PIECE)
        disk.write(0, [block])
        with pytest.raises(OSError, match="No space") as caught:
            disk.write(2 * PIECE, [memoryview(bytes(1 << 20))])
        assert caught.value.errno == errno.ENOSPC
        assert fetch(disk, 0, PIECE) == bytes(block)
        disk.discard(2 * PIECE, SIZE - 2 * PIECE)
        disk.write(PIECE, [block])
        assert fetch(disk, PIECE, PIECE) == bytes(block)


def test_tmpfs_has_its_zeroes_written(tiny_tmpfs: Path) -> None:
    """A tmpfs has no ZERO_RANGE: without unmap zeroes are written and stay allocated."""
    path = tiny_tmpfs / "x"
    path.write_bytes(b"x" * (4 * PIECE))
    with serving(File(path)) as disk:
        disk.write_zeroes(0, PIECE, unmap=False)
        assert path.stat().st_blocks == 4 * PIECE // 512
        disk.write_zeroes(PIECE, PIECE, unmap=True)
        assert path.stat().st_blocks == 3 * PIECE // 512
        assert fetch(disk, 0, 3 * PIECE) == bytes(2 * PIECE) + b"x" * PIECE


def test_a_read_only_disk_never_writes(image: Path) -> None:
    """It is opened for reading: even a write that slips through ends in an error."""
    image.chmod(0o444)
    with serving(File(image, read_only=True)) as disk:
        assert Calls(disk).info().read_only
        assert not Calls(disk).abilities().write
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.write(0, [memoryview(bytes(512))])
        disk.flush()
        assert fetch(disk, 0, 512) == bytes(512)


def test_a_file_cut_short_under_the_disk_is_eio(image: Path) -> None:
    """Truncation by somebody else fails requests behind the new end, and only those."""
    with serving(File(image)) as disk:
        os.truncate(image, PIECE)
        assert fetch(disk, 0, PIECE) == bytes(PIECE)
        with pytest.raises(OSError, match="ends within the disk") as caught:
            fetch(disk, 0, 2 * PIECE)
        assert caught.value.errno == errno.EIO


def test_an_open_disk_is_locked_until_it_is_closed(image: Path) -> None:
    """A second disk on the image is refused, and welcome once the first has closed."""
    with (
        serving(File(image)),
        pytest.raises(VhostBlkError, match="in use: this process itself"),
        serving(File(image)),
    ):
        pass
    with serving(File(image)):
        pass
    with serving(File(image, read_only=True)), serving(File(image, read_only=True)):
        pass


def test_locking_off_takes_the_risk(image: Path) -> None:
    """Whoever says so gets no lock, and is not stopped by others'."""
    with serving(File(image)), serving(File(image, locking=Locking.OFF)):
        pass


def test_without_locks_auto_warns_and_on_refuses(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system that cannot lock is served with a warning, unless a lock was asked for."""

    def no_locks(*_args: object) -> bytes:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with serving(File(image)):
        assert "its file system cannot lock" in caplog.text
    with (
        pytest.raises(VhostBlkError, match="cannot lock"),
        serving(File(image, locking=Locking.ON)),
    ):
        pass


def test_a_container_format_is_served_raw_with_a_warning(
    image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The format is noticed, named, and not acted on: the guest sees every byte of the file."""
    with image.open("r+b") as file:
        file.write(b"QFI\xfb\0\0\0\3")
    with caplog.at_level(logging.WARNING), serving(File(image)) as disk:
        assert "begins like a qcow2 image and is served raw" in caplog.text
        assert fetch(disk, 0, 512).startswith(b"QFI\xfb")
        assert Calls(disk).info().size == SIZE


def test_a_failed_open_leaves_nothing_behind(image: Path) -> None:
    """No descriptor and no lock survive an image that cannot be served."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are what is compared
    os.truncate(image, 1000)
    for _ in range(3):
        with pytest.raises(VhostBlkError, match="not a multiple"):
            File(image).open()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    os.truncate(image, 1024)
    with serving(File(image)):
        pass


def test_closing_twice_is_closing_once(image: Path) -> None:
    """`close` may be called on a disk that is not open."""
    disk = File(image)
    disk.close()
    disk.open()
    disk.close()
    disk.close()


@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_a_block_device_is_served(loop_device: Path, image: Path, cache: CacheMode) -> None:
    """A block device reads, writes, discards and zeroes; its backing file is the witness."""
    data = os.urandom(PIECE)
    with serving(File(loop_device, cache=cache)) as disk:
        assert disk.native().block_device
        assert Calls(disk).abilities().discard
        with memoryview(data) as view:
            for at in range(0, 6 * PIECE, PIECE):
                disk.write(at, [view[:513], view[513:]], fua=True)
        before = image.stat().st_blocks
        disk.discard(PIECE, PIECE)
        disk.write_zeroes(2 * PIECE, PIECE, unmap=True)
        disk.write_zeroes(3 * PIECE, PIECE, unmap=False)
        disk.flush()
        assert before - image.stat().st_blocks >= 2 * PIECE // 512
        assert fetch(disk, 0, 6 * PIECE) == data + bytes(3 * PIECE) + 2 * data
    assert image.read_bytes()[: 6 * PIECE] == data + bytes(3 * PIECE) + 2 * data


def test_a_block_device_is_locked_too(loop_device: Path) -> None:
    """The lock lies on the device node, as QEMU's does."""
    with serving(File(loop_device)), pytest.raises(VhostBlkError, match="in use"):
        File(loop_device).open()
