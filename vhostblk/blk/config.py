"""
The config space: what the driver reads about the device, and the one field it may write.

Source: virtio 1.3, 5.2.4; vhost-user, GET_CONFIG and SET_CONFIG.
"""

import errno
import struct

from vhostblk.blk.device import MAX_RANGES, BlkDevice
from vhostblk.errors import Refused
from vhostblk.spec.vhost_user import MAX_CONFIG_SIZE, ConfigFlag
from vhostblk.spec.virtio_blk import (
    CONFIG_SIZE,
    CONFIG_WRITEBACK_OFFSET,
    F_CONFIG_WCE,
    F_FLUSH,
    SECTOR_SIZE,
)

SIZE_MAX = 4 << 20
"""Bytes of one segment.  A guest that bounces its I/O caps itself at 256 KiB; less than that here
would cap it further, and 0 would mean nothing."""

HEADS, SECTORS, MAX_CYLINDERS = 16, 63, 16383
"""The geometry that every disk without one has had since ATA."""

# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp,
# alignment_offset, min_io_size, opt_io_size, writeback, num_queues, max_discard_sectors,
# max_discard_seg, discard_sector_alignment, max_write_zeroes_sectors, max_write_zeroes_seg,
# write_zeroes_may_unmap
_LAYOUT = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
_U16_MAX = (1 << 16) - 1
_U32_MAX = (1 << 32) - 1


class ConfigSpace:
    """
    The config bytes of a device and its write cache switch.

    Args:
        device: What it promises.
    """

    def __init__(self, device: BlkDevice) -> None:
        self.device = device
        self.writeback = device.writeback

    def read(self, offset: int, length: int) -> bytes:
        """
        Return a part of the config space.

        Args:
            offset: First byte.
            length: Bytes; those behind the last field are zero.

        Raises:
            Refused: The part ends behind byte 256, or is empty.
        """
        if length < 1 or offset < 0 or offset + length > MAX_CONFIG_SIZE:
            raise Refused(errno.EINVAL, f"config space has no bytes {offset} to {offset + length}")
        whole = layout(self.device, writeback=self.writeback).ljust(MAX_CONFIG_SIZE, b"\0")
        return whole[offset : offset + length]

    def write(self, offset: int, data: bytes, flag: int) -> None:
        """
        Change the write cache switch; nothing else ever changes.

        Args:
            offset: First byte.
            data: New bytes.
            flag: A `ConfigFlag`.  WRITABLE: the guest writes, one byte, the switch.
                LIVE_MIGRATION: any fields may be there, and the switch among them is taken.

        Raises:
            Refused: Any other write, or a switch that is neither 0 nor 1.

        Spec: vhost-user, "Virtio device config space".
        """
        end = offset + len(data)
        if flag == ConfigFlag.WRITABLE:
            if (offset, len(data)) != (CONFIG_WRITEBACK_OFFSET, 1):
                raise Refused(errno.EINVAL, f"config bytes {offset} to {end} are read-only")
        elif flag != ConfigFlag.LIVE_MIGRATION:
            raise Refused(errno.EINVAL, f"SET_CONFIG with unknown flags {flag:#x}")
        if not data or offset < 0 or end > MAX_CONFIG_SIZE:
            raise Refused(errno.EINVAL, f"config space has no bytes {offset} to {end}")
        if offset <= CONFIG_WRITEBACK_OFFSET < end:
            self._switch(data[CONFIG_WRITEBACK_OFFSET - offset])

    def _switch(self, value: int) -> None:
        if value not in (0, 1):
            raise Refused(errno.EINVAL, f"writeback is 0 or 1, not {value}")
        self.writeback = bool(value)

    def reset(self) -> None:
        """Put the write cache switch back, as a device reset does."""
        self.writeback = self.device.writeback

    def writethrough(self, acked: int) -> bool:
        """
        Say whether every write must be stable before its status.

        Args:
            acked: Feature bits of the driver.

        Returns:
            By the switch where the driver can see it; by its start value where the driver can
            only flush; True where it can do neither and so takes every completed write for stable.

        Spec: virtio 1.3, 5.2.6.2.
        """
        if acked & F_CONFIG_WCE:
            return not self.writeback
        if acked & F_FLUSH:
            return not self.device.writeback
        return True


def layout(device: BlkDevice, *, writeback: bool) -> bytes:
    """
    Return the config space as the driver reads it.

    Args:
        device: What it promises.
        writeback: Value of the switch.

    Returns:
        60 bytes.
    """
    block = device.block_size
    data = _LAYOUT.pack(
        device.capacity_sectors,
        SIZE_MAX,
        device.seg_max,
        *geometry(device.capacity_sectors, block),
        block,
        _exponent(device.physical_block_size, block),
        0,
        min(device.min_io_size // block, _U16_MAX),
        min(device.opt_io_size // block, _U32_MAX),
        writeback,
        device.num_queues,
        *_limits(device.discard, device.max_discard),
        device.discard_alignment // SECTOR_SIZE if device.discard else 0,
        *_limits(device.write_zeroes, device.max_write_zeroes),
        device.may_unmap,
    )
    assert len(data) == CONFIG_SIZE  # noqa: S101 - our own layout, not anybody's input
    return data


def geometry(sectors: int, block: int) -> tuple[int, int, int]:
    """
    Return cylinders, heads and sectors: what QEMU's own device says of a disk it knows nothing of.

    Nothing but firmware's and DOS's old calls cares.

    Args:
        sectors: Size of the disk.
        block: Bytes of a logical block; tracks that end inside of one are made shorter.

    Source: QEMU, hw/block/hd-geometry.c, guess_chs_for_size(), and hw/block/virtio-blk.c,
    virtio_blk_update_config().
    """
    cylinders = min(max(sectors // (HEADS * SECTORS), 2), MAX_CYLINDERS)
    mask = block // SECTOR_SIZE - 1
    fits = sectors * SECTOR_SIZE // HEADS // SECTORS % block == 0
    return cylinders, HEADS, SECTORS if fits else SECTORS & ~mask


def _exponent(physical: int, block: int) -> int:
    """Return log2 of logical blocks in a physical one; 0 where that is no power of two."""
    ratio, rest = divmod(physical, block)
    return ratio.bit_length() - 1 if rest == 0 and ratio.bit_count() == 1 else 0


def _limits(offered: bool, longest: int) -> tuple[int, int]:  # noqa: FBT001 - two callers, here
    """Return sectors of one range and number of ranges, 0 where the command is not offered."""
    return (min(longest // SECTOR_SIZE, _U32_MAX), MAX_RANGES) if offered else (0, 0)
