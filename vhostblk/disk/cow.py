"""
A layer that keeps what is written, and leaves the disk below as it is until it is told otherwise.

What is kept is in a scratch file, which outlives the server, or in memory.  A block of which a part
is written first is read from the disk below, and from then on is here.  The disk below does not
change meanwhile, so nobody has to wait for anybody: who has read the rest of a block looks again
whether it is here by then.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from vhostblk.disk import cow_commit
from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.call import Pending, locks_while_running
from vhostblk.disk.cow_header import State
from vhostblk.disk.cow_open import open_scratch
from vhostblk.disk.cow_scratch import Scratch, read_header
from vhostblk.disk.given import check_number, check_path
from vhostblk.disk.grammar import parse_size
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.numbers import MAX_NUMBER
from vhostblk.disk.steps import Cursor, Steps, walk
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"scratch", "block"})
FORM = "cow[:scratch=PATH][,block=SIZE]"

_SMALLEST, _LARGEST = 4096, 16 << 20
_LONGEST = 1 << 30


class Cow(Layer):
    """
    Keeps what is written in front of *below*, which is not written before `commit`.

    Args:
        below: Any disk, a read-only one among them.
        scratch: A file to keep it in, made where there is none; empty: memory.
        block: Bytes that are kept as a whole, a power of two from 4096 to 16 MiB; 0: 64 KiB, or
            as the scratch file has them.

    Raises:
        VhostBlkError: No such block.
    """

    name = "cow"
    commands = ("commit", "discard_all")

    def __init__(
        self, below: object, *, scratch: str | os.PathLike[str] = "", block: int = 0
    ) -> None:
        super().__init__(below)
        check_number(block, "cow: block", least=-MAX_NUMBER)
        if block and (block & (block - 1) or not _SMALLEST <= block <= _LARGEST):
            raise VhostBlkError(f"cow: block={block}: write a power of two from 4K to 16M")
        self._path = check_path(scratch, "cow: scratch")
        self._block = block
        self._adopted: int | None = None
        self._behind = False  # another process has written since the maps were read
        self._open: Scratch | None = None
        self.epoch = 0
        """Another number whenever blocks that were here may be so no more."""
        self.committing: cow_commit.Commit | None = None

    @property
    def scratch(self) -> Scratch:
        """What is kept; once open."""
        scratch = self._known
        if self._behind:
            self._behind = False
            self._read_again(scratch)
        return scratch

    @property
    def _known(self) -> Scratch:
        """The same, where another process may still write to it."""
        assert self._open is not None, "open() comes first"  # noqa: S101 - our own promise
        return self._open

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what it is set to, and how much it holds."""
        scratch = self._known
        return {
            "scratch": self._path or None,
            "block": scratch.block,
            "held": scratch.map.count() * scratch.block,
            "allocated": scratch.store.allocated,
            "state": scratch.header.state.name.lower(),
        }

    async def commit(self) -> Mapping[str, Value]:
        """
        Write all that is kept to the disk below, and keep it no more.

        Requests go on meanwhile.  Where it ends in the middle nothing is lost, and nothing looks
        otherwise: all is kept until the disk below has it, stable.

        Raises:
            VhostBlkError: The disk below cannot be written, or fails; say it again later.
        """
        return await cow_commit.commit(self)

    def discard_all(self) -> Mapping[str, Value]:
        """
        Forget all that is kept: the disk is what is below again.

        Raises:
            VhostBlkError: A commit is under way, or has ended in the middle.
        """
        scratch = self.scratch
        self.refuse_while_committing("discard_all")
        if scratch.header.state is State.COMMITTING:
            raise VhostBlkError(
                "cow: a commit has ended in the middle, so a part is below already: commit again"
            )
        held = scratch.map.count() * scratch.block
        self.epoch += 1
        scratch.forget()
        return {"bytes": held}

    def refuse_while_committing(self, what: str) -> None:
        """Raise VhostBlkError where a commit is under way."""
        if self.committing is not None:
            raise VhostBlkError(f"cow: a commit is under way: {what} has to wait for it")

    # ---- the disk ---------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Open the disk below, and what is kept of it.

        Raises:
            VhostBlkError: The scratch file is another disk's, in use, or none; or others may use
                the disk below in between.
        """
        if locks_while_running(self.below):
            raise VhostBlkError(
                "cow: the disk below is locked only while a guest runs (lock=while-running), so "
                "others may change it, and what is kept here would not move with the guest: "
                "leave that out, or the layer"
            )
        await super().open()
        try:
            taken, self._adopted = self._adopted, None
            self._open = await open_scratch(self.under, self._path, self._block, taken)
            self._behind = taken is not None
        except BaseException:
            await super().close()
            raise

    async def close(self) -> None:
        """Close both; what is in memory is gone."""
        scratch, self._open = self._open, None
        if scratch is not None:
            scratch.close()  # flushed before, or another process goes on with it
        await super().close()

    def info(self) -> DiskInfo:
        """Return what the disk below is, of the size it has here; it can be written."""
        scratch, below = self._known, self.under.info()
        return replace(
            below,
            size=scratch.header.size,
            optimal_io_size=max(below.optimal_io_size, scratch.block),
            read_only=False,
            volatile=True,
            discard_alignment=max(below.block_size, min(scratch.block, 1 << 20)),
            max_discard=_LONGEST,
            max_write_zeroes=_LONGEST,
            may_unmap=True,
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Read what is kept, and the rest below."""
        scratch, end = self.scratch, offset + sum(map(len, views))
        here, behind = scratch.run(offset, end)
        if behind < end or (not here and end > scratch.header.visible):
            return walk(self._read(offset, end, views))
        if not here:
            return self.under.read(offset, views)
        scratch.read(offset, views)
        return None

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Keep it; with *fua* stable."""
        scratch, end = self.scratch, offset + sum(map(len, views))
        here, behind = scratch.run(offset, end)
        if not here or behind < end:
            return walk(self._write(offset, end, views, fua=fua))
        scratch.write(offset, views)
        self._noted(offset, end)
        if fua:
            scratch.flush()
        return None

    def flush(self) -> None:
        """Make what is kept stable; below there is nothing to do."""
        self.scratch.flush()

    def discard(self, offset: int, length: int) -> Pending:
        """Keep zeroes, as holes."""
        return walk(self._zero(offset, offset + length, unmap=True))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Keep zeroes, without *unmap* such that they have their room."""
        return walk(self._zero(offset, offset + length, unmap=unmap))

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is stored here or below."""
        end = offset + length
        while offset < end:
            scratch = self.scratch
            here, behind = scratch.run(offset, end)
            if not here and offset < scratch.header.visible:
                behind = min(behind, scratch.header.visible)
                yield from self.under.block_status(offset, behind - offset)
            elif here:
                yield from scratch.extents(offset, behind - offset)
            else:
                yield Extent(offset, behind - offset, hole=True)
            offset = behind

    def resize(self, size: int) -> Pending:
        """
        Have another size here; the disk below gets it at a `commit`.

        Raises:
            VhostBlkError: A commit is under way.
        """
        self.refuse_while_committing("resize")
        if size != self.scratch.header.size:
            self.epoch += 1
            self.scratch.resize(size)
        return None

    def inherit(self, before: Disk) -> Pending:
        """Keep what the one before has kept in memory."""
        if isinstance(before, Cow) and not self._path and self._open is not None:
            self._open.close()
            self._open, before._open = before.scratch, None  # noqa: SLF001 - one of us
        return super().inherit(before)

    # ---- for another process ----------------------------------------------------------------

    @property
    def share(self) -> Callable[[], Sequence[int]]:
        """Have descriptors as the disk below has, and the scratch file's."""
        below: Callable[[], Sequence[int]] = self.below.share  # type: ignore[attr-defined]
        return lambda: (self.scratch.store.fd, *below())

    @property
    def adopt(self) -> Callable[[Sequence[int]], None]:
        """Take what `share` returned elsewhere."""
        below: Callable[[Sequence[int]], None] = self.below.adopt  # type: ignore[attr-defined]

        def adopt(fds: Sequence[int]) -> None:
            self._adopted = fds[0]
            below(fds[1:])

        return adopt

    def save(self) -> bytes:
        """
        Leave all to the scratch file, where the disk below is closed and opened anew.

        Raises:
            VhostBlkError: It is in memory.
        """
        if not self._path:
            raise VhostBlkError(
                "cow: what is kept in memory would be lost: commit it and take the layer away, or "
                "use scratch=PATH"
            )
        return b""

    def restore(self, data: bytes) -> None:
        """Expect nothing."""

    # ---- steps ------------------------------------------------------------------------------

    def _read(self, offset: int, end: int, views: Sequence[memoryview]) -> Steps:
        rest = Cursor(views)
        while offset < end:
            scratch = self.scratch
            here, behind = scratch.run(offset, end)
            visible = scratch.header.visible
            if not here and offset < visible < behind:
                behind = visible
            part = rest.take(behind - offset)
            if here:
                scratch.read(offset, part)
            elif offset < visible:
                yield self.under.read(offset, part)
            else:
                for view in part:
                    view[:] = bytes(len(view))
            offset = behind

    def _write(self, offset: int, end: int, views: Sequence[memoryview], *, fua: bool) -> Steps:
        rest = Cursor(views)
        while offset < end:
            here, whole, behind = self._alike(offset, end)
            part = rest.take(behind - offset)
            if here or whole:
                self.scratch.write(offset, part)
                if whole:
                    self.scratch.add(offset, behind)
                self._noted(offset, behind)
            else:
                yield from self._first(offset, part, unmap=False)
            offset = behind
        if fua:
            self.scratch.flush()

    def _zero(self, offset: int, end: int, *, unmap: bool) -> Steps:
        while offset < end:
            here, whole, behind = self._alike(offset, end)
            if here or whole:
                self.scratch.zero(offset, behind - offset, unmap=unmap)
                if whole:
                    self.scratch.add(offset, behind)
                self._noted(offset, behind)
            elif offset < self.scratch.header.visible:
                yield from self._first(offset, behind - offset, unmap=unmap)
            offset = behind

    def _alike(self, offset: int, end: int) -> tuple[bool, bool, int]:
        """
        Find how far a request can be carried out in one way.

        Returns:
            Whether the blocks are here; else whether they are whole, or it is one of which only a
            part is meant; and the byte behind.
        """
        scratch = self.scratch
        here, behind = scratch.run(offset, end)
        if here:
            return True, False, behind
        block, size = scratch.block, scratch.header.size
        first_end = min((offset // block + 1) * block, size)
        if offset % block or behind < first_end:
            return False, False, min(behind, first_end)
        if behind < size:
            behind -= behind % block
        return False, True, behind

    def _first(self, offset: int, what: list[memoryview] | int, *, unmap: bool) -> Steps:
        """Change a part of one block, of which another part may have been changed meanwhile."""
        block = self.scratch.block
        start = offset // block * block
        while not self.scratch.map.has(start // block):
            epoch, size = self.epoch, self.scratch.header.size
            whole = bytearray(min(block, size - start))
            seen = min(len(whole), self.scratch.header.visible - start)
            if seen > 0:
                yield self.under.read(start, [memoryview(whole)[:seen]])
            if epoch == self.epoch and not self.scratch.map.has(start // block):
                self.scratch.write(start, [memoryview(whole)])
                self.scratch.add(start, start + len(whole))
        if isinstance(what, int):
            length = what
            self.scratch.zero(offset, length, unmap=unmap)
        else:
            length = sum(map(len, what))
            self.scratch.write(offset, what)
        self._noted(offset, offset + length)

    def _noted(self, offset: int, end: int) -> None:
        if self.committing is not None:
            self.committing.written(offset, end)

    def _read_again(self, scratch: Scratch) -> None:
        header = read_header(scratch.store)
        assert header is not None, "another process has used it"  # noqa: S101 - our own promise
        scratch.header = header
        scratch.load_maps()


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    block = parse_size(options["block"], "block") if "block" in options else 0
    if "block" in options and not block:
        raise VhostBlkError("cow: block=0: write a power of two from 4K to 16M")
    return Cow(below, scratch=options.get("scratch", ""), block=block)
