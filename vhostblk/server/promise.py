"""From what a disk says of itself and what was asked for to what the device promises."""

from dataclasses import dataclass, field, replace
from math import inf

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.api import DiskInfo
from vhostblk.disk.grammar import MAX_SIZE
from vhostblk.engine.api import OnError
from vhostblk.errors import VhostBlkError
from vhostblk.memory.ranges import OnViolation
from vhostblk.server.iommu import MISS_SECONDS
from vhostblk.server.policy import Confidential, IommuMode, SharedRanges
from vhostblk.server.pump import Opened
from vhostblk.server.slow import SLOW_SECONDS
from vhostblk.spec.virtio_blk import SECTOR_SIZE, SERIAL_SIZE
from vhostblk.spec.virtio_ring import MAX_QUEUE_SIZE

MAX_QUEUES = 64
MAX_BLOCK_SIZE = 1 << 20
DRAIN_SECONDS = 20.0
"""
How long a drain may take.  QEMU waits for GET_VRING_BASE without a bound of its own, but with the
whole VM; a failover of network storage takes some seconds, and service managers lose patience
with a program that ends after 30 to 90.
"""
WRITTEN_ZEROES = 16 << 20
"""Bytes of the longest WRITE_ZEROES where zeroes must be written one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """
    What an operator asks of a device.

    Args:
        name: What log lines call it.
        serial: For GET_ID, 20 bytes at most.
        num_queues: 1 to 64.
        queue_size: Descriptors a ring may have, a power of two up to 1024.
        read_only: Refuse writes, whatever the disk can.
        block_size: Bytes every request is a multiple of; 0: the disk's own.
        drain_seconds: Bound of every drain, more than 0.
        miss_seconds: Bound of every wait for a translation, more than 0.
        confidential: How a guest is treated whose memory may be its own.
        shared_ranges: For *confidential* ``require``: where requests may go.
        on_violation: For the same: what becomes of one that goes elsewhere.
        iommu: When addresses go through the front-end's IOMMU.
        access_platform: Offer VIRTIO_F_ACCESS_PLATFORM (bit 33).
        packed: Offer packed rings, where the data plane has them.
        ring_reset: Offer VIRTIO_F_RING_RESET (bit 40), for a front-end that tells of it.
        on_error: What becomes of a request that the disk fails.
        slow_request: Seconds from which on a request that is under way is told of; 0: none is.

    Raises:
        VhostBlkError: One of them cannot be.
    """

    name: str = "device"
    serial: str = ""
    num_queues: int = 1
    queue_size: int = MAX_QUEUE_SIZE
    read_only: bool = False
    block_size: int = 0
    drain_seconds: float = DRAIN_SECONDS
    miss_seconds: float = MISS_SECONDS
    confidential: Confidential = Confidential.AUTO
    shared_ranges: SharedRanges = field(default_factory=SharedRanges)
    on_violation: OnViolation = OnViolation.FAIL
    iommu: IommuMode = IommuMode.AUTO
    access_platform: bool = True
    packed: bool = True
    ring_reset: bool = False
    on_error: OnError = OnError.REPORT
    slow_request: float = SLOW_SECONDS

    def __post_init__(self) -> None:
        if len(self.serial.encode()) > SERIAL_SIZE:
            raise VhostBlkError(f"serial {self.serial!r} is longer than {SERIAL_SIZE} bytes")
        if not 1 <= self.num_queues <= MAX_QUEUES:
            raise VhostBlkError(f"num_queues is 1 to {MAX_QUEUES}, not {self.num_queues}")
        if not 1 <= self.queue_size <= MAX_QUEUE_SIZE or self.queue_size.bit_count() != 1:
            raise VhostBlkError(
                f"queue_size is a power of two up to {MAX_QUEUE_SIZE}, not {self.queue_size}"
            )
        if not self.drain_seconds > 0:
            raise VhostBlkError(f"drain_seconds is more than 0, not {self.drain_seconds}")
        if not 0 <= self.slow_request < inf:
            raise VhostBlkError(f"slow_request is 0 or more, not {self.slow_request}")
        if not self.miss_seconds > 0:
            raise VhostBlkError(f"miss_seconds is more than 0, not {self.miss_seconds}")
        self._check_confidential()

    def _check_confidential(self) -> None:
        if self.confidential is Confidential.REQUIRE and not self.shared_ranges:
            raise VhostBlkError(
                "confidential require needs to know what the guest shares: give shared ranges, "
                "as the guest's dmesg prints them ('software IO TLB: mapped [mem ...]'), or "
                "learn=10000"
            )
        if self.confidential is not Confidential.REQUIRE and self.shared_ranges:
            raise VhostBlkError(
                f"shared ranges are not looked at with confidential {self.confidential}: "
                "give confidential require, too"
            )
        if self.confidential is not Confidential.REQUIRE and self.on_violation != OnViolation.FAIL:
            raise VhostBlkError(
                f"with confidential {self.confidential} nothing is a violation: "
                "give confidential require, too"
            )


def promise(opened: Opened, options: DeviceOptions) -> BlkDevice:
    """
    Say what a device promises its driver.

    Args:
        opened: The disk.
        options: What the operator asks.

    Raises:
        VhostBlkError: The block size asked for does not fit the disk.
    """
    info, can = opened.info, opened.can
    block = _block_size(info, options.block_size)
    writable = can.write and not options.read_only
    # A disk the C core serves has only its own zeroes; for others `Calls` writes them.
    zeroes = writable and (can.write_zeroes or not opened.native)
    max_zeroes = info.max_write_zeroes if can.write_zeroes else WRITTEN_ZEROES
    return BlkDevice(
        capacity_sectors=info.size // SECTOR_SIZE,
        block_size=block,
        physical_block_size=max(block, info.physical_block_size),
        opt_io_size=info.optimal_io_size,
        read_only=not writable,
        writeback=opened.writeback,
        discard=writable and can.discard,
        discard_alignment=max(block, info.discard_alignment),
        max_discard=info.max_discard - info.max_discard % block,
        write_zeroes=zeroes,
        may_unmap=zeroes and can.write_zeroes and info.may_unmap,
        max_write_zeroes=max_zeroes - max_zeroes % block,
        num_queues=options.num_queues,
        serial=options.serial.encode(),
    )


def keep(old: BlkDevice, new: BlkDevice) -> BlkDevice:
    """
    Say what a device goes on to promise when it gets another disk: what it has promised.

    A driver reads its capacity again when it is told to, and nothing else.

    Args:
        old: What was promised.
        new: What would be of the other disk.

    Raises:
        VhostBlkError: The other disk cannot keep it.
    """
    for lacks, what in (
        (new.read_only and not old.read_only, "writes"),
        (old.read_only and not new.read_only, "refusal of writes"),
        (old.discard and not new.discard, "discards"),
        (old.write_zeroes and not new.write_zeroes, "writes of zeroes"),
    ):
        if lacks:
            raise VhostBlkError(f"the guest was promised {what}, which the other disk has not")
    if old.block_size % new.block_size:
        raise VhostBlkError(
            f"the guest was promised blocks of {old.block_size} bytes, "
            f"and the other disk has {new.block_size}"
        )
    for name, longest, most in (
        ("discards", old.max_discard if old.discard else 0, new.max_discard),
        ("writes of zeroes", old.max_write_zeroes if old.write_zeroes else 0, new.max_write_zeroes),
    ):
        if longest > most:
            raise VhostBlkError(
                f"the guest was promised {name} of up to {longest} bytes, "
                f"and the other disk has up to {most}"
            )
    return resized(old, new.capacity_sectors * SECTOR_SIZE)


def resized(blk: BlkDevice, size: int) -> BlkDevice:
    """
    Say what a device promises when its disk has another size.

    Raises:
        VhostBlkError: It is no disk's, or not of whole blocks.
    """
    if not 0 < size <= MAX_SIZE:
        raise VhostBlkError(f"a disk has {blk.block_size} bytes or more, and less than 8E: {size}")
    if size % blk.block_size:
        raise VhostBlkError(
            f"{size} bytes are not a multiple of the guest's {blk.block_size}-byte blocks: "
            f"the next are {size - size % blk.block_size} and "
            f"{size - size % blk.block_size + blk.block_size}"
        )
    return replace(blk, capacity_sectors=size // SECTOR_SIZE)


def _block_size(info: DiskInfo, asked: int) -> int:
    if asked == 0:
        return info.block_size
    if not info.block_size <= asked <= MAX_BLOCK_SIZE or asked.bit_count() != 1:
        raise VhostBlkError(
            f"block_size is a power of two from the disk's {info.block_size} "
            f"to {MAX_BLOCK_SIZE}, not {asked}"
        )
    if info.size % asked:
        raise VhostBlkError(
            f"the disk's {info.size} bytes are no multiple of block_size {asked}: "
            f"choose a smaller one, or a disk of {info.size - info.size % asked} bytes"
        )
    return asked
