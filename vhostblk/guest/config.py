"""
The config space, unpacked from the standard.

Spec: virtio 1.3, 5.2.4.
"""

import struct
from dataclasses import dataclass

LAYOUT = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkConfig:
    """
    The config space; names and units are the standard's.

    Args:
        capacity: Sectors.
        size_max: Bytes in one descriptor at most.
        seg_max: Data descriptors in one request at most.
        cylinders: Of the geometry nobody uses.
        heads: The same.
        sectors: The same.
        blk_size: Bytes of a logical block.
        physical_block_exp: Binary logarithm of the logical blocks in a physical one.
        alignment_offset: Logical blocks before the first aligned one.
        min_io_size: Logical blocks.
        opt_io_size: Logical blocks.
        writeback: 1: a write cache that needs FLUSH; 0: writes are durable when done.
        num_queues: How many queues the device has.
        max_discard_sectors: Sectors.
        max_discard_seg: Ranges in one request.
        discard_sector_alignment: Sectors.
        max_write_zeroes_sectors: Sectors.
        max_write_zeroes_seg: Ranges in one request.
        write_zeroes_may_unmap: 1: WRITE_ZEROES with UNMAP can deallocate.
    """

    capacity: int
    size_max: int
    seg_max: int
    cylinders: int
    heads: int
    sectors: int
    blk_size: int
    physical_block_exp: int
    alignment_offset: int
    min_io_size: int
    opt_io_size: int
    writeback: int
    num_queues: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: int

    @classmethod
    def parse(cls, data: bytes) -> "BlkConfig":
        """Unpack the first 60 bytes of the config space."""
        return cls(**dict(zip(cls.__slots__, LAYOUT.unpack(data[: LAYOUT.size]), strict=True)))
