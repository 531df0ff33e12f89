"""
A layer that notices writes of nothing but zeroes, and makes them what they are.

A disk has less to do then, and one that can leaves a hole.
"""

from collections.abc import Mapping, Sequence

from vhostblk.disk.api import Disk
from vhostblk.disk.call import Pending
from vhostblk.disk.given import check_switch
from vhostblk.disk.grammar import parse_switch
from vhostblk.disk.layer import Layer, Value
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"unmap"})
FORM = "zeroes[:unmap=on|off]"

_CHUNK = 1 << 16
_HEAD = 256
_ZEROES = bytes(_CHUNK)


class Zeroes(Layer):
    """
    Hands a write of zeroes on as `write_zeroes`, where the disk *below* has that.

    Args:
        below: Any disk.
        unmap: A hole is welcome.
    """

    name = "zeroes"
    counts = ("_writes", "_bytes")

    def __init__(self, below: object, *, unmap: bool = False) -> None:
        super().__init__(below)
        self._unmap = check_switch(unmap, "unmap")
        self._block = 0
        self._longest = 0
        self._writes = 0
        self._bytes = 0

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return what it is set to, and how many writes, and bytes of them, were zeroes."""
        return {"unmap": self._unmap, "zero_writes": self._writes, "zero_bytes": self._bytes}

    def change(self, values: Mapping[str, str]) -> None:
        """Set its option."""
        self._unmap = _unmap(values, before=self._unmap)

    # ---- the contract -----------------------------------------------------------------------

    async def open(self) -> None:
        """Open the disk below, and see what zeroes it takes."""
        await super().open()
        info, can = self.under.info(), self.under.abilities()
        self._block = info.block_size
        self._longest = info.max_write_zeroes if can.write_zeroes else 0

    def inherit(self, before: Disk) -> Pending:
        """Be set as the one before was."""
        if isinstance(before, Zeroes):
            self._unmap = before._unmap  # noqa: SLF001 - one of us
        return super().inherit(before)

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Hand on, as what it is."""
        length = sum(map(len, views))
        whole = not offset % self._block and not length % self._block
        if not whole or not 0 < length <= self._longest or not _are_zero(views):
            return self.under.write(offset, views, fua=fua)
        self._writes += 1
        self._bytes += length
        return self.under.write_zeroes(offset, length, unmap=self._unmap, fua=fua)


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    return Zeroes(below, unmap=_unmap(options, before=False))


def _unmap(options: Mapping[str, str], *, before: bool) -> bool:
    for key in options:
        if key not in OPTIONS:
            raise VhostBlkError(f"zeroes: no option {key!r} (there is unmap)")
    return parse_switch(options["unmap"], "unmap") if "unmap" in options else before


def _are_zero(views: Sequence[memoryview]) -> bool:
    """Tell whether all is zero; each byte is looked at in a copy, as the guest may change it."""
    return (
        all(_is_zero(view[:_HEAD]) for view in views)
        and all(  # most data tells at once
            _is_zero(view[at : at + _CHUNK])
            for view in views
            for at in range(_HEAD, len(view), _CHUNK)
        )
    )


def _is_zero(piece: memoryview) -> bool:
    copy = bytes(piece)
    return copy == _ZEROES[: len(copy)]
