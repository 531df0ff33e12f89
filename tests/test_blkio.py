"""libblkio, which nobody here wrote, against the whole server; guest and file agree with it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from blkio_client import REQ_FUA, REQ_NO_UNMAP, Blkio
from guest_boot.servers import Disk, vhostblk

from vhostblk.guest.guest import Guest

SIZE = 8 << 20
SECTOR = 512

Serve = Callable[..., AbstractContextManager[Path]]


def pattern(seed: int, length: int) -> bytes:
    """Return bytes that differ for every seed and every sector."""
    block = hashlib.shake_256(seed.to_bytes(8, "little"))
    return block.digest(length)


@pytest.fixture(params=["native", "reference"])
def serve(request: pytest.FixtureRequest, image: Path, tmp_path: Path) -> Serve:
    """Return what serves *image* by one engine, with any options."""

    @contextmanager
    def serving(*options: str, read_only: bool = False, queues: int = 1) -> Iterator[Path]:
        disk = Disk(image, queues=queues, read_only=read_only)
        with vhostblk(disk, tmp_path, "--engine", request.param, *options) as socket:
            yield socket

    return serving


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image with a pattern in every sector."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(0, SIZE))
    return path


def test_blkio_and_guest_and_file_agree(serve: Serve, image: Path) -> None:
    """What libblkio writes is in the file and seen by the fake guest, and the reverse."""
    chunks = {0: 512, 4096: 4096, 1 << 20: 65536, SIZE - (1 << 20): 1 << 20}
    with serve() as socket:
        with Blkio(socket) as blkio:
            for offset, length in chunks.items():
                assert blkio.read(offset, length) == pattern(0, SIZE)[offset : offset + length]
                blkio.write(offset, pattern(offset + 1, length))
            blkio.flush()
        with Guest.connect(socket) as guest:
            for offset, length in chunks.items():
                assert guest.read(offset // SECTOR, length) == pattern(offset + 1, length)
            guest.write(100, pattern(7, 8192))
            guest.flush()
        with Blkio(socket) as blkio:
            assert blkio.read(100 * SECTOR, 8192) == pattern(7, 8192)

    expected = bytearray(pattern(0, SIZE))
    for offset, length in chunks.items():
        expected[offset : offset + length] = pattern(offset + 1, length)
    expected[100 * SECTOR : 100 * SECTOR + 8192] = pattern(7, 8192)
    assert image.read_bytes() == expected


def test_blkio_zeroes_and_discards(serve: Serve, image: Path) -> None:
    """Zeroes read as zeroes with and without UNMAP, a discard leaves a hole, the rest stays."""
    with serve() as socket, Blkio(socket) as blkio:
        blkio.write_zeroes(4096, 8192)
        blkio.write_zeroes(1 << 20, 4096, flags=REQ_NO_UNMAP)
        blkio.discard(2 << 20, 1 << 20)
        blkio.write(0, pattern(3, 512), flags=REQ_FUA)
        assert blkio.read(0, 16384) == (
            pattern(3, 512)
            + pattern(0, SIZE)[512:4096]
            + bytes(8192)
            + pattern(0, SIZE)[12288:16384]
        )
        assert blkio.read(1 << 20, 4096) == bytes(4096)
        assert blkio.read(2 << 20, 1 << 20) == bytes(1 << 20)
    assert image.stat().st_blocks * SECTOR <= SIZE - (1 << 20)
    assert image.read_bytes()[3 << 20 :] == pattern(0, SIZE)[3 << 20 :]


def test_blkio_sees_what_the_device_promises(serve: Serve) -> None:
    """Capacity, queues, segments and alignment are what was asked for and what the disk can."""
    with serve("--block-size", "4096", queues=4) as socket, Blkio(socket) as blkio:
        assert blkio.get_uint64("capacity") == SIZE
        assert blkio.get_int("max-queues") == 4
        assert blkio.get_int("max-segments") == 126
        assert blkio.get_int("request-alignment") == 4096
        assert blkio.get_uint64("max-discard-len") % 4096 == 0
        assert blkio.get_uint64("max-discard-len") >= SIZE
        assert blkio.get_uint64("max-write-zeroes-len") >= SIZE
        assert blkio.get_int("discard-alignment") == 4096
        assert blkio.get_int("max-segment-len") >= 256 << 10
        assert not blkio.get_bool("read-only")


def test_blkio_cannot_write_a_read_only_disk(serve: Serve, image: Path) -> None:
    """A read-only disk says so, reads, and refuses writes; the file does not change."""
    with serve(read_only=True) as socket:
        with pytest.raises(OSError, match="read-only"), Blkio(socket):
            pass
        with Blkio(socket, read_only=True) as blkio:
            assert blkio.get_bool("read-only")
            assert blkio.read(0, 4096) == pattern(0, SIZE)[:4096]
            with pytest.raises(OSError):  # noqa: PT011 - libblkio's own errno
                blkio.write(0, bytes(512))
    assert image.read_bytes() == pattern(0, SIZE)
