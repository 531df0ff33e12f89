"""A part of a disk, as a disk of its own; run by the C core."""

from dataclasses import dataclass, replace
from typing import ClassVar

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.stage import StageLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStage:
    """
    What the core is to do.

    Args:
        offset: First byte of the disk below.
        size: Bytes.
    """

    offset: int
    size: int


class Partition(StageLayer):
    """
    Bytes *offset* to *offset* + *size* of the disk below.

    Args:
        below: Any disk.
        offset: First byte.
        size: Bytes.
    """

    name: ClassVar[str] = "partition"

    def __init__(self, below: object, *, offset: int, size: int) -> None:
        super().__init__(below)
        self._stage = PartitionStage(offset=offset, size=size)

    def stage(self) -> PartitionStage:
        """Return where the part is."""
        return self._stage

    def info(self) -> DiskInfo:
        """Return what the disk below is, but for the size."""
        return replace(super().info(), size=self._stage.size)
