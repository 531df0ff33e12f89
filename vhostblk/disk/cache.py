"""
A layer that keeps in memory what was read and written last.

With ``writethrough`` every write goes to the disk below before it completes, and what is here is
never more than that has.  With ``writeback`` a write completes when it is here, and the disk below
gets it at a flush, or where its room is needed: a dirty block stays until it is there, whatever
fails meanwhile.

Requests that overlap take their turns; a block is written back in a turn of its own.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.cache_blocks import Blocks, runs
from vhostblk.disk.call import Pending, run, starts_writeback
from vhostblk.disk.given import check_number
from vhostblk.disk.grammar import parse_size
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.numbers import MAX_NUMBER
from vhostblk.disk.ranges import joined
from vhostblk.disk.steps import Cursor, Steps, Turns, walk
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

OPTIONS = frozenset({"mode", "size", "block"})
FORM = "cache[:mode=writethrough|writeback][,size=SIZE][,block=SIZE]"

SIZE = 64 << 20
BLOCK = 4096
_LARGEST = 1 << 20
_CHUNK = 1 << 20
"""Bytes that are written back at once."""
_LOOK = 64
"""Among how many of the oldest blocks one is looked for that nobody uses."""


class Mode(StrEnum):
    """When the disk below gets a write."""

    WRITETHROUGH = "writethrough"
    WRITEBACK = "writeback"


class Cache(Layer):
    """
    Keeps blocks of *below* in memory.

    Args:
        below: Any disk.
        mode: When that gets a write.
        size: Bytes to keep at most; more where all of it is in use.
        block: Bytes that are kept as a whole, a power of two from 512 to 1 MiB; less than a block
            of the disk below is as much as one.

    Raises:
        VhostBlkError: No such mode, size or block.
    """

    name = "cache"
    commands = ("flush", "drop")
    counts = ("_hits", "_misses")

    def __init__(
        self, below: object, *, mode: str = Mode.WRITETHROUGH, size: int = SIZE, block: int = BLOCK
    ) -> None:
        super().__init__(below)
        self._mode = _mode(mode)
        self._caches = self._mode is Mode.WRITEBACK
        self._size = _size(size)
        check_number(block, "cache: block", least=-MAX_NUMBER)
        if block & (block - 1) or not 512 <= block <= _LARGEST:  # noqa: PLR2004 - a sector
            raise VhostBlkError(f"cache: block={block}: write a power of two from 512 to 1M")
        self._blocks = Blocks(block)
        self._turns = Turns()
        self._hits = 0
        self._misses = 0
        self._writable = False

    @property
    def writeback(self) -> bool:
        """A device starts with its write cache switched on where there is one."""
        return self._caches or starts_writeback(self.below)

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what it is set to, what it holds, and how often that was of use."""
        return {
            "mode": self._mode.value,
            "size": self._size,
            "block": self._blocks.block,
            "held": self._blocks.held,
            "dirty": self._blocks.dirty_bytes,
            "hits": self._hits,
            "misses": self._misses,
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set its size; what is too much goes with the next requests."""
        for key in values:
            if key != "size":
                super().change({key: ""})
        if "size" in values:
            self._size = _size(parse_size(values["size"], "size"))

    def drop(self) -> Mapping[str, Value]:
        """Forget all that is neither dirty nor in use."""
        return {"bytes": self._blocks.drop_clean(lambda one: self._turns.is_free(one, one + 1))}

    # ---- the disk ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the disk below; begin with nothing."""
        await super().open()
        info = self.under.info()
        self._blocks = Blocks(max(self._blocks.block, info.block_size), info.size)
        self._writable = self.under.abilities().write

    async def close(self) -> None:
        """Write back what is dirty, and close the disk below whether that could be done or not."""
        try:
            if self._blocks.dirty_bytes:
                await run(self.flush)
        except Exception:
            log.exception(
                "cache: %d bytes that were written are lost: the disk below does not take them",
                self._blocks.dirty_bytes,
            )
            raise
        finally:
            await super().close()

    def info(self) -> DiskInfo:
        """Return what the disk below is; volatile where it has not got all."""
        info = super().info()
        self._blocks.resize(info.size)  # somebody may have changed it
        return replace(info, volatile=info.volatile or (self._caches and not info.read_only))

    async def lock(self) -> None:
        """Lock the disk below, and forget what others may have changed since."""
        await run(self.under.lock)
        self._blocks.drop_clean()

    async def unlock(self) -> None:
        """
        Give the disk below all that it has not got, and leave it to others.

        Raises:
            OSError: It does not take that; it stays locked.
        """
        if self._blocks.dirty_bytes:
            await run(self.flush)
        self._blocks.drop_clean()
        await run(self.under.unlock)

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Read what is here, and the rest below."""
        return walk(self._read(offset, views))

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Keep it, below or here; with *fua* below, stable."""
        data = memoryview(b"".join(views))  # what a guest cannot change
        if self._caches and self._writable:
            return walk(self._write_back(offset, data, fua=fua))
        return walk(self._write_through(offset, data, fua=fua))

    def flush(self) -> Pending:
        """
        Write back all that was dirty when this began, and flush the disk below.

        Raises:
            OSError: It does not take all of it; that stays dirty, for the next flush.
        """
        if not self._blocks.dirty_bytes:
            return self.under.flush()
        return walk(self._flush())

    def discard(self, offset: int, length: int) -> Pending:
        """Discard below, and forget it here."""
        return walk(self._drop(offset, length, None))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Make zeroes below, and forget it here."""
        return walk(self._drop(offset, length, unmap))

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is stored below, or is going to be."""
        block, end = self._blocks.block, offset + length
        numbers = self._blocks.dirty(offset // block, -(-end // block))
        dirty = joined((number * block, (number + 1) * block) for number in numbers)
        for start, stop in dirty:
            if start > offset:
                yield from self.under.block_status(offset, start - offset)
            offset, last = max(offset, start), min(stop, end)
            yield Extent(offset, last - offset, hole=False)
            offset = last
        if offset < end:
            yield from self.under.block_status(offset, end - offset)

    def resize(self, size: int) -> Pending:
        """Have another size; what is cut off is forgotten."""
        return walk(self._resize(size))

    # ---- steps ------------------------------------------------------------------------------

    def _read(self, offset: int, views: Sequence[memoryview]) -> Steps:
        end = offset + sum(map(len, views))
        first, last = self._blocks.covering(offset, end - offset)
        turn = self._turns.ask(first, last, alone=False)
        rest = Cursor(views)
        try:
            yield self._turns.wait(turn)
            yield from self._lengthen(first, last)
            number = first
            while number < last:
                stop = number + 1
                if self._blocks.has(number):
                    self._hits += 1
                else:
                    while stop < last and not self._blocks.has(stop):
                        stop += 1
                    self._misses += stop - number
                    yield from self._fill(number, stop)
                for one in range(number, stop):
                    offset = self._blocks.copy_out(one, offset, end, rest)
                number = stop
        finally:
            self._turns.end(turn)
        yield from self._shrink(strict=False)

    def _fill(self, first: int, last: int) -> Steps:
        """Read blocks, none of which is here."""
        block = self._blocks.block
        start = first * block
        data = bytearray(min(last * block, self._blocks.end) - start)
        yield self.under.read(start, [memoryview(data)])
        for number in range(first, last):
            at = (number - first) * block
            if not self._blocks.has(number):  # another reader may have been here, too
                self._blocks.put(number, data[at : at + block])

    def _write_through(self, offset: int, data: memoryview, *, fua: bool) -> Steps:
        first, last = self._blocks.covering(offset, len(data))
        turn = self._turns.ask(first, last, alone=True)
        done = False
        try:
            yield self._turns.wait(turn)
            yield self.under.write(offset, [data], fua=fua)
            done = True
            self._blocks.put_bytes(offset, data, partly=False)
        finally:
            if not done:  # nobody knows what is there now
                for number in self._blocks.within(first, last):
                    self._blocks.drop(number)
            self._turns.end(turn)
        yield from self._shrink(strict=False)

    def _write_back(self, offset: int, data: memoryview, *, fua: bool) -> Steps:
        if self._blocks.held > self._size:
            yield from self._shrink(strict=True)
        first, last = self._blocks.covering(offset, len(data))
        turn = self._turns.ask(first, last, alone=True)
        try:
            yield self._turns.wait(turn)
            yield from self._lengthen(first, last)
            for number in {first, last - 1}:
                if self._blocks.is_part(number, offset, len(data)) and not self._blocks.has(number):
                    yield from self._fill(number, number + 1)
            self._blocks.put_bytes(offset, data, partly=True)
            for number in range(first, last):
                self._blocks.soil(number)
            if fua:
                yield from self._clean(first, last, fua=True)
        finally:
            self._turns.end(turn)
        yield from self._shrink(strict=False)

    def _clean(self, first: int, last: int, *, fua: bool = False) -> Steps:
        """Write back what is dirty in a range whose turn is had."""
        blocks = self._blocks
        most = 1 if first <= blocks.short < last else max(_CHUNK // blocks.block, 1)
        for start, stop in runs(blocks.dirty(first, last), most):
            data = blocks.joined(start, stop)
            yield self.under.write(start * blocks.block, [memoryview(data)], fua=fua)
            blocks.clean(range(start, stop))

    def _lengthen(self, first: int, last: int) -> Steps:
        """Forget a block of which the disk below has more, once that has what is dirty."""
        short = self._blocks.short
        if first <= short < last:
            yield from self._clean(short, short + 1)
            if self._blocks.short == short:
                self._blocks.short = -1
                self._blocks.drop(short)

    def _flush(self) -> Steps:
        failure: Exception | None = None
        most = max(_CHUNK // self._blocks.block, 1)
        for first, last in list(runs(self._blocks.dirty(), most)):
            turn = self._turns.ask(first, last, alone=True)
            try:
                yield self._turns.wait(turn)
                yield from self._clean(first, last)
            except Exception as error:  # noqa: BLE001 - the others are written back all the same
                failure = failure or error
            finally:
                self._turns.end(turn)
        if failure is not None:
            raise failure
        yield self.under.flush()

    def _shrink(self, *, strict: bool) -> Steps:
        """Forget what was not used for longest; *strict*: raise what keeps a dirty one here."""
        while self._blocks.held > self._size:
            number = self._victim()
            if number is None:
                return
            first, last = number, number + 1
            if self._blocks.is_dirty(number):
                first, last = self._blocks.around(number, max(_CHUNK // self._blocks.block, 1))
                if not self._turns.is_free(first, last):
                    first, last = number, number + 1
            turn = self._turns.ask(first, last, alone=True)  # at once: nobody is there
            try:
                yield from self._clean(first, last)
                self._blocks.drop(number)
            except Exception:
                if strict:
                    raise
                return  # it stays here, and the next flush says so
            finally:
                self._turns.end(turn)

    def _victim(self) -> int | None:
        for number in self._blocks.oldest(_LOOK):
            if self._turns.is_free(number, number + 1):
                return number
        return None

    def _drop(self, offset: int, length: int, unmap: bool | None) -> Steps:  # noqa: FBT001
        """Zero a range below, or discard it where *unmap* is None, and forget it here."""
        first, last = self._blocks.covering(offset, length)
        turn = self._turns.ask(first, last, alone=True)
        try:
            yield self._turns.wait(turn)
            for number in {first, last - 1}:
                if self._blocks.is_part(number, offset, length):
                    yield from self._clean(number, number + 1)
            if unmap is None:
                yield self.under.discard(offset, length)
            else:
                yield self.under.write_zeroes(offset, length, unmap=unmap)
            for number in self._blocks.within(first, last):
                self._blocks.drop(number)
        finally:
            self._turns.end(turn)

    def _resize(self, size: int) -> Steps:
        block = self._blocks.block
        first, last = min(size, self._blocks.end) // block, -(-max(size, self._blocks.end) // block)
        turn = self._turns.ask(first, last, alone=True)
        try:
            yield self._turns.wait(turn)
            yield from self._clean(first, first + 1)  # of which a part may stay
            yield self.under.resize(size)
            self._blocks.resize(self.under.info().size)
        finally:
            self._turns.end(turn)


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    return Cache(
        below,
        mode=options.get("mode", Mode.WRITETHROUGH),
        size=parse_size(options["size"], "size") if "size" in options else SIZE,
        block=parse_size(options["block"], "block") if "block" in options else BLOCK,
    )


def _mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        raise VhostBlkError(
            f"cache: mode={text}: write mode=writethrough or mode=writeback"
        ) from None


def _size(size: int) -> int:
    if check_number(size, "cache: size", least=-MAX_NUMBER) < _LARGEST:
        raise VhostBlkError(f"cache: size={size}: write 1M or more")
    return size
