"""
A power cut on demand: a layer with a volatile write cache, and a switch.

What is written stays in this layer's memory until it is flushed (or, where there is too much of
it, written back early, as caches do).  At a cut some of it reaches the disk below and the rest is
gone, chosen by a seed (`vhostblk.disk.loss`); from then on every request fails, until the power is
on again.  A server that is killed is the cut at which all is lost.
"""

import asyncio
import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from vhostblk.disk import loss
from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.call import BY_DEVICE, run
from vhostblk.disk.cut_options import (
    FORM,
    OPTIONS,
    At,
    Switches,
    Then,
    parse,
    parse_at,
    parse_then,
)
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.ops import Op
from vhostblk.disk.power import Cache, Change, Kind, Piece
from vhostblk.errors import VhostBlkError

__all__ = ["FORM", "OPTIONS", "At", "Cut", "Then", "build"]

_SHOWN = 100
"""Changes a cut tells of; of more, only how many."""
_ENOUGH = 0.75
"""Of the limit: what writing back leaves."""
_OPS = {
    Kind.WRITE: Op.WRITE,
    Kind.ZEROES: Op.WRITE_ZEROES,
    Kind.UNMAP: Op.WRITE_ZEROES,
    Kind.DISCARD: Op.DISCARD,
}


@dataclass(slots=True)
class State:
    """
    What has been.

    Args:
        requests: How many have come while there was power.
        ops: The same, by kind.
        last: The last cut, in a line.
    """

    requests: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    last: str = ""


