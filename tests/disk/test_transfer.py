import ctypes
import errno
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proc import mapped_at

from vhostblk.disk import transfer

SIZE = 4 << 20


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    """A file of 4 MiB, open for both."""
    fd = os.open(image, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def direct_fd(direct_image: Path) -> Iterator[int]:
    """A file of 4 MiB, open with O_DIRECT."""
    fd = os.open(direct_image, os.O_RDWR | os.O_DIRECT)
    yield fd
    os.close(fd)


@pytest.fixture
def bounce() -> Iterator[transfer.Bounce]:
    """A bounce buffer for 4096-byte blocks, which every smaller one divides."""
    bounce = transfer.Bounce(4096)
    yield bounce
    bounce.close()


def pieces(data: bytearray, cuts: Sequence[int]) -> list[memoryview]:
    """Cut *data* into views at *cuts*; empty views where cuts repeat."""
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [memoryview(data)[a:b] for a, b in pairwise(edges)]


@settings(max_examples=30, deadline=None)
@given(
    blocks=st.integers(1, 6),
    at=st.integers(0, 6),
    cuts=st.lists(st.integers(0, 6 * 4096), max_size=8),
    other=st.lists(st.integers(0, 6 * 4096), max_size=8),
)
@pytest.mark.parametrize("how", ["cached", "direct"])
def test_bytes_come_back_however_they_are_cut(  # noqa: PLR0913, PLR0917 - pytest and hypothesis name them
    request: pytest.FixtureRequest,
    how: str,
    blocks: int,
    at: int,
    cuts: list[int],
    other: list[int],
) -> None:
    """What is written through views of any shape is read through views of any other shape."""
    data = bytearray(os.urandom(blocks * 4096))
    back = bytearray(len(data))
    if how == "cached":
        fd = request.getfixturevalue("fd")
        transfer.write(fd, at * 4096, pieces(data, cuts))
        transfer.read(fd, at * 4096, pieces(back, other))
    else:
        fd, bounce = request.getfixturevalue("direct_fd"), request.getfixturevalue("bounce")
        bounce.write(fd, at * 4096, pieces(data, cuts))
        bounce.read(fd, at * 4096, pieces(back, other))
    assert back == data


def test_more_views_than_the_kernel_takes(fd: int) -> None:
    """3,000 views of one byte to 16 bytes are three calls and nothing is lost at the seams."""
    data = bytearray(os.urandom(1500 * 17))
    cuts = [n * 17 + add for n in range(1500) for add in (0, 1)]
    transfer.write(fd, 100, pieces(data, cuts))
    back = bytearray(len(data))
    transfer.read(fd, 100, pieces(back, cuts))
    assert back == data
    assert os.pread(fd, len(data), 100) == data


def test_a_direct_transfer_larger_than_the_buffer(
    direct_fd: int, bounce: transfer.Bounce, direct_image: Path
) -> None:
    """3 MiB through a buffer of 1 MiB, cut at odd places, land where they belong."""
    data = bytearray(os.urandom(3 << 20))
    bounce.write(direct_fd, 4096, pieces(data, [1, 4095, (1 << 20) + 7]), stable=True)
    assert direct_image.read_bytes()[4096 : 4096 + len(data)] == data
    back = bytearray(len(data))
    bounce.read(direct_fd, 4096, pieces(back, [512, 2 << 20]))
    assert back == data


class Short:
    """``os.preadv`` and ``os.pwritev`` that move at most *most* bytes per call."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls = 0
        self.flags: set[int] = set()

    def cut(self, views: Sequence[memoryview]) -> list[memoryview]:
        self.calls += 1
        left, out = self.most, []
        for view in views:
            out.append(view[: min(left, len(view))])
            left -= len(out[-1])
        return out

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        return PREADV(fd, self.cut(views), offset)

    def pwritev(self, fd: int, views: Sequence[memoryview], offset: int, flags: int) -> int:
        self.flags.add(flags)
        return PWRITEV(fd, self.cut(views), offset, flags)


PREADV: Callable[..., int] = os.preadv
PWRITEV: Callable[..., int] = os.pwritev


@pytest.mark.parametrize("how", ["cached", "direct"])
def test_short_transfers_are_continued(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A kernel that moves less than asked is asked again, from the last whole block if direct."""
    data, back = bytearray(os.urandom(16384)), bytearray(16384)
    short = Short(5000)
    monkeypatch.setattr(os, "preadv", short.preadv)
    monkeypatch.setattr(os, "pwritev", short.pwritev)
    if how == "cached":
        fd = request.getfixturevalue("fd")
        transfer.write(fd, 0, pieces(data, [100, 9000]))
        transfer.read(fd, 0, pieces(back, [7000]))
    else:
        # Not an O_DIRECT file: that would refuse 5000 bytes instead of moving 4096 of them.
        fd, bounce = request.getfixturevalue("fd"), request.getfixturevalue("bounce")
        bounce.write(fd, 0, pieces(data, [100, 9000]))
        bounce.read(fd, 0, pieces(back, [7000]))
    assert back == data
    assert short.calls == 8


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("how", ["cached", "direct"])
def test_a_stable_write_says_so_to_the_kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, how: str, *, stable: bool
) -> None:
    """Every system call of a stable write carries RWF_DSYNC, no other does."""
    short = Short(4096)
    monkeypatch.setattr(os, "pwritev", short.pwritev)
    write = transfer.write if how == "cached" else request.getfixturevalue("bounce").write
    write(request.getfixturevalue("fd"), 0, [memoryview(bytes(8192))], stable=stable)
    assert short.flags == {os.RWF_DSYNC if stable else 0}
    assert short.calls == 2


