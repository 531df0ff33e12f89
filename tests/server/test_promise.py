import pytest

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.api import DiskInfo
from vhostblk.disk.call import Abilities
from vhostblk.errors import VhostBlkError
from vhostblk.server.promise import WRITTEN_ZEROES, DeviceOptions, promise
from vhostblk.server.pump import Opened

ALL = Abilities(
    write=True, flush=True, discard=True, write_zeroes=True, fua=True, block_status=True
)
LEAST = Abilities(
    write=False, flush=False, discard=False, write_zeroes=False, fua=False, block_status=False
)
WRITER = Abilities(
    write=True, flush=False, discard=False, write_zeroes=False, fua=False, block_status=False
)
MIB = 1 << 20


def promised(
    info: DiskInfo, can: Abilities, options: DeviceOptions | None = None, *, native: bool = False
) -> BlkDevice:
    opened = Opened(info=info, can=can, writeback=True, native=native)
    return promise(opened, options or DeviceOptions())


def test_a_disk_that_can_everything_is_promised_as_such() -> None:
    """Sizes, alignments and limits are the disk's."""
    info = DiskInfo(
        size=MIB,
        block_size=512,
        physical_block_size=4096,
        optimal_io_size=65536,
        discard_alignment=8192,
        max_discard=MIB + 100,
        may_unmap=True,
    )
    blk = promised(info, ALL)
    assert (blk.capacity_sectors, blk.block_size, blk.physical_block_size) == (2048, 512, 4096)
    assert (blk.opt_io_size, blk.discard_alignment, blk.max_discard) == (65536, 8192, MIB)
    assert blk.discard
    assert blk.write_zeroes
    assert blk.may_unmap
    assert not blk.read_only


def test_a_disk_without_write_is_read_only() -> None:
    """Nothing that writes is offered."""
    blk = promised(DiskInfo(size=MIB), LEAST)
    assert blk.read_only
    assert not blk.discard
    assert not blk.write_zeroes


def test_the_operator_may_make_it_read_only() -> None:
    """What writes is not offered, whatever the disk can."""
    blk = promised(DiskInfo(size=MIB), ALL, DeviceOptions(read_only=True))
    assert blk.read_only
    assert not blk.discard
    assert not blk.write_zeroes


def test_zeroes_are_offered_where_they_can_be_written() -> None:
    """A Python disk's zeroes are written in pieces; the C core has only what the disk has."""
    blk = promised(DiskInfo(size=MIB, may_unmap=True), WRITER)
    assert blk.write_zeroes
    assert blk.max_write_zeroes == WRITTEN_ZEROES
    assert not blk.may_unmap
    assert not promised(DiskInfo(size=MIB), WRITER, native=True).write_zeroes


def test_a_larger_block_size_may_be_asked_for() -> None:
    """It counts for alignments, too; a smaller one, or one that does not fit, is refused."""
    blk = promised(DiskInfo(size=MIB), ALL, DeviceOptions(block_size=4096))
    assert (blk.block_size, blk.physical_block_size, blk.discard_alignment) == (4096, 4096, 4096)
    for info, asked in (
        (DiskInfo(size=MIB, block_size=4096), 512),
        (DiskInfo(size=MIB), 1000),
        (DiskInfo(size=MIB + 512), 4096),
    ):
        with pytest.raises(VhostBlkError, match="block_size"):
            promised(info, ALL, DeviceOptions(block_size=asked))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("serial", "x" * 21),
        ("serial", "ü" * 11),
        ("num_queues", 0),
        ("num_queues", 65),
        ("queue_size", 0),
        ("queue_size", 100),
        ("queue_size", 2048),
        ("drain_seconds", 0),
        ("drain_seconds", float("nan")),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, value: object) -> None:
    """Each is refused by its name before a disk is touched."""
    with pytest.raises(VhostBlkError, match=name):
        DeviceOptions(**{name: value})  # type: ignore[arg-type]
