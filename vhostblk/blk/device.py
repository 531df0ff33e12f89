"""What a block device promises its driver, as plain values (virtio 1.3, 5.2.4)."""

from dataclasses import dataclass

MAX_RANGES = 16
"""Segments of one DISCARD or WRITE_ZEROES we take; a slot of the C core holds as many."""
MAX_TRANSFER = 512 << 20
"""Bytes of one IN or OUT we take: more than `seg_max` segments of the longest size offered.  A
driver can name the same page over and over; without a bound, one request could keep a worker busy
for minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkDevice:
    """
    The promises behind feature bits and config space.

    Args:
        capacity_sectors: Size of the disk in 512-byte sectors.
        block_size: Bytes every request is a multiple of; a power of two from 512.
        physical_block_size: Bytes the disk writes at once without reading first.
        min_io_size: Bytes of the smallest good request; 0 where unknown.
        opt_io_size: Bytes of the best request; 0 where unknown.
        read_only: Writes of every kind are refused.
        writeback: Start value of the config field: True where a cache may hold writes.
        discard: DISCARD is offered.
        discard_alignment: Bytes a useful discard is aligned to.
        max_discard: Bytes of one discard segment at most.
        write_zeroes: WRITE_ZEROES is offered.
        may_unmap: WRITE_ZEROES with UNMAP may leave a hole.
        max_write_zeroes: Bytes of one write-zeroes segment at most.
        seg_max: Data segments of a request at most.
        num_queues: Virtqueues.
        serial: Up to 20 bytes for GET_ID.
    """

    capacity_sectors: int
    block_size: int = 512
    physical_block_size: int = 512
    min_io_size: int = 0
    opt_io_size: int = 0
    read_only: bool = False
    writeback: bool = True
    discard: bool = False
    discard_alignment: int = 512
    max_discard: int = 1 << 30
    write_zeroes: bool = False
    may_unmap: bool = False
    max_write_zeroes: int = 1 << 30
    seg_max: int = 126
    num_queues: int = 1
    serial: bytes = b""
