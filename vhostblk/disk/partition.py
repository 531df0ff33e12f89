"""A partition of a disk, as a disk of its own; run by the C core."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import Calls, run
from vhostblk.disk.given import check_number
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.numbers import parse_number
from vhostblk.disk.parts import MAX_PARTS, Part, find
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"number"})
FORM = "partition:number=N"


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
    A partition of the disk below, by its GPT or MBR as it is when the disk is opened.

    Args:
        below: Any disk.
        number: Which, from 1; those inside an extended partition have 5 and more.

    Raises:
        VhostBlkError: No partition has that number.
    """

    name: ClassVar[str] = "partition"

    def __init__(self, below: object, *, number: int) -> None:
        super().__init__(below)
        self._number = check_number(number, "number", least=1, most=MAX_PARTS)
        self._part = Part(0, 0)

    async def open(self) -> None:
        """
        Open the disk below, and find the partition.

        Raises:
            VhostBlkError: There is none of that number, or what is there cannot be a table.
        """
        await super().open()
        info = self.under.info()
        try:
            self._part = await find(
                lambda offset, length: read_below(self, offset, length),
                number=self._number,
                size=info.size,
                block_size=info.block_size,
            )
        except BaseException:
            await super().close()
            raise

    def stage(self) -> PartitionStage:
        """Return where the partition is."""
        return PartitionStage(offset=self._part.offset, size=self._part.size)

    def info(self) -> DiskInfo:
        """Return what the disk below is, but for the size."""
        return replace(super().info(), size=self._part.size)

    def resize(self, size: int) -> None:  # noqa: ARG002 - the contract's
        """Refuse: the table says how large it is."""
        raise VhostBlkError("a partition is as large as its table says: change that and serve anew")

    def settings(self) -> Mapping[str, Value]:
        """Return which it is, and where."""
        return {"number": self._number, "offset": self._part.offset, "size": self._part.size}


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    if "number" not in options:
        raise VhostBlkError(f"which partition: write {FORM}")
    number = parse_number(options["number"], "number", least=1)
    if number > MAX_PARTS:
        raise VhostBlkError(f"number={number}: no table has more than {MAX_PARTS}")
    return Partition(below, number=number)


async def read_below(layer: StageLayer, offset: int, length: int) -> bytes:
    """
    Read what a layer of the core has below it, while that serves nothing yet.

    Layers of the core are stepped over; those that show a part are heeded.
    """
    disk: object = layer.below
    while isinstance(disk, StageLayer):
        stage = disk.stage()
        offset += stage.offset if isinstance(stage, PartitionStage) else 0
        disk = disk.below
    data = bytearray(length)
    with memoryview(data) as view:
        await run(Calls(disk).read, offset, [view])
    return bytes(data)