class Cut(Layer):
    """
    A volatile write cache in front of *below*, whose power can be cut.

    Args:
        below: Any disk.
        seed: What the first cut chooses by; the next one takes the number behind it.  None: any.
        at: A request at which the power goes, which is in flight then; as text, ``flush:3``.
        lose: How what is not flushed is lost, see `vhostblk.disk.loss.Lose`.
        tear: Some of it is torn.
        grain: Bytes that are never torn; 0: a block of the disk.
        limit: Bytes of memory; what is more is written back before it is flushed.
        then: What comes behind a cut, see `Then`.
        power: False: it is off from the start.

    Raises:
        VhostBlkError: A value is none.
    """

    name = "cut"
    commands = ("cut", "power_on")

    def __init__(  # noqa: PLR0913 - an argument for each option
        self,
        below: object,
        *,
        seed: int | None = None,
        at: At | str = "",
        lose: str = "any",
        tear: bool = True,
        grain: int = 0,
        limit: int = 64 << 20,
        then: str = "eio",
        power: bool = True,
    ) -> None:
        super().__init__(below)
        if seed is None:
            seed = int.from_bytes(os.urandom(4))
        self._set = Switches(
            seed=seed,
            at=parse_at(str(at)),
            lose=loss.parse_lose(lose),
            tear=tear,
            grain=grain,
            limit=limit,
            then=parse_then(then),
            power=power,
        )
        self._cache = Cache()
        self._going: list[Piece] = []
        """What the disk below is to get now, in order; still seen by reads."""
        self._going_down = asyncio.Lock()
        self._dice = loss.Dice(seed)
        self.state = State()

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what is set, whether there is power, and what is not flushed."""
        return {
            **self._set.told(),
            "requests": self.state.requests,
            "unflushed": len(self._cache.held),
            "unflushed_bytes": sum(held.length for held in self._cache.held),
            "last_cut": self.state.last,
        }

    def change(self, values: Mapping[str, str]) -> None:
        """
        Be set otherwise; a new seed is that of the next cut.

        Raises:
            VhostBlkError: No such option or value, or a request that is over.
        """
        for key, command in (("grain", ""), ("power", ": say --do cut or --do power_on")):
            if key in values:
                raise VhostBlkError(f"cut: {key!r} cannot be changed while it serves{command}")
        new = self._set.changed(values)
        if "at" in values and new.at and new.at.count <= self._counted(new.at):
            raise VhostBlkError(f"cut: at={new.at} is over: {self._counted(new.at)} have come")
        self._set = new

    def options(self) -> Mapping[str, str]:
        """Return whether there is power, and what the next cut chooses by."""
        return {"seed": str(self._set.seed), "power": "on" if self._set.power else "off"}

    async def cut(self) -> Mapping[str, Value]:
        """
        Cut the power now.

        Returns:
            The seed, the number of the request before it, and what became of what.

        Raises:
            VhostBlkError: It is off.
            OSError: The disk below does not take what is to be there.
        """
        if not self._set.power:
            raise VhostBlkError("cut: the power is off already: power_on first")
        return await self._cut()

    def power_on(self) -> None:
        """
        Serve again what is there; whoever uses the disk is to start anew, too.

        Raises:
            VhostBlkError: It is on.
        """
        if self._set.power:
            raise VhostBlkError("cut: the power is on")
        self._set = replace(self._set, power=True)

    # ---- the contract -----------------------------------------------------------------------

    def info(self) -> DiskInfo:
        """Return what the disk below is, with a volatile cache."""
        info = super().info()
        return info if info.read_only else replace(info, volatile=True)

    async def close(self) -> None:
        """End in order: nothing is lost, unless the power is off."""
        try:
            if self._set.power:
                await self._settle_all()
        finally:
            await super().close()

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Read what was written, wherever it is."""
        if self._arrived(Op.READ):
            await self._fail_by_cut()
        # Noted before the disk below is asked: what goes down meanwhile is in one of the two.
        end = offset + sum(map(len, views))
        over = [p for p in self._going if p.start < end and offset < p.end]
        over += self._cache.over(offset, end)
        await run(self.under.read, offset, views)
        self._check_power()
        for piece in over:
            _paste(piece, offset, views)

    async def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        """Keep it; with *fua*, make it stable."""
        data = b"".join(views)
        await self._change(Kind.WRITE, offset, len(data), data, fua=fua)

    async def discard(self, offset: int, length: int) -> None:
        """Keep that it was asked for; it reads as zeroes."""
        await self._change(Kind.DISCARD, offset, length)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Keep that it was asked for."""
        await self._change(Kind.UNMAP if unmap else Kind.ZEROES, offset, length)

    async def flush(self) -> None:
        """Make all of it stable that was written before; at a device's end nothing is counted."""
        if BY_DEVICE.get():
            await self._settle_all()
            return
        hit = self._arrived(Op.FLUSH)
        mark = self._cache.flush()
        if hit:
            await self._fail_by_cut()
        await self._go_down(self._cache.flushed(mark), stable=True)
        self._check_power()

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is stored below, and here: that is no hole."""
        at, end = offset, offset + length
        for piece in sorted(self._cache.over(offset, end), key=lambda piece: piece.start):
            if at < piece.start:
                yield from self.under.block_status(at, piece.start - at)
            if at < piece.end:
                yield Extent(max(at, piece.start), piece.end - max(at, piece.start), hole=False)
                at = piece.end
        if at < end:
            yield from self.under.block_status(at, end - at)

    async def resize(self, size: int) -> None:
        """Hand on, with nothing kept here: what is cut off is gone for good."""
        if not self._set.power:
            raise VhostBlkError("cut: the power is off: power_on first")
        await self._settle_all()
        await run(self.under.resize, size)

    async def inherit(self, before: Disk) -> None:
        """Take over whether there is power, and what was counted."""
        pending = super().inherit(before)
        if pending is not None:
            await pending
        if isinstance(before, Cut):
            self.state, self._set = before.state, before._set  # noqa: SLF001 - one of us

    # ---- what they are made of --------------------------------------------------------------

    async def _change(
        self, kind: Kind, offset: int, length: int, data: bytes | None = None, *, fua: bool = False
    ) -> None:
        hit = self._arrived(_OPS[kind])
        change = Change(self.state.requests, offset, length, data, kind, fua=fua)
        self._cache.begin(change)
        if hit:
            await self._fail_by_cut()
        stable = self._cache.end(change.number)
        if fua:
            await self._go_down(stable, stable=True)
        elif self._cache.size > self._set.limit:
            await self._go_down(self._too_much(), stable=False)
        self._check_power()

    def _arrived(self, op: Op) -> bool:
        """Count a request; tell whether the power goes with it."""
        self._check_power()
        self.state.requests += 1
        self.state.ops[op] = self.state.ops.get(op, 0) + 1
        at = self._set.at
        return at is not None and at.op in {"", op} and at.count == self._counted(at)

    def _counted(self, at: At) -> int:
        return self.state.ops.get(at.op, 0) if at.op else self.state.requests

    def _check_power(self) -> None:
        if not self._set.power:
            raise OSError(errno.EIO, "cut: the power is off")

    def _too_much(self) -> list[Piece]:
        """Choose what is written back early: whatever comes, as a cache does not go by age."""
        pieces: list[Piece] = []
        while self._cache.size > self._set.limit * _ENOUGH and self._cache.held:
            for held in self._cache.held:
                if self._dice.below(2):
                    pieces += self._cache.write_back(held.number)
        return pieces

    async def _settle_all(self) -> None:
        await self._go_down(self._cache.flushed(self._cache.flush()), stable=True)

    async def _go_down(self, pieces: Sequence[Piece], *, stable: bool) -> None:
        """
        Have the disk below take *pieces* behind all that goes there already.

        What it does not take is tried again by the next one; reads see it until then.
        """
        self._going += pieces
        async with self._going_down:
            while self._going:
                await self._store(self._going[0])
                del self._going[0]
            if stable:
                await run(self.under.flush)

    async def _store(self, piece: Piece) -> None:
        length, kind, data = piece.end - piece.start, piece.change.kind, piece.data
        if data is not None:
            await run(self.under.write, piece.start, [data])
        elif kind is Kind.DISCARD:
            await run(self.under.discard, piece.start, length)
        else:
            await run(self.under.write_zeroes, piece.start, length, unmap=kind is Kind.UNMAP)

    async def _cut(self) -> Mapping[str, Value]:
        seed = self._set.seed
        cut = loss.cut(self._cache, self._losing(), number=self.state.requests, seed=seed)
        self._cache = Cache()
        self._set = replace(self._set, power=False, seed=min(seed + 1, loss.MAX_SEED))
        self.state.last = _line(cut, self.state.requests)
        async with self._going_down:
            self._going = []  # what the disk below did not take
            for piece in cut.pieces:
                await self._store(piece)
            await run(self.under.flush)
        if self._set.then is Then.EXIT:
            os.kill(os.getpid(), signal.SIGTERM)
        return {
            "seed": seed,
            "request": self.state.requests,
            **{fate.value: cut.count(fate) for fate in loss.Fate},
            "what": _what(cut),
        }

    async def _fail_by_cut(self) -> NoReturn:
        await self._cut()
        raise OSError(errno.EIO, "cut: the power goes with this request")

    def _losing(self) -> loss.Losing:
        grain = self._set.grain or self.under.info().block_size
        return loss.Losing(self._set.lose, self._set.tear, grain)


def build(below: Disk, options: Mapping[str, str]) -> Cut:
    """
    Make a layer of what was written in front of a disk.

    Raises:
        VhostBlkError: A value is none; says what to write.
    """
    told = parse(options)
    return Cut(
        below,
        seed=told.seed if "seed" in options else None,
        at=told.at or "",
        lose=told.lose,
        tear=told.tear,
        grain=told.grain,
        limit=told.limit,
        then=told.then,
        power=told.power,
    )


def _line(cut: loss.Cut, request: int) -> str:
    counts = ", ".join(f"{cut.count(fate)} {fate}" for fate in loss.Fate)
    return f"seed={cut.seed} at request {request}: {counts}"


def _what(cut: loss.Cut) -> str:
    lines = [str(verdict) for verdict in cut.verdicts if verdict.fate is not loss.Fate.KEPT]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "; ".join(lines[:_SHOWN] + more)


def _paste(piece: Piece, offset: int, views: Sequence[memoryview]) -> None:
    """Put a piece over what was read from byte *offset* on."""
    data = piece.data
    for view in views:
        start, end = max(piece.start, offset), min(piece.end, offset + len(view))
        if start < end:
            new = bytes(end - start) if data is None else data[start - piece.start :][: end - start]
            view[start - offset : end - offset] = new
        offset += len(view)
