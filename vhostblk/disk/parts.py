"""
Read partition tables: GPT and MBR, extended partitions among the latter.

What is read is somebody's data, perhaps a guest's: every number is checked against the disk, chains
end, and what contradicts itself is refused rather than guessed at.
"""

import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from vhostblk.errors import VhostBlkError

Read: TypeAlias = Callable[[int, int], Awaitable[bytes]]
"""Bytes of the disk by offset and length."""

MAX_PARTS = 1024
SECTOR = 512
_GPT_BLOCKS = (512, 4096)
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQ")
_SLOT = struct.Struct("<B3sB3sII")
_SLOTS = 4
_PROTECTIVE = 0xEE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_MAX_ENTRY = 4096
_MIN_HEADER = 92


@dataclass(frozen=True, slots=True)
class Part:
    """
    Where a partition is.

    Args:
        offset: First byte.
        size: Bytes.
    """

    offset: int
    size: int


async def find(read: Read, *, number: int, size: int, block_size: int) -> Part:
    """
    Find a partition.

    Args:
        read: Of the disk.
        number: From 1.
        size: Bytes of the disk.
        block_size: Bytes that what is read is a multiple of.

    Raises:
        VhostBlkError: There is none, or the table is none.
    """
    first = await read(0, max(block_size, SECTOR))
    if first[510:512] != b"\x55\xaa":
        raise VhostBlkError("the disk has no partition table: neither GPT nor MBR")
    slots = _slots(first)
    if any(kind == _PROTECTIVE for kind, _, _ in slots):
        part = await _of_gpt(read, number, size, block_size)
    else:
        part = await _of_mbr(read, slots, number, size, block_size)
    if part is None:
        raise VhostBlkError(f"the disk has no partition {number}")
    if not part.size or part.offset + part.size > size:
        raise VhostBlkError(f"partition {number} does not lie on the disk, which has {size} bytes")
    if (part.offset | part.size) % block_size:
        raise VhostBlkError(f"partition {number} splits a block of {block_size} bytes")
    return part


# ---- GPT: UEFI specification, 5.3 ---------------------------------------------------------------


async def _of_gpt(read: Read, number: int, size: int, block_size: int) -> Part | None:
    for block in _GPT_BLOCKS:
        if block % block_size == 0 and 2 * block <= size:
            raw = await read(block, block)
            if raw.startswith(b"EFI PART"):
                return await _of_header(read, raw, block, number, size)
    raise VhostBlkError("the disk has a protective MBR and no GPT behind it")


async def _of_header(read: Read, raw: bytes, block: int, number: int, size: int) -> Part | None:
    _, _, length, crc, *_, table, count, entry, table_crc = _HEADER.unpack_from(raw)
    if not _MIN_HEADER <= length <= block:
        raise VhostBlkError("the GPT's header has no length that it could have")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc:
        raise VhostBlkError("the GPT's header has another checksum than it says: repair it first")
    room = count * entry
    if entry < _ENTRY.size or entry > _MAX_ENTRY or entry % 8 or count > MAX_PARTS:
        raise VhostBlkError(f"the GPT has {count} entries of {entry} bytes, which no table has")
    if table < 2 or table * block + room > size:  # noqa: PLR2004 - behind MBR and header
        raise VhostBlkError("the GPT's entries do not lie on the disk")
    entries = await read(table * block, -(-room // block) * block)
    if zlib.crc32(entries[:room]) != table_crc:
        raise VhostBlkError("the GPT's entries have another checksum than it says: repair it first")
    if number > count:
        return None
    kind, _, start, last = _ENTRY.unpack_from(entries, (number - 1) * entry)
    if kind == bytes(16):
        return None
    if last < start:
        raise VhostBlkError(f"partition {number} ends before it begins")
    return Part(start * block, (last + 1 - start) * block)


# ---- MBR: counts in blocks of the disk, as the guest's kernel reads it ---------------------------


def _slots(sector: bytes) -> list[tuple[int, int, int]]:
    """Return kind, first sector and sectors of the four entries of a boot record."""
    found = [_SLOT.unpack_from(sector, 446 + 16 * i) for i in range(_SLOTS)]
    return [(kind, start, count) for _, _, kind, _, start, count in found]


async def _of_mbr(
    read: Read, slots: list[tuple[int, int, int]], number: int, size: int, block_size: int
) -> Part | None:
    if number <= _SLOTS:
        kind, start, count = slots[number - 1]
        if not kind or not count:
            return None
        if kind in _EXTENDED:
            raise VhostBlkError(f"partition {number} is an extended one: name one in it, from 5 on")
        return Part(start * block_size, count * block_size)
    extended = next((start for kind, start, count in slots if kind in _EXTENDED and count), None)
    if extended is None:
        return None
    return await _logical(read, extended, number - _SLOTS, size, block_size)


async def _logical(
    read: Read, extended: int, number: int, size: int, block_size: int
) -> Part | None:
    """Follow the records of an extended partition, each of which names the next."""
    at = extended
    for n in range(1, number + 1):
        offset = at * block_size
        if offset + block_size > size:
            raise VhostBlkError("a record of the extended partition does not lie on the disk")
        record = await read(offset, block_size)
        if record[510:512] != b"\x55\xaa":
            raise VhostBlkError("the extended partition has a record that is none")
        (kind, start, count), (_, following, more), *_ = _slots(record)
        if n == number:
            if not kind or not count:
                return None
            return Part((at + start) * block_size, count * block_size)
        if not more or extended + following <= at:  # the last, or a circle
            return None
        at = extended + following
    return None
