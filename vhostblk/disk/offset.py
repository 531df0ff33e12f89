"""A part of a disk by where it is; run by the C core."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import run
from vhostblk.disk.given import check_number
from vhostblk.disk.grammar import MAX_SIZE, parse_size
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.partition import PartitionStage
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"start", "size"})
FORM = "offset:start=SIZE[,size=SIZE]"


class Offset(StageLayer):
    """
    Bytes *start* to *start* + *size* of the disk below.

    Args:
        below: Any disk.
        start: First byte; a multiple of its block size.
        size: Bytes, likewise; None: all behind *start*, though the disk below becomes larger.

    Raises:
        VhostBlkError: A number is none, or negative.
    """

    name: ClassVar[str] = "offset"

    def __init__(self, below: object, *, start: int, size: int | None = None) -> None:
        super().__init__(below)
        self._start = check_number(start, "start", most=MAX_SIZE)
        self._size = None if size is None else check_number(size, "size", least=1, most=MAX_SIZE)

    async def open(self) -> None:
        """
        Open the disk below.

        Raises:
            VhostBlkError: The part does not lie on it, or not on whole blocks.
        """
        await super().open()
        below = self.under.info()
        size = below.size - self._start if self._size is None else self._size
        what = f"start={self._start}" + (f",size={size}" if self._size is not None else "")
        problem = ""
        if (self._start | size) % below.block_size:
            problem = f"splits a block: write multiples of {below.block_size}"
        elif size <= 0 or self._start + size > below.size:
            problem = f"does not lie on the disk below, which has {below.size} bytes"
        if problem:
            await super().close()
            raise VhostBlkError(f"{self.name}: {what} {problem}")

    def stage(self) -> PartitionStage:
        """Return where the part is."""
        size = self._size
        if size is None:
            size = self.under.info().size - self._start
        return PartitionStage(offset=self._start, size=size)

    def info(self) -> DiskInfo:
        """Return what the disk below is, but for the size."""
        below = super().info()
        size = below.size - self._start if self._size is None else self._size
        if self.bound is not None and self._size is None:  # it may have grown
            self.bound.set(PartitionStage(offset=self._start, size=size))
        return replace(below, size=size)

    async def resize(self, size: int) -> None:
        """
        Have *size* bytes: of the disk below if it is large enough, else it is resized with it.

        Raises:
            VhostBlkError: The part was given a size, and there is no room for so much more.
        """
        below = self.under.info().size
        if self._size is None:
            await run(self.under.resize, self._start + size)
        elif self._start + size > below:
            raise VhostBlkError(
                f"{self.name}: the disk below has {below - self._start} bytes there"
            )
        else:
            self._size = size
        if self.bound is not None:
            self.bound.set(self.stage())

    def settings(self) -> Mapping[str, Value]:
        """Return where it is."""
        return {"start": self._start, "size": self.info().size}

    def options(self) -> Mapping[str, str]:
        """Return the size it was given."""
        return {} if self._size is None else {"size": str(self._size)}


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    if "start" not in options:
        raise VhostBlkError(f"where it begins: write {FORM}")
    size = parse_size(options["size"], "size") if "size" in options else None
    return Offset(below, start=parse_size(options["start"], "start"), size=size)
