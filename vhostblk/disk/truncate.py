"""A disk that is shown smaller than it is; run by the C core."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.given import check_number
from vhostblk.disk.grammar import MAX_SIZE, parse_size
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.partition import PartitionStage
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"size", "round-down"})
FORM = "truncate[:size=SIZE][,round-down=SIZE]"


class Truncate(StageLayer):
    """
    The first bytes of the disk below.

    Args:
        below: Any disk.
        size: Bytes at most; None: all.
        round_down: The size becomes a multiple of so many bytes; 0: as it is.

    Raises:
        VhostBlkError: A number is none, or negative.
    """

    name: ClassVar[str] = "truncate"

    def __init__(self, below: object, *, size: int | None = None, round_down: int = 0) -> None:
        super().__init__(below)
        self._size = None if size is None else check_number(size, "size", least=1, most=MAX_SIZE)
        self._round = check_number(round_down, "round_down", most=MAX_SIZE)

    async def open(self) -> None:
        """
        Open the disk below.

        Raises:
            VhostBlkError: It is smaller already, or nothing would be left.
        """
        await super().open()
        below = self.under.info()
        size = self.stage().size
        problem = ""
        if self._size is not None and self._size > below.size:
            problem = f"size={self._size}: the disk below has only {below.size} bytes"
        elif not size or size % below.block_size:
            problem = f"{size} bytes are no disk of blocks of {below.block_size} bytes"
        if problem:
            await super().close()
            raise VhostBlkError(f"{self.name}: {problem}")

    def stage(self) -> PartitionStage:
        """Return what is left."""
        size = self.under.info().size
        if self._size is not None:
            size = min(size, self._size)
        if self._round:
            size -= size % self._round
        return PartitionStage(offset=0, size=size)

    def info(self) -> DiskInfo:
        """Return what the disk below is, but for the size."""
        stage = self.stage()
        if self.bound is not None:  # the disk below may have another size than before
            self.bound.set(stage)
        return replace(super().info(), size=stage.size)

    def resize(self, size: int) -> None:
        """
        Show more or less of the disk below.

        Raises:
            VhostBlkError: It has not so much.
        """
        below = self.under.info().size
        if size > below:
            raise VhostBlkError(f"{self.name}: the disk below has only {below} bytes")
        self._size, self._round = size, 0
        if self.bound is not None:
            self.bound.set(self.stage())

    def settings(self) -> Mapping[str, Value]:
        """Return what is left."""
        return {"size": self.stage().size, "round-down": self._round or None}

    def options(self) -> Mapping[str, str]:
        """Return the size it was given, and what that is rounded down to."""
        if self._size is None:
            return {}
        return {"size": str(self._size), "round-down": str(self._round)}


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    if not options:
        raise VhostBlkError(f"how small: write {FORM}")
    given = {key: parse_size(text, key) for key, text in options.items()}
    return Truncate(below, size=given.get("size"), round_down=given.get("round-down", 0))
