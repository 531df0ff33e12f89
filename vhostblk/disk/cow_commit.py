"""
How what a cow keeps becomes the disk below, while requests go on.

The order is such that it can end anywhere: the scratch file is stable first; then the disk below
is written, and flushed; only then is anything forgotten.  Until that, everything is read from the
scratch file, so that a part that is below already makes no difference.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vhostblk.disk.call import run
from vhostblk.disk.cow_header import State
from vhostblk.disk.cow_map import Blocks
from vhostblk.disk.cow_open import samples
from vhostblk.disk.layer import Value
from vhostblk.disk.ranges import joined, without
from vhostblk.errors import VhostBlkError

if TYPE_CHECKING:
    from vhostblk.disk.cow import Cow

_CHUNK = 1 << 20
"""Bytes that are copied at once; other requests come in between."""


@dataclass(slots=True)
class Commit:
    """
    One that is under way.

    Args:
        block: Bytes of a block.
        again: Blocks that were written behind their copy, so that they stay; both in blocks.
    """

    block: int
    again: set[int] = field(default_factory=set)

    def written(self, offset: int, end: int) -> None:
        """Heed that bytes were written."""
        self.again.update(range(offset // self.block, -(-end // self.block)))

    def copied(self, first: int, end: int) -> None:
        """Heed that blocks are copied as they are now."""
        self.again.difference_update(range(first, end))


async def commit(cow: "Cow") -> Mapping[str, Value]:
    """Do it; see `vhostblk.disk.cow.Cow.commit`."""
    cow.refuse_while_committing("another commit")
    _check(cow)
    cow.committing = Commit(cow.scratch.block)
    try:
        return await _commit(cow, cow.committing)
    except OSError as error:
        raise VhostBlkError(
            f"cow: the commit has ended in the middle: {error.strerror or error}: nothing is lost, "
            "as everything is still kept: commit again when that is mended"
        ) from error
    finally:
        cow.committing = None


def _check(cow: "Cow") -> None:
    header, info, can = cow.scratch.header, cow.under.info(), cow.under.abilities()
    if not can.write:
        raise VhostBlkError("cow: the disk below is read-only: nothing can be committed to it")
    if header.size != info.size and not can.resize:
        raise VhostBlkError(
            f"cow: the disk below has {info.size} bytes and cannot have the {header.size} it has "
            "here: resize it back first"
        )


async def _commit(cow: "Cow", under_way: Commit) -> Mapping[str, Value]:
    scratch = cow.scratch
    scratch.flush()
    scratch.set_header(replace(scratch.header, state=State.COMMITTING))
    header, below = scratch.header, cow.under.info().size
    if header.size != below:
        await run(cow.under.resize, header.size)
    held = list(scratch.map.held())
    await _zero_behind(cow, held, min(below, header.size))
    copied = 0
    for first, end in _chunks(held, scratch.block):
        under_way.copied(first, end)
        copied += await _copy(cow, first * scratch.block, min(end * scratch.block, header.size))
        await asyncio.sleep(0)
    await run(cow.under.flush)
    # From here on the disk below is the one that is known, also where this ends before the next.
    seen = await samples(cow.under)
    scratch.set_header(
        replace(scratch.header, samples=seen, base_size=header.size, visible=header.size)
    )
    again = joined((block, block + 1) for block in under_way.again)
    cow.epoch += 1
    scratch.drop(without(held, again))
    scratch.set_header(replace(scratch.header, state=State.IDLE))
    return {"bytes": copied, "kept": scratch.map.count() * scratch.block}


async def _zero_behind(cow: "Cow", held: list[Blocks], end: int) -> None:
    """Clear what is not seen of the disk below, though it would have it."""
    block, start = cow.scratch.block, cow.scratch.header.visible
    kept = [(first * block, behind * block) for first, behind in held]
    for offset, behind in without([(start, end)] if start < end else [], kept):
        await _zero(cow, offset, behind)


async def _copy(cow: "Cow", offset: int, end: int) -> int:
    """Copy what is here, in one group, as it is at the beginning; return how many bytes."""
    scratch = cow.scratch
    pieces: list[tuple[int, int, bytes | None]] = []
    for extent in scratch.extents(offset, end - offset):
        data = None if extent.hole else bytearray(extent.length)
        if data is not None:
            scratch.read(extent.offset, [memoryview(data)])
        pieces.append((extent.offset, extent.length, None if data is None else bytes(data)))
    for at, length, piece in pieces:
        if piece is None:
            await _zero(cow, at, at + length)
        else:
            await run(cow.under.write, at, [memoryview(piece)])
    return end - offset


async def _zero(cow: "Cow", offset: int, end: int) -> None:
    """Make a range below zeroes, with holes if it can have some."""
    info, can = cow.under.info(), cow.under.abilities()
    longest = min(info.max_write_zeroes or _CHUNK, 1 << 30) if can.write_zeroes else _CHUNK
    for at in range(offset, end, longest):
        length = min(longest, end - at)
        if can.write_zeroes:
            await run(cow.under.write_zeroes, at, length, unmap=True)
        else:
            await run(cow.under.write, at, [memoryview(bytes(length))])
        await asyncio.sleep(0)


def _chunks(held: list[Blocks], block: int) -> Iterator[Blocks]:
    """Take runs apart; none crosses a group, as `Map.held` gives none that does."""
    step = max(_CHUNK // block, 1)
    for first, end in held:
        for at in range(first, end, step):
            yield at, min(at + step, end)
