"""Files and block devices behind a ring: full, cut short, with odd buffers, past the page cache."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.serving import Serving

from vhostblk.disk.api import FileIo
from vhostblk.disk.file import CacheMode, File
from vhostblk.guest.blk import Framing, Range, Request
from vhostblk.guest.errors import StatusError
from vhostblk.guest.guest import Guest
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
MIB = 1 << 20
X = bytes(range(256)) * 16


@pytest.fixture(params=FileIo)
def io(request: pytest.FixtureRequest) -> FileIo:
    """Return which way requests take, each in turn: what is stored and said is the same."""
    way: FileIo = request.param
    return way


def test_a_full_file_system_fails_the_write_that_found_it(
    io: FileIo, server: Serving, vhost_user_guest: Connect, tiny_tmpfs: Path
) -> None:
    """ENOSPC ends as IOERR; the disk goes on, and writes again when there is room."""
    image = tiny_tmpfs / "disk.img"
    with image.open("wb") as file:
        file.truncate(4 * MIB)  # sparse: four times what there is room for
    guest = vhost_user_guest(server.add(File(image, io=io)))
    guest.write(0, X)
    results = [guest.run(Request.write(n * 2048, X * 128)).status for n in range(1, 4)]
    assert results[-1] == Status.IOERR
    assert guest.read(0, 4096) == X
    guest.discard([Range(2048, 6144)])
    guest.write(2048, X)
    assert guest.read(2048, 4096) == X


def test_a_file_that_was_cut_short_fails_what_lies_behind(
    io: FileIo, server: Serving, vhost_user_guest: Connect, image: Path
) -> None:
    """A read behind the new end is IOERR, not zeroes; in front of it all is well."""
    guest = vhost_user_guest(server.add(File(image, io=io)))
    guest.write(0, X)
    os.truncate(image, 2 * MIB)
    with pytest.raises(StatusError):
        guest.read(3 * MIB // 512, 4096)
    assert guest.read(0, 4096) == X


@pytest.mark.parametrize("skew", [0, 1, 511])
def test_direct_io_takes_any_buffer(
    skew: int, io: FileIo, server: Serving, vhost_user_guest: Connect, direct_image: Path
) -> None:
    """Guest buffers that O_DIRECT would refuse are bounced, short and long ones alike."""
    guest = vhost_user_guest(server.add(File(direct_image, cache=CacheMode.NONE, io=io)))
    block = guest.config().blk_size
    long = os.urandom(600 << 10)  # more than one bounce buffer holds
    framing = Framing(skew=skew)
    guest.write(0, X, framing=framing)
    guest.write(MIB // 512, long, framing=framing)
    cut = Framing(readable=(16, 100, 3000), writable=(700, 5), skew=skew)
    guest.write(2 * MIB // 512, X, framing=cut)
    assert guest.read(0, 4096, framing=framing) == X
    assert guest.read(MIB // 512, len(long), framing=framing) == long
    assert guest.read(2 * MIB // 512, 4096, framing=cut) == X
    guest.flush()
    data = direct_image.read_bytes()
    assert data[:4096] == X
    assert data[MIB : MIB + len(long)] == long
    assert block <= 4096


def test_a_block_device_is_read_written_and_discarded(
    io: FileIo, server: Serving, vhost_user_guest: Connect, loop_device: Path, image: Path
) -> None:
    """BLKDISCARD reaches what lies under the device; the rest is as for a file."""
    guest = vhost_user_guest(server.add(File(loop_device, io=io)))
    guest.write(0, X * 512)
    guest.flush()
    before = image.stat().st_blocks
    guest.discard([Range(0, 2048), Range(2048, 1024)])
    guest.write_zeroes([Range(3072, 8)])
    guest.flush()
    assert image.stat().st_blocks < before
    assert guest.read(0, 3080 * 512) == bytes(3080 * 512)
    assert guest.read(3080, 4096) == (X * 512)[3080 * 512 : 3080 * 512 + 4096]


@pytest.mark.parametrize("cache", CacheMode)
def test_every_cache_mode_stores_the_same(
    cache: CacheMode, io: FileIo, server: Serving, vhost_user_guest: Connect, direct_image: Path
) -> None:
    """Modes differ in when data is stable and who caches it, never in what is stored."""
    guest = vhost_user_guest(server.add(File(direct_image, cache=cache, io=io)))
    assert guest.config().writeback == (cache in {CacheMode.WRITEBACK, CacheMode.NONE})
    guest.write(8, X)
    guest.write_zeroes([Range(16, 8)])
    guest.discard([Range(24, 8)])
    guest.flush()
    assert guest.read(0, 16384) == bytes(4096) + X + bytes(8192)
    assert direct_image.read_bytes()[4096:8192] == X
