"""
A layer that knows what a disk must hold, and looks at every read.

Of every block that is written it keeps a checksum.  A disk that loses a write, or half of one,
brings one to another place or an old one back is found out at the next read, or by `scrub`.

Requests that overlap take their turns here: of two at once nobody could tell what must be there.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import Pending, run
from vhostblk.disk.given import check_path
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.steps import Steps, Turns, walk
from vhostblk.disk.store import Store, open_store
from vhostblk.disk.verify_sums import CHUNK, Sums, checksum, checksums, read_header
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

OPTIONS = frozenset({"file", "on-mismatch"})
FORM = "verify[:file=PATH][,on-mismatch=error|warn]"

LINES = 32
"""How many blocks are told of; of more, only how many."""


class OnMismatch(StrEnum):
    """What becomes of a read that finds something else."""

    ERROR = "error"
    WARN = "warn"


class Verify(Layer):
    """
    Compares what is read from *below* with what was written.

    Args:
        below: Any disk.
        file: Where checksums are kept across restarts; empty: in memory alone.
        on_mismatch: What becomes of a read that finds something else.

    Raises:
        VhostBlkError: There is no such answer.
    """

    name = "verify"
    commands = ("scrub", "forget")
    counts = ("_checked", "_bad")

    def __init__(
        self,
        below: object,
        *,
        file: str | os.PathLike[str] = "",
        on_mismatch: str = OnMismatch.ERROR,
    ) -> None:
        super().__init__(below)
        self._path = check_path(file, "verify: file")
        self._on_mismatch = _on_mismatch(on_mismatch)
        self._turns = Turns()
        self._open: Sums | None = None
        self._adopted: int | None = None
        self._behind = False  # another process has written since the file was read
        self._checked = 0
        self._bad = 0

    @property
    def _sums(self) -> Sums:
        assert self._open is not None, "open() comes first"  # noqa: S101 - our own promise
        if self._behind:
            self._behind = False
            self._open.read_again()
        return self._open

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what it is set to, what it has compared, and what was something else."""
        return {
            "file": self._path or None,
            "on-mismatch": self._on_mismatch.value,
            "checked": self._checked,
            "mismatches": self._bad,
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set what becomes of a read."""
        for key in values:
            if key != "on-mismatch":
                super().change({key: ""})
        self._on_mismatch = _on_mismatch(values.get("on-mismatch", self._on_mismatch))

    async def scrub(self) -> Mapping[str, Value]:
        """
        Read and compare every block that is known, while requests go on.

        Returns:
            How many blocks were compared, how many were something else, and how many bytes could
            not be read.
        """
        checked, bad, unreadable = self._checked, self._bad, 0
        for chunk in sorted(self._sums.chunks):
            start = chunk * CHUNK
            length = min(CHUNK, self._sums.size - start)
            if length > 0:
                try:
                    await run(self._scrub, start, length)
                except OSError as error:
                    unreadable += length
                    log.warning("verify: %d bytes at %d: %s", length, start, error.strerror)
            await asyncio.sleep(0)
        return {
            "checked": self._checked - checked,
            "mismatches": self._bad - bad,
            "unreadable": unreadable,
        }

    def forget(self) -> None:
        """Know nothing any more, say because the disk below was changed on purpose."""
        self._sums.forget()

    # ---- the disk ---------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Open the disk below, and the file.

        Raises:
            VhostBlkError: The file is another disk's, in use, or no such file.
        """
        await super().open()
        try:
            self._open_sums()
        except BaseException:
            await super().close()
            raise

    def _open_sums(self) -> None:
        info, taken = self.under.info(), self._adopted
        if not self._path:
            self._open = Sums(info.size, info.block_size, None)
            return
        self._adopted = None
        store = open_store(self._path, "file") if taken is None else Store(taken, self._path)
        try:
            header = read_header(store)
            if header is not None and (header.size, header.block) != (info.size, info.block_size):
                raise VhostBlkError(  # noqa: TRY301 - closed here in any case
                    f"file={self._path}: its checksums are of {header.size} bytes in blocks of "
                    f"{header.block}, and the disk has {info.size} in {info.block_size}: name the "
                    "disk they are of, or another file"
                )
            self._open = Sums(info.size, info.block_size, store)
            self._open.load(header)
        except BaseException:
            store.close()
            raise
        self._behind = taken is not None

    async def close(self) -> None:
        """Close both."""
        sums, self._open = self._open, None
        try:
            if sums is not None:
                sums.handed_over = sums.handed_over or self._behind  # another one goes on with it
                sums.close()
        finally:
            await super().close()

    def info(self) -> DiskInfo:
        """Return what the disk below is, whose size somebody may have changed."""
        info = super().info()
        if self._open is not None and info.size != self._open.size:
            self._open.resize(info.size)
        return info

    async def lock(self) -> None:
        """Lock the disk below, which others may have changed since."""
        await run(self.under.lock)
        self._sums.forget()

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Read, and compare."""
        return walk(self._read(offset, views))

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Write a copy, which the guest cannot change under our eyes."""
        return walk(self._write(offset, b"".join(views), fua=fua))

    def discard(self, offset: int, length: int) -> Pending:
        """Discard; what is there then nobody promises."""
        return walk(self._discard(offset, length))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Make zeroes, and remember that they are."""
        return walk(self._zero(offset, length, unmap=unmap))

    def resize(self, size: int) -> Pending:
        """Have another size; what is added nobody has written."""
        return walk(self._resize(size))

    def inherit(self, before: Disk) -> Pending:
        """Know what the one before has known."""
        if isinstance(before, Verify) and not self._path and before._open is not None:  # noqa: SLF001 - one of us
            mine, theirs = self._sums, before._sums  # noqa: SLF001
            if (mine.size, mine.block) == (theirs.size, theirs.block) and theirs.store is None:
                self._open, before._open = theirs, mine  # noqa: SLF001
        return super().inherit(before)

    # ---- for another process ----------------------------------------------------------------

    @property
    def share(self) -> Callable[[], Sequence[int]]:
        """Have descriptors as the disk below has, and the file's."""
        below: Callable[[], Sequence[int]] = self.below.share  # type: ignore[attr-defined]
        return lambda: (*self._hand_over(), *below())

    @property
    def adopt(self) -> Callable[[Sequence[int]], None]:
        """Take what `share` returned elsewhere."""
        below: Callable[[Sequence[int]], None] = self.below.adopt  # type: ignore[attr-defined]
        mine = 1 if self._path else 0

        def adopt(fds: Sequence[int]) -> None:
            self._adopted = fds[0] if mine else None
            below(fds[mine:])

        return adopt

    def _hand_over(self) -> Sequence[int]:
        store = self._sums.store
        if store is None:
            return ()
        self._sums.handed_over = True
        return (store.fd,)

    def save(self) -> bytes:
        """Leave all to the file; without one, the next begins anew."""
        return b""

    def restore(self, data: bytes) -> None:
        """Expect nothing."""

    # ---- steps ------------------------------------------------------------------------------

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        block = self._sums.block
        return offset // block, -(-(offset + length) // block)

    def _read(self, offset: int, views: Sequence[memoryview]) -> Steps:
        length = sum(map(len, views))
        first, end = self._blocks(offset, length)
        turn = self._turns.ask(first, end, alone=False)
        try:
            yield self._turns.wait(turn)
            if not any(self._sums.known(first, end)):
                yield self.under.read(offset, views)
                return
            data = bytearray(length)  # what a guest cannot change
            yield self.under.read(offset, [memoryview(data)])
            if self._compare(first, data) and self._on_mismatch is OnMismatch.ERROR:
                raise OSError(errno.EIO, "what is read is not what was written")
            rest = memoryview(data)
            for view in views:
                view[:] = rest[: len(view)]
                rest = rest[len(view) :]
        finally:
            self._turns.end(turn)

    def _scrub(self, offset: int, length: int) -> Pending:
        return walk(self._scrub_steps(offset, length))

    def _scrub_steps(self, offset: int, length: int) -> Steps:
        first, end = self._blocks(offset, length)
        turn = self._turns.ask(first, end, alone=False)
        try:
            yield self._turns.wait(turn)
            if any(self._sums.known(first, end)):
                data = bytearray(length)
                yield self.under.read(offset, [memoryview(data)])
                self._compare(first, data)
        finally:
            self._turns.end(turn)

    def _write(self, offset: int, data: bytes, *, fua: bool) -> Steps:
        first, end = self._blocks(offset, len(data))
        turn = self._turns.ask(first, end, alone=True)
        try:
            yield self._turns.wait(turn)
            sums = self._sums
            sums.begin(first, end)
            yield self.under.write(offset, [memoryview(data)], fua=fua)
            sums.put(first, checksums(data, sums.block))
        finally:
            self._turns.end(turn)

    def _discard(self, offset: int, length: int) -> Steps:
        first, end = self._blocks(offset, length)
        turn = self._turns.ask(first, end, alone=True)
        try:
            yield self._turns.wait(turn)
            self._sums.begin(first, end)
            yield self.under.discard(offset, length)
        finally:
            self._turns.end(turn)

    def _zero(self, offset: int, length: int, *, unmap: bool) -> Steps:
        first, end = self._blocks(offset, length)
        turn = self._turns.ask(first, end, alone=True)
        try:
            yield self._turns.wait(turn)
            sums = self._sums
            sums.begin(first, end)
            yield self.under.write_zeroes(offset, length, unmap=unmap)
            sums.fill(first, end, checksum(bytes(sums.block)))
        finally:
            self._turns.end(turn)

    def _resize(self, size: int) -> Steps:
        turn = self._turns.ask(0, max(size, self._sums.size), alone=True)
        try:
            yield self._turns.wait(turn)
            yield self.under.resize(size)
            self._sums.resize(self.under.info().size)  # what was cut off is unknown
        finally:
            self._turns.end(turn)

    # ---- what is found ----------------------------------------------------------------------

    def _compare(self, first: int, data: bytearray) -> bool:
        """Tell whether blocks hold something else than they must; say so."""
        block, bad = self._sums.block, False
        with memoryview(data) as view:
            known = self._sums.known(first, first + len(data) // block)
            for i, expected in enumerate(known):
                if not expected:
                    continue
                self._checked += 1
                seen = checksum(view[i * block : (i + 1) * block])
                if seen != expected:
                    bad = True
                    self._tell(first + i, expected, seen)
        return bad

    def _tell(self, number: int, expected: int, seen: int) -> None:
        self._bad += 1
        if self._bad > LINES:
            return
        block = self._sums.block
        log.error(
            "verify: %d bytes at %d: expected checksum %08x, seen %08x: %s%s",
            block,
            number * block,
            expected,
            seen,
            self._what(number, seen),
            "; what follows is only counted" if self._bad == LINES else "",
        )

    def _what(self, number: int, seen: int) -> str:
        """Say what a block holds instead."""
        sums = self._sums
        if seen == checksum(bytes(sums.block)):
            return "it reads as zeroes"
        if seen == sums.before(number):
            return "the last write is lost: this is what was there before it"
        if (elsewhere := sums.where(seen)) is not None:
            return f"it is what belongs at {elsewhere * sums.block}"
        return "it is nothing that is known: torn, overwritten, or very old"


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    return Verify(
        below,
        file=options.get("file", ""),
        on_mismatch=options.get("on-mismatch", OnMismatch.ERROR),
    )


def _on_mismatch(text: str) -> OnMismatch:
    try:
        return OnMismatch(text)
    except ValueError:
        raise VhostBlkError(
            f"verify: on-mismatch={text}: write on-mismatch=error or on-mismatch=warn"
        ) from None
