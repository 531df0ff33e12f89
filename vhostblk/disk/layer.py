"""
What a layer is: a disk in front of a disk.

`Layer` hands everything on; a layer defines again what it does otherwise.  What it can do follows
from what the disk below can, which `Layer.info` says: so a device offers neither more nor less
because a layer is in front of its disk.

A layer may be asked and changed while it serves: `Layer.settings`, `Layer.change`, and the methods
that it names in `Layer.commands`.  All are called on the disk's thread, as its requests are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.call import Calls, Pending, run
from vhostblk.errors import VhostBlkError

Value = str | int | float | bool | None
"""What a layer says of itself, in the JSON of the control socket."""

_HANDED_ON = frozenset(
    {
        "writeback",
        "lock_while_running",
        "lock",
        "unlock",
        "call_off",
        "mark",
        "unmark",
        "marked_by_others",
        "share",
        "adopt",
        "save",
        "restore",
    }
)
"""What a disk may have beyond the contract: a layer has what the disk below has."""


class Layer(Disk):
    """
    A disk in front of *below*, as which it looks until a method is defined otherwise.

    A layer that keeps what another process, or its like behind `ctl reload`, would not have
    defines `save` and `restore` for that alone (`vhostblk.disk.carry`) and `inherit`.  What it
    defines of ``lock``, ``unlock``, ``share`` and ``adopt`` calls those below.

    Args:
        below: Any disk; opened and closed by the layer.
    """

    name: ClassVar[str] = "layer"
    """As it is written in front of a disk."""
    commands: ClassVar[Sequence[str]] = ()
    """Methods without arguments that an operator may call; each returns `Value` by name, or None,
    and may be ``async``."""
    counts: ClassVar[Sequence[str]] = ()
    """Attributes that hold what it has counted, which another process goes on with."""

    def __init__(self, below: object) -> None:
        Calls(below)  # says what is no disk
        self.below = below

    @cached_property
    def under(self) -> Calls:
        """The disk below with the whole contract; not before `open`."""
        return Calls(self.below)

    def __getattr__(self, name: str) -> object:
        """Have what the disk below has beyond the contract."""
        if name in _HANDED_ON:
            return getattr(self.below, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what the layer is set to, and what it has counted."""
        return {}

    def change(self, values: Mapping[str, str]) -> None:
        """
        Be set otherwise from the next request on; all of *values* or, where it raises, none.

        Args:
            values: As in front of a disk: text by option.

        Raises:
            VhostBlkError: No such option, none that can be changed now, or no such value.
        """
        key = next(iter(values), "")
        raise VhostBlkError(f"{self.name}: {key!r} cannot be changed while it serves")

    def options(self) -> Mapping[str, str]:
        """Return those options that commands or `resize` set, as they would be written now."""
        return {}

    def counted(self) -> Mapping[str, int]:
        """Return what it has counted, by name; once nothing is under way."""
        return {name: getattr(self, name) for name in self.counts}

    def recall(self, counted: Mapping[str, int]) -> None:
        """
        Add what the same layer has counted before it was this object.

        Args:
            counted: As that one's `counted` has it, though of another process without what is
                zero; of another version of it, some may be unknown.
        """
        for name in self.counts:
            setattr(self, name, getattr(self, name) + counted.get(name, 0))

    # ---- the contract, handed on ------------------------------------------------------------

    async def open(self) -> None:
        """Open the disk below; a layer does so first."""
        await run(self.under.open)

    async def close(self) -> None:
        """Close the disk below; a layer does so last."""
        await run(self.under.close)

    def info(self) -> DiskInfo:
        """Return what the disk below is, and of what it cannot do nothing."""
        info, can = self.under.info(), self.under.abilities()
        return replace(
            info,
            read_only=not can.write,
            volatile=info.volatile and can.write,
            max_discard=info.max_discard if can.discard else 0,
            max_write_zeroes=info.max_write_zeroes if can.write_zeroes else 0,
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Hand on."""
        return self.under.read(offset, views)

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Hand on."""
        return self.under.write(offset, views, fua=fua)

    def flush(self) -> Pending:
        """Hand on."""
        return self.under.flush()

    def discard(self, offset: int, length: int) -> Pending:
        """Hand on."""
        return self.under.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Hand on; where the disk below cannot, zeroes are written."""
        return self.under.write_zeroes(offset, length, unmap=unmap)

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Hand on."""
        return self.under.block_status(offset, length)

    def resize(self, size: int) -> Pending:
        """Hand on."""
        return self.under.resize(size)

    def inherit(self, before: Disk) -> Pending:
        """
        Go on counting, and hand on, layer by layer.

        A layer that has something of its own takes it over here: *before* is of the same kind,
        though maybe of the class as it was before its module was loaded again.
        """
        if not isinstance(before, Layer) or before.name != self.name:
            kind = type(before).__name__
            raise VhostBlkError(f"{kind} is no {self.name} layer, as it was before")
        self.recall(before.counted())
        return self.under.inherit(before.below)


@dataclass(frozen=True, slots=True)
class Stack:
    """
    A disk taken apart.

    Args:
        layers: In front of it, the outermost first.
        disk: What is behind them, and is no layer.
    """

    layers: tuple[Layer, ...]
    disk: object

    @property
    def outermost(self) -> object:
        """What is called."""
        return self.layers[0] if self.layers else self.disk


def take_apart(disk: object) -> Stack:
    """Tell a disk from what is in front of it."""
    in_front = tuple(layers(disk))
    return Stack(in_front, in_front[-1].below if in_front else disk)


def layers(disk: object) -> Iterator[Layer]:
    """Yield the layers of a disk, the outermost first."""
    while isinstance(disk, Layer):
        yield disk
        disk = disk.below
