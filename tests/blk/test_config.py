import struct
from dataclasses import replace

import pytest

from vhostblk.blk.config import SIZE_MAX, ConfigSpace, geometry, layout
from vhostblk.blk.device import MAX_RANGES, BlkDevice
from vhostblk.errors import Refused
from vhostblk.spec.vhost_user import ConfigFlag
from vhostblk.spec.virtio_blk import CONFIG_SIZE, F_CONFIG_WCE, F_FLUSH

DEVICE = BlkDevice(
    capacity_sectors=0x0123456789,
    block_size=4096,
    physical_block_size=16384,
    min_io_size=8192,
    opt_io_size=65536,
    discard=True,
    discard_alignment=8192,
    max_discard=1 << 30,
    write_zeroes=True,
    may_unmap=True,
    max_write_zeroes=1 << 20,
    seg_max=126,
    num_queues=4,
)


def u32(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<I", data, offset)[0]
    return value


def test_layout_puts_every_field_at_its_offset() -> None:
    """
    Fields lie where the standard says, little-endian, with limits in sectors.

    Spec: virtio 1.3, 5.2.4.
    """
    data = layout(DEVICE, writeback=True)
    assert len(data) == CONFIG_SIZE
    assert data[:8] == (0x0123456789).to_bytes(8, "little")
    assert u32(data, 8) == SIZE_MAX
    assert u32(data, 12) == 126
    assert data[16:20] == struct.pack("<HBB", 16383, 16, 56)
    assert u32(data, 20) == 4096
    assert data[24:26] == bytes([2, 0])
    assert data[26:28] == bytes([2, 0])
    assert u32(data, 28) == 16
    assert data[32:36] == bytes([1, 0, 4, 0])
    assert u32(data, 36) == (1 << 30) // 512
    assert u32(data, 40) == MAX_RANGES
    assert u32(data, 44) == 16
    assert u32(data, 48) == (1 << 20) // 512
    assert u32(data, 52) == MAX_RANGES
    assert data[56:] == bytes([1, 0, 0, 0])


@pytest.mark.parametrize(
    ("sectors", "block", "seen"),
    [
        (1, 512, (2, 16, 63)),
        (16 * 63 * 2, 512, (2, 16, 63)),
        (16 * 63 * 100 + 5, 512, (100, 16, 63)),
        (16 * 63 * 16384, 512, (16383, 16, 63)),
        (1 << 50, 512, (16383, 16, 63)),
        (16 * 63 * 8 * 100, 4096, (800, 16, 63)),
        (16 * 63 * 8 * 100 + 8 * 63, 4096, (800, 16, 56)),
    ],
)
def test_geometry_is_what_qemus_own_device_says(
    sectors: int, block: int, seen: tuple[int, int, int]
) -> None:
    """
    16 heads of 63 sectors, 2 to 16383 cylinders; tracks of whole blocks where they would not be.

    Spec: virtio 1.3, 5.2.4.  Source: QEMU, hw/block/hd-geometry.c and hw/block/virtio-blk.c.
    """
    assert geometry(sectors, block) == seen
    data = layout(BlkDevice(capacity_sectors=sectors, block_size=block), writeback=True)
    assert struct.unpack_from("<HBB", data, 16) == seen


def test_layout_leaves_what_is_not_offered_zero() -> None:
    """A disk without discard and write zeroes has no limits of them."""
    data = layout(BlkDevice(capacity_sectors=8), writeback=False)
    assert data[36:56] == bytes(20)
    assert data[32] == 0


def test_size_max_lets_a_bouncing_guest_use_its_whole_slot_set() -> None:
    """Encrypted guests bounce through 256 KiB at most; the device must not ask for less."""
    assert SIZE_MAX >= 256 << 10


def test_layout_survives_a_physical_block_that_is_no_power_of_two() -> None:
    """The exponent cannot say 3 blocks, so it says 1."""
    assert layout(replace(DEVICE, physical_block_size=3 * 4096), writeback=True)[24] == 0


def test_read_pads_with_zeroes() -> None:
    """Reading all 256 bytes gives the 60 that exist, then zeroes; offsets are honoured."""
    config = ConfigSpace(DEVICE)
    whole = config.read(0, 256)
    assert whole == layout(DEVICE, writeback=True) + bytes(196)
    assert config.read(20, 4) == whole[20:24]
    assert config.read(0, 57) == whole[:57]


@pytest.mark.parametrize(("offset", "length"), [(0, 257), (256, 1), (0, 0), (0xFFFFFFFF, 4)])
def test_read_refuses_what_does_not_exist(offset: int, length: int) -> None:
    """A part that leaves the config space is refused, never cut short."""
    with pytest.raises(Refused):
        ConfigSpace(DEVICE).read(offset, length)


def test_write_turns_the_write_cache_off_and_on() -> None:
    """The guest may write one byte: the switch."""
    config = ConfigSpace(DEVICE)
    config.write(32, b"\0", ConfigFlag.WRITABLE)
    assert not config.writeback
    assert config.read(32, 1) == b"\0"
    config.write(32, b"\1", ConfigFlag.WRITABLE)
    assert config.writeback


@pytest.mark.parametrize(
    ("offset", "data", "flag"),
    [
        (0, bytes(8), ConfigFlag.WRITABLE),
        (32, bytes(2), ConfigFlag.WRITABLE),
        (31, bytes(1), ConfigFlag.WRITABLE),
        (32, b"", ConfigFlag.WRITABLE),
        (32, b"\2", ConfigFlag.WRITABLE),
        (32, b"\0", 2),
        (0, b"", ConfigFlag.LIVE_MIGRATION),
        (200, bytes(60), ConfigFlag.LIVE_MIGRATION),
        (0, bytes(32) + b"\7", ConfigFlag.LIVE_MIGRATION),
    ],
)
def test_write_refuses_anything_else(offset: int, data: bytes, flag: int) -> None:
    """Another offset, length, value or flag changes nothing."""
    config = ConfigSpace(DEVICE)
    with pytest.raises(Refused):
        config.write(offset, data, flag)
    assert config.writeback


def test_write_by_migration_takes_the_switch_only() -> None:
    """A migration may write every field; only the switch is taken."""
    config = ConfigSpace(DEVICE)
    config.write(0, bytes(CONFIG_SIZE), ConfigFlag.LIVE_MIGRATION)
    assert config.read(0, CONFIG_SIZE) == layout(DEVICE, writeback=False)
    config.write(0, bytes(8), ConfigFlag.LIVE_MIGRATION)
    assert config.read(0, 8) == layout(DEVICE, writeback=True)[:8]


def test_reset_restores_the_start_value() -> None:
    """A reset puts the switch back to what the disk started with."""
    config = ConfigSpace(replace(DEVICE, writeback=False))
    config.write(32, b"\1", ConfigFlag.WRITABLE)
    config.reset()
    assert not config.writeback


@pytest.mark.parametrize(
    ("acked", "start", "field", "expected"),
    [
        (0, True, True, True),
        (F_FLUSH, True, True, False),
        (F_FLUSH, True, False, False),
        (F_FLUSH, False, True, True),
        (F_CONFIG_WCE, True, False, True),
        (F_CONFIG_WCE, True, True, False),
        (F_CONFIG_WCE | F_FLUSH, False, True, False),
        (F_CONFIG_WCE | F_FLUSH, True, False, True),
    ],
)
def test_writethrough_follows_what_the_driver_acked(
    *, acked: int, start: bool, field: bool, expected: bool
) -> None:
    """
    A driver that can neither flush nor see the switch takes completed writes for stable.

    Spec: virtio 1.3, 5.2.6.2.
    """
    config = ConfigSpace(replace(DEVICE, writeback=start))
    config.write(32, bytes([field]), ConfigFlag.WRITABLE)
    assert config.writethrough(acked) is expected
