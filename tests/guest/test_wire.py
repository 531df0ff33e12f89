"""
Golden bytes, written out from the standard's tables by hand.

Spec: vhost-user, "Message Specification" (little-endian machines).
"""

import pytest

from vhostblk.guest import GuestError, GuestMemory, Region, wire
from vhostblk.guest.layout import PAGE
from vhostblk.spec.vhost_user import Request


def test_message_header() -> None:
    """Request, flags, size: twelve bytes; version 1 in the low bits of the flags."""
    assert wire.message(Request.SET_OWNER) == bytes.fromhex("03000000 01000000 00000000")
    assert wire.message(Request.SET_FEATURES, b"abcdefgh", need_reply=True) == (
        bytes.fromhex("02000000 09000000 08000000") + b"abcdefgh"
    )
    assert wire.message(Request.GET_STATUS, b"\0" * 8, reply=True)[4:8] == b"\x05\0\0\0"


def test_vring_addr_has_used_before_avail() -> None:
    """The order on the wire is descriptor, used, available, log."""
    addr = wire.VringAddr(index=3, flags=1, desc=0x11, used=0x22, avail=0x33, log=0x44)
    assert wire.vring_addr(addr) == bytes.fromhex(
        "03000000 010000001100000000000000 2200000000000000 3300000000000000 4400000000000000"
    )


def test_mem_table() -> None:
    """A count, padding, then address, size, user address and offset of each region."""
    with GuestMemory([Region(0x10000, PAGE), Region(0x1_0000_0000, 2 * PAGE)]) as memory:
        assert wire.mem_table(memory.mappings) == bytes.fromhex(
            "02000000 00000000"
            "0000010000000000 0010000000000000 00000000ef7f0000 0000000000000000"
            "0000000001000000 0020000000000000 00000000df7f0000 0010000000000000"
        )


def test_single_region_is_padded_in_front() -> None:
    """ADD_MEM_REG is 40 bytes: eight of padding, then the region."""
    with GuestMemory([Region(0x10000, PAGE)]) as memory:
        assert wire.single_region(memory.mappings[0]) == bytes.fromhex(
            "00000000000000000000010000000000 0010000000000000 00000000ef7f0000 0000000000000000"
        )


def test_config() -> None:
    """Offset, size and flags, then as many bytes as the size says."""
    assert wire.config(32, b"\1", 1) == bytes.fromhex("20000000 01000000 01000000 01")


def test_parse_u64_wants_eight_bytes() -> None:
    """A reply of another size is refused, not padded."""
    assert wire.parse_u64(bytes.fromhex("0102000000000080")) == 0x8000000000000201
    for size in (0, 4, 7, 9):
        with pytest.raises(GuestError, match=f"has {size} bytes"):
            wire.parse_u64(bytes(size))


def test_request_name_knows_the_unknown() -> None:
    """Errors name messages by the standard's name, or by number."""
    assert wire.request_name(11) == "GET_VRING_BASE"
    assert wire.request_name(999) == "request 999"
