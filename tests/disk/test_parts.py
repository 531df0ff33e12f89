"""Partition tables: those of sfdisk, and those of nobody."""

import asyncio
import contextlib
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.disk.parts import Part, find
from vhostblk.errors import VhostBlkError

MIB = 1 << 20
SIZE = 16 * MIB


def table(path: Path, script: str, *command: str) -> bytearray:
    """Have sfdisk, or another *command*, write a table on a disk."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    command = command or ("/sbin/sfdisk", "--quiet", "--no-reread", "--no-tell-kernel")
    subprocess.run([*command, path], input=script, text=True, check=True, capture_output=True)
    return bytearray(path.read_bytes())


def part(disk: bytes | bytearray, number: int, block_size: int = 512) -> Part:
    """Find a partition on a disk in memory."""

    async def read(offset: int, length: int) -> bytes:
        assert offset % block_size == 0
        assert length % block_size == 0
        assert 0 <= offset <= len(disk) - length
        return bytes(disk[offset : offset + length])

    return asyncio.run(find(read, number=number, size=len(disk), block_size=block_size))


GPT = "label: gpt\nstart=2048, size=4096\nstart=8192, size=16384\n"
MBR = (
    "label: dos\nstart=2048, size=4096, type=83\nstart=8192, type=5, size=16384\n"
    "start=10240, size=2048, type=83\nstart=20480, size=4096, type=83\n"
)


def test_partitions_of_a_gpt(tmp_path: Path) -> None:
    """Where sfdisk has put them; a number behind the last is none."""
    disk = table(tmp_path / "disk", GPT)
    assert part(disk, 1) == Part(2048 * 512, 4096 * 512)
    assert part(disk, 2) == Part(8192 * 512, 16384 * 512)
    for number in (3, 128, 129):
        with pytest.raises(VhostBlkError, match=f"no partition {number}"):
            part(disk, number)


def test_partitions_of_a_gpt_of_large_blocks(tmp_path: Path) -> None:
    """A table of blocks of 4096 bytes is found, however large ours are."""
    script = "g\nn\n1\n256\n767\nw\n"
    disk = table(tmp_path / "disk", script, "/sbin/fdisk", "--sector-size", "4096")
    for block_size in (512, 4096):
        assert part(disk, 1, block_size) == Part(256 * 4096, 512 * 4096)


def test_partitions_of_an_mbr(tmp_path: Path) -> None:
    """Those of the table, and those inside the extended one from 5 on."""
    disk = table(tmp_path / "disk", MBR)
    assert part(disk, 1) == Part(2048 * 512, 4096 * 512)
    assert part(disk, 5) == Part(10240 * 512, 2048 * 512)
    assert part(disk, 6) == Part(20480 * 512, 4096 * 512)
    with pytest.raises(VhostBlkError, match="partition 2 is an extended one"):
        part(disk, 2)
    for number in (3, 7, 1000):
        with pytest.raises(VhostBlkError, match=f"no partition {number}"):
            part(disk, number)


def test_partitions_of_an_mbr_of_large_blocks(tmp_path: Path) -> None:
    """A table counts in the disk's blocks, and so do the records inside the extended one."""
    script = "o\nn\np\n1\n256\n767\nn\ne\n2\n1024\n3000\nn\nl\n1536\n2047\nw\n"
    disk = table(tmp_path / "disk", script, "/sbin/fdisk", "--sector-size", "4096")
    assert part(disk, 1, 4096) == Part(256 * 4096, 512 * 4096)
    assert part(disk, 5, 4096) == Part(1536 * 4096, 512 * 4096)


def test_a_disk_without_a_table() -> None:
    """It is said, not guessed at."""
    with pytest.raises(VhostBlkError, match="no partition table"):
        part(bytes(MIB), 1)


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (512 + 24, b"\x07", "another checksum"),
        (1024 + 40, b"\x07", "entries have another checksum"),
        (512, b"\0", "no GPT behind"),
    ],
)
def test_a_damaged_gpt_is_refused(tmp_path: Path, at: int, new: bytes, why: str) -> None:
    """Header and entries have checksums, which are looked at."""
    disk = table(tmp_path / "disk", GPT)
    disk[at : at + 1] = new
    with pytest.raises(VhostBlkError, match=why):
        part(disk, 1)


def test_a_gpt_that_lies_is_refused(tmp_path: Path) -> None:
    """Numbers with a right checksum are no better."""
    disk = table(tmp_path / "disk", GPT)
    for at, value, why in (
        (80, 0xFFFF, "entries of"),
        (84, 0, "entries of"),
        (72, 1 << 60, "do not lie on the disk"),
        (12, 4000, "no length"),
    ):
        bad = bytearray(disk)
        struct.pack_into("<Q" if at == 72 else "<I", bad, 512 + at, value)
        bad[512 + 16 : 512 + 20] = bytes(4)
        bad[512 + 16 : 512 + 20] = struct.pack("<I", zlib.crc32(bad[512 : 512 + 92]))
        with pytest.raises(VhostBlkError, match=why):
            part(bad, 1)


def test_an_extended_partition_that_goes_in_circles(tmp_path: Path) -> None:
    """A record that names itself, or one before it, ends the chain."""
    disk = table(tmp_path / "disk", MBR)
    struct.pack_into("<I", disk, 8192 * 512 + 446 + 16 + 8, 0)
    with pytest.raises(VhostBlkError, match="no partition 900"):
        part(disk, 900)


@given(st.data())
def test_whatever_a_table_says_the_partition_is_on_the_disk(data: st.DataObject) -> None:
    """Of any bytes comes a part of the disk in whole blocks, or a clear error."""
    disk = bytearray(64 * 1024)
    disk[446:510] = data.draw(st.binary(min_size=64, max_size=64))
    disk[510:512] = b"\x55\xaa"
    disk[512:1024] = b"EFI PART" + data.draw(st.binary(min_size=504, max_size=504))
    with contextlib.suppress(VhostBlkError):
        found = part(disk, data.draw(st.integers(1, 8)))
        assert 0 <= found.offset < found.offset + found.size <= len(disk)
        assert (found.offset | found.size) % 512 == 0
