"""A load to put on a block device, and what a back-end has to be like to take it."""

from dataclasses import dataclass
from typing import Literal

from vhostblk.guest.config import BlkConfig
from vhostblk.guest.errors import GuestError
from vhostblk.guest.negotiate import DEFAULT_FEATURES, DEFAULT_PROTOCOL_FEATURES, Agreement, Wanted
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature

Op = Literal["read", "write", "rw"]
Order = Literal["rand", "seq"]
Wait = Literal["block", "poll"]

USUAL_QUEUE_SIZE = 256
"""Descriptors of a queue, unless the load needs more of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    What to do to a disk.

    Args:
        op: ``read``, ``write``, or ``rw``: both.
        mix: Of ``rw``, percent of the requests that read.
        bytes: Of a request: a block, whole sectors.
        depth: Requests in flight on each queue.
        queues: How many; each has a thread and a part of the disk of its own.
        seconds: How long to measure.
        warm_up: Seconds before that, not counted.
        requests: Instead of both: how many requests to make in all.
        order: Blocks at random, or one behind the other.
        wait: ``block``: sleep until the device calls; ``poll``: look at the ring.
        packed: Packed rings, or split ones.
        event_idx: Let the device say from which request on it wants a kick, if it can.
        indirect: One descriptor of the ring for each request, if it can.
        queue_size: Descriptors of each queue; ``None``: as many as it takes, but no less than 256.
        size: Bytes of the disk to use, from its start; ``None``: all.
        seed: Of the random order, not 0.
        cpus: Where the queues' threads run, in turn; empty: anywhere.
        verify: Write all blocks before, check whatever is read, read all blocks afterwards.
        tag: Tells what ``verify`` writes from what is left of another run; 32 bits.
        timeout: Seconds that a message, or the next answer to any request, may take.
    """

    op: Op = "read"
    mix: int = 70
    bytes: int = 4096
    depth: int = 32
    queues: int = 1
    seconds: float = 5.0
    warm_up: float = 0.5
    requests: int | None = None
    order: Order = "rand"
    wait: Wait = "block"
    packed: bool = False
    event_idx: bool = True
    indirect: bool = True
    queue_size: int | None = None
    size: int | None = None
    seed: int = 1
    cpus: tuple[int, ...] = ()
    verify: bool = False
    tag: int = 0
    timeout: float = 10.0

    @property
    def writes(self) -> bool:
        """Tell whether what is on the disk is lost."""
        return self.op != "read" or self.verify

    @property
    def read_percent(self) -> int:
        """Return how many of a hundred requests read."""
        return {"read": 100, "write": 0, "rw": self.mix}[self.op]

    def wanted(self) -> Wanted:
        """Return what to ask a back-end for."""
        features = DEFAULT_FEATURES | (vr.F_RING_PACKED if self.packed else 0)
        features &= ~(0 if self.event_idx else vr.F_EVENT_IDX)
        features &= ~(0 if self.indirect else vr.F_INDIRECT_DESC)
        # Nobody would hear what it says on a channel of its own.
        protocol = DEFAULT_PROTOCOL_FEATURES & ~ProtocolFeature.BACKEND_REQ
        return Wanted(queues=self.queues, features=features, protocol_features=protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    How a load goes onto one device.

    Args:
        load: Which.
        event_idx: EVENT_IDX is in force.
        indirect: Requests go into indirect tables.
        piece: Bytes of data in one descriptor at most.
        queue_size: Descriptors of each queue.
        blocks: How many of the disk are used.
    """

    load: Load
    event_idx: bool
    indirect: bool
    piece: int
    queue_size: int
    blocks: int

    def share(self, queue: int) -> tuple[int, int]:
        """Return the first block of a queue's part of the disk, and how many blocks that is."""
        first, end = (self.blocks * i // self.load.queues for i in (queue, queue + 1))
        return first, end - first

    def requests(self, queue: int) -> int:
        """Return how many requests a queue is to make; 0: as many as time allows."""
        wanted = self.load.requests or 0
        first, end = (wanted * i // self.load.queues for i in (queue, queue + 1))
        return end - first


def make_plan(load: Load, agreement: Agreement, config: BlkConfig | None) -> Plan:
    """
    Fit a load to a device.

    Args:
        load: What to do.
        agreement: What was agreed on with the back-end.
        config: What it says of its disk; ``None``: it has no config space.

    Raises:
        GuestError: The device cannot take it.
    """
    has = agreement.features
    if load.packed and not has & vr.F_RING_PACKED:
        raise GuestError("the back-end offers no packed rings")
    if load.writes and has & vb.F_RO:
        raise GuestError("the disk is read-only: it can only be read, and not verified")
    piece = load.bytes
    if config is not None:
        _check_blocks(load, config, has)
        if has & vb.F_SIZE_MAX and config.size_max:
            piece = max(min(piece, config.size_max // vb.SECTOR_SIZE * vb.SECTOR_SIZE), 1)
        pieces = -(-load.bytes // piece)
        if has & vb.F_SEG_MAX and pieces > config.seg_max > 0:
            raise GuestError(
                f"a request of {load.bytes} bytes has {pieces} pieces, of {piece} bytes at most; "
                f"the back-end takes {config.seg_max}"
            )
    indirect = bool(has & vr.F_INDIRECT_DESC)
    return Plan(
        load=load,
        event_idx=bool(has & vr.F_EVENT_IDX),
        indirect=indirect,
        piece=piece,
        queue_size=_queue_size(load, 1 if indirect else 2 + -(-load.bytes // piece)),
        blocks=_blocks(load, None if config is None else config.capacity * vb.SECTOR_SIZE),
    )


def _check_blocks(load: Load, config: BlkConfig, features: int) -> None:
    block = config.blk_size if features & vb.F_BLK_SIZE else vb.SECTOR_SIZE
    if load.bytes < 1 or load.bytes % max(block, vb.SECTOR_SIZE):
        raise GuestError(f"the disk has blocks of {block} bytes; {load.bytes} are no whole blocks")


def _queue_size(load: Load, chain: int) -> int:
    needed = load.depth * chain
    size = load.queue_size or max(1 << (needed - 1).bit_length(), USUAL_QUEUE_SIZE)
    if needed > size or size > 1 << 15:
        most = (load.queue_size or 1 << 15) // chain
        raise GuestError(
            f"{load.depth} requests of {chain} descriptors each do not fit into a queue; {most} do"
        )
    if not load.packed and size & (size - 1):
        raise GuestError(f"a split ring cannot have {size} descriptors: a power of two")
    return size


def _blocks(load: Load, capacity: int | None) -> int:
    if capacity is None and load.size is None:
        raise GuestError("the back-end does not say how large its disk is (no CONFIG): say it")
    size = capacity if load.size is None else load.size
    if size is None or (capacity is not None and size > capacity):
        raise GuestError(f"the disk has {capacity} bytes, not {size}")
    blocks = size // load.bytes
    if load.requests is not None and load.requests < load.queues:
        raise GuestError(f"{load.requests} requests are not one for each of {load.queues} queues")
    # Verified, a block is in flight once at a time.
    needed = load.queues * (load.depth if load.verify else 1)
    if blocks < needed:
        raise GuestError(
            f"{size} bytes are {blocks} blocks of {load.bytes} bytes; this load needs {needed}"
        )
    return blocks
