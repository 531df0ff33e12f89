import struct

import pytest

from vhostblk.protocol import wire

SIZES = [
    (wire.HEADER, 12),
    (wire.U64, 8),
    (wire.VRING_STATE, 8),
    (wire.VRING_ADDR, 40),
    (wire.REGION, 32),
    (wire.REGION_COUNT, 8),
    (wire.SINGLE_REGION, 40),
    (wire.LOG_BASE, 16),
    (wire.CONFIG, 12),
    (wire.IOTLB, 32),
    (wire.INFLIGHT, 24),
    (wire.DEVICE_STATE, 8),
]


@pytest.mark.parametrize(("layout", "size"), SIZES)
def test_layout_has_the_size_seen_on_the_wire(layout: wire.Layout, size: int) -> None:
    """Sizes are those of the C structures, tail padding included."""
    assert layout.size == size


@pytest.mark.parametrize(("layout", "size"), SIZES)
def test_layout_refuses_any_other_size(layout: wire.Layout, size: int) -> None:
    """One byte less or more is not the layout."""
    for length in (size - 1, size + 1):
        with pytest.raises(ValueError, match="bytes given"):
            layout.unpack(bytes(length))


def test_layouts_read_and_write_native_numbers_in_order() -> None:
    """Golden bytes, packed by hand."""
    addr = struct.pack("=IIQQQQ", 1, 2, 3, 4, 5, 6)
    assert wire.VRING_ADDR.unpack(addr) == (1, 2, 3, 4, 5, 6)
    assert wire.VRING_ADDR.pack(1, 2, 3, 4, 5, 6) == addr
    inflight = struct.pack("=QQHHI", 1, 2, 3, 4, 0)
    assert wire.INFLIGHT.unpack(inflight) == (1, 2, 3, 4)
    assert wire.INFLIGHT.pack(1, 2, 3, 4) == inflight
    region = struct.pack("=QQQQQ", 99, 1, 2, 3, 4)
    assert wire.SINGLE_REGION.unpack(region) == (1, 2, 3, 4)
    iotlb = struct.pack("=QQQBB6s", 1, 2, 3, 4, 5, b"\xff" * 6)
    assert wire.IOTLB.unpack(iotlb) == (1, 2, 3, 4, 5)


def test_layout_returns_plain_ints() -> None:
    """No object of the parsing library leaves the file."""
    assert [type(value) for value in wire.HEADER.unpack(bytes(12))] == [int, int, int]


def test_largest_numbers_fit() -> None:
    """All bits of a u64 survive."""
    assert wire.U64.unpack(b"\xff" * 8) == ((1 << 64) - 1,)
    assert wire.U64.pack((1 << 64) - 1) == b"\xff" * 8