def test_a_file_cut_short_is_an_error(fd: int, bounce: transfer.Bounce) -> None:
    """Reading past the end of the file is EIO, never made-up bytes."""
    for read in (transfer.read, bounce.read):
        with pytest.raises(OSError, match="ends within the disk") as caught:
            read(fd, SIZE - 4096, [memoryview(bytearray(8192))])
        assert caught.value.errno == errno.EIO


def test_an_error_keeps_no_slice_of_a_view(fd: int, bounce: transfer.Bounce) -> None:
    """While an error is handled the caller can still let go of the memory behind the views."""
    for read in (transfer.read, bounce.read):
        memory = bytearray(8192)
        views = pieces(memory, [100])
        with pytest.raises(OSError, match="ends within"):
            read(fd, SIZE - 4096, views)
        gc.disable()
        try:
            read(fd, SIZE - 4096, views)
        except OSError:
            for view in views:
                view.release()
            memory.clear()  # BufferError, if anything still looked at it
        finally:
            gc.enable()


def test_nothing_is_transferred_for_nothing(fd: int, bounce: transfer.Bounce) -> None:
    """No views, and views of no bytes, are done at once."""
    for views in ([], [memoryview(b"")]):
        transfer.write(fd, 0, views)
        transfer.read(fd, 0, views)
        bounce.write(fd, 0, views)
        bounce.read(fd, 0, views)


def test_bounce_memory_is_neither_dumped_nor_inherited(bounce: transfer.Bounce) -> None:
    """It holds guest data: dd (no core dump), dc (no child)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(bounce._map))
    assert {"dd", "dc"} <= mapped_at(address).flags
    gc.collect()  # the exported buffer


@pytest.mark.parametrize("length", [4096, 1 << 20, (1 << 20) + 4096])
def test_bounce_memory_is_wiped_behind_every_transfer(
    direct_fd: int, bounce: transfer.Bounce, length: int
) -> None:
    """Nothing of a read or a write stays, be it shorter or longer than the buffer, or fail."""
    data = bytearray(b"guest-data-8-by-" * (length // 16))
    bounce.write(direct_fd, 0, [memoryview(data)])
    assert not any(bounce._buffer)
    got = bytearray(length)
    bounce.read(direct_fd, 0, [memoryview(got)])
    assert got == data
    assert not any(bounce._buffer)
    with pytest.raises(OSError, match="ends within"):
        bounce.read(direct_fd, SIZE - 4096, [memoryview(got + bytes(4096))])
    assert not any(bounce._buffer)


def test_a_failed_bounced_read_leaves_the_views_alone(
    direct_fd: int, bounce: transfer.Bounce
) -> None:
    """What an earlier transfer left in the buffer, or part of this one, reaches nobody."""
    bounce.write(direct_fd, SIZE - 4096, [memoryview(b"\x11" * 4096)])
    got = bytearray(b"\x77" * 8192)
    with pytest.raises(OSError, match="ends within"):
        bounce.read(direct_fd, SIZE - 4096, [memoryview(got)])
    assert got == b"\x77" * 8192
