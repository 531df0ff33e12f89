"""
A layer that holds requests while it is told to: storage that hangs, for as long as one likes.

What is held is in flight, for the guest and for whoever stops it: it goes on later, or is given up
like any request that takes too long.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vhostblk.disk.api import Disk
from vhostblk.disk.call import BY_DEVICE, Pending, run
from vhostblk.disk.given import check_path, check_switch
from vhostblk.disk.grammar import parse_switch
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.ops import ALL, Op, ops_of, parse_ops
from vhostblk.errors import VhostBlkError

LOOK_SECONDS = 0.05
"""How often is looked, while requests are held, whether the file has gone."""

OPTIONS = frozenset({"paused", "ops", "file"})
FORM = "pause[:paused=on|off][,ops=OP+OP…][,file=PATH]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """As the arguments of `Pause`."""

    paused: bool = False
    ops: frozenset[Op] = ALL
    file: str = ""

    def with_text(self, options: Mapping[str, str]) -> "_Settings":
        """Return what these are with some of them written anew; raises `VhostBlkError`."""
        new = self
        for key, text in options.items():
            match key:
                case "paused":
                    new = replace(new, paused=parse_switch(text, key))
                case "ops":
                    new = replace(new, ops=parse_ops(text))
                case "file":
                    new = replace(new, file=text)
                case _:
                    some = ", ".join(sorted(OPTIONS))
                    raise VhostBlkError(f"pause: no option {key!r} (there are {some})")
        return new


class Pause(Layer):
    """
    Holds requests in front of *below* while it is paused.

    Args:
        below: Any disk.
        paused: Whether it is from the start.
        ops: What is held, by the names of `Op`; everything else passes.
        file: It is paused as well while something of that name exists; empty: by no file.

    Raises:
        VhostBlkError: There is no such operation.
    """

    name = "pause"
    commands = ("pause", "resume")

    def __init__(
        self,
        below: object,
        *,
        paused: bool = False,
        ops: Collection[str] = tuple(Op),
        file: str = "",
    ) -> None:
        super().__init__(below)
        self._set = _Settings(
            paused=check_switch(paused, "paused"), ops=ops_of(ops), file=check_path(file, "file")
        )
        self._held = 0
        self._changed = asyncio.Event()

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return whether it is paused, by whom and for what, and how many requests it holds now."""
        return {
            "paused": self._set.paused,
            "ops": "+".join(op for op in Op if op in self._set.ops),
            "file": self._set.file or None,
            "held_by_file": self._file_is_there(),
            "held": self._held,
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set any option; what is held and need not be any more goes on."""
        self._become(self._set.with_text(values))

    def options(self) -> Mapping[str, str]:
        """Return whether it is paused."""
        return {"paused": "on" if self._set.paused else "off"}

    def pause(self) -> None:
        """Hold what comes from now on."""
        self._become(replace(self._set, paused=True))

    def resume(self) -> None:
        """Let everything go on, unless the file is there."""
        self._become(replace(self._set, paused=False))

    def _become(self, new: _Settings) -> None:
        self._set = new
        self._changed.set()  # all that wait look again
        self._changed = asyncio.Event()

    # ---- the contract -----------------------------------------------------------------------

    def inherit(self, before: Disk) -> Pending:
        """Be paused as the one before was."""
        if isinstance(before, Pause):
            self._become(before._set)  # noqa: SLF001 - one of us
        return super().inherit(before)

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Hold, or hand on."""
        return self._pass(Op.READ, partial(self.under.read, offset, views))

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Hold, or hand on."""
        return self._pass(Op.WRITE, partial(self.under.write, offset, views, fua=fua))

    def flush(self) -> Pending:
        """Hold, or hand on; not the one at a device's end: what is written stays so."""
        if BY_DEVICE.get():
            return self.under.flush()
        return self._pass(Op.FLUSH, self.under.flush)

    def discard(self, offset: int, length: int) -> Pending:
        """Hold, or hand on."""
        return self._pass(Op.DISCARD, partial(self.under.discard, offset, length))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Hold, or hand on."""
        call = partial(self.under.write_zeroes, offset, length, unmap=unmap)
        return self._pass(Op.WRITE_ZEROES, call)

    def _pass(self, op: Op, call: Callable[[], Pending]) -> Pending:
        return self._hold(op, call) if self._holds(op) else call()

    def _holds(self, op: Op) -> bool:
        return op in self._set.ops and (self._set.paused or self._file_is_there())

    def _file_is_there(self) -> bool:
        try:
            return bool(self._set.file) and Path(self._set.file).exists()
        except OSError:  # where nobody may look, nothing is
            return False

    async def _hold(self, op: Op, call: Callable[[], Pending]) -> None:
        self._held += 1
        try:
            while self._holds(op):
                await self._until_changed()
        finally:
            self._held -= 1
        await run(call)

    async def _until_changed(self) -> None:
        """Wait until it may be worth looking again; a file tells nobody that it goes."""
        seconds = LOOK_SECONDS if self._set.file and not self._set.paused else None
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    chosen = _Settings().with_text(options)
    return Pause(below, paused=chosen.paused, ops=chosen.ops, file=chosen.file)
