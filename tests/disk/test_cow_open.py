"""Which scratch files a cow opens, and in front of which disks."""

import asyncio
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from layer_kit.disks import SECTOR, Plain
from layer_kit.model import (
    BASE,
    SIZE,
    Request,
    ask,
    compare,
    content,
    opened,
)

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.call import run
from vhostblk.disk.cow import Cow
from vhostblk.errors import VhostBlkError

BLOCK = 4096


def test_what_is_kept_outlives_the_process(tmp_path: Path) -> None:
    """Opened again, with the same disk, it is the same disk; its block size is remembered."""

    async def check() -> None:
        disk, model = Plain(BASE), bytearray(BASE)
        calls = await opened(Cow(disk, scratch=tmp_path / "s", block=BLOCK))
        await compare(calls, model, [Request("write", 3, 20, 9), Request("discard", 100, 50)])
        await run(calls.close)
        cow = Cow(disk, scratch=tmp_path / "s")
        again = await opened(cow)
        assert await content(again) == model
        assert cow.settings()["block"] == BLOCK
        await run(again.close)

    asyncio.run(check())


OTHER = bytes(SIZE - SECTOR) + b"x" * SECTOR


@pytest.mark.parametrize(
    ("other", "block", "why"),
    [
        (OTHER, 0, "made for another disk, or the disk below was changed"),
        (BASE[:-SECTOR], 0, f"made for a disk of {SIZE} bytes, and the one below has"),
        (BASE, 2 * BLOCK, f"it was made with block={BLOCK}"),
    ],
    ids=["content", "size", "block"],
)
def test_a_scratch_file_of_another_disk_is_refused(
    tmp_path: Path, other: bytes, block: int, why: str
) -> None:
    """It is known by its size and by samples of what is below; nothing of it is changed."""

    async def check() -> None:
        calls = await opened(Cow(Plain(BASE), scratch=tmp_path / "s", block=BLOCK))
        await ask(calls, Request("write", 0, 9, 1))
        await run(calls.close)
        before = (tmp_path / "s").read_bytes()
        with pytest.raises(VhostBlkError, match=why):
            await opened(Cow(Plain(other), scratch=tmp_path / "s", block=block))
        assert (tmp_path / "s").read_bytes() == before

    asyncio.run(check())


def test_a_file_that_is_no_scratch_file_is_left_alone(tmp_path: Path) -> None:
    """A wrong name must not cost an image."""
    path = tmp_path / "image"
    path.write_bytes(BASE)
    with pytest.raises(VhostBlkError, match="is no scratch file, and is left as it is"):
        asyncio.run(opened(Cow(Plain(BASE), scratch=path)))
    assert path.read_bytes() == BASE
    with pytest.raises(VhostBlkError, match="no regular file"):
        asyncio.run(opened(Cow(Plain(BASE), scratch="/dev/null")))


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    """One flipped bit of it is seen; so is another version."""
    path = tmp_path / "s"

    async def check() -> None:
        await run((await opened(Cow(Plain(BASE), scratch=path))).close)
        good = path.read_bytes()
        for at, why in ((33, "header of this scratch file is damaged"), (8, "damaged")):
            text = bytearray(good)
            text[at] ^= 1
            path.write_bytes(text)
            with pytest.raises(VhostBlkError, match=why):
                await opened(Cow(Plain(BASE), scratch=path))
        text = bytearray(good)
        text[8] = 2
        text[320:324] = zlib.crc32(text[:320]).to_bytes(4, "little")
        path.write_bytes(text)
        with pytest.raises(VhostBlkError, match="of version 2, and this program knows 1"):
            await opened(Cow(Plain(BASE), scratch=path))

    asyncio.run(check())


def test_a_scratch_file_has_one_user(tmp_path: Path) -> None:
    """Two disks that write to one would destroy both."""

    async def check() -> None:
        calls = await opened(Cow(Plain(BASE), scratch=tmp_path / "s"))
        with pytest.raises(VhostBlkError, match="in use: another disk or process"):
            await opened(Cow(Plain(BASE), scratch=tmp_path / "s"))
        await run(calls.close)
        await run((await opened(Cow(Plain(BASE), scratch=tmp_path / "s"))).close)

    asyncio.run(check())


def test_a_block_of_the_disk_below_fits_in(tmp_path: Path) -> None:
    """Blocks that are less than what the disk below moves cannot be."""

    class Large(Plain):
        def info(self) -> DiskInfo:
            return replace(super().info(), block_size=8192)

    with pytest.raises(VhostBlkError, match="write block=8192 or more"):
        asyncio.run(opened(Cow(Large(bytes(1 << 20)), scratch=tmp_path / "s", block=4096)))
