"""
The inflight region as the front-end sees it, in golden bytes.

Spec: vhost-user, "Inflight I/O tracking".
"""

import contextlib
from collections.abc import Iterator

import pytest
from guest_peers.scripted import scripted

from vhostblk.guest import FrontEnd, GuestError, Inflight
from vhostblk.guest.inflight import Maker, stride
from vhostblk.spec.vhost_user import Request


@pytest.fixture
def region() -> Iterator[Inflight]:
    with contextlib.closing(Inflight.make("dpdk", queues=2, queue_size=4, offset=4096)) as made:
        yield made


def test_message_in_golden_bytes(region: Inflight) -> None:
    """Sizes are 64 bits wide, numbers 16, and the message has 24 bytes with its padding."""
    assert region.pack() == bytes.fromhex("0001000000000000 0010000000000000 0200 0400 00000000")
    assert Inflight.parse(region.pack(), region.fd) == region
    with pytest.raises(GuestError, match="has 20 bytes, not 24"):
        Inflight.parse(region.pack()[:20], region.fd)


@pytest.mark.parametrize(
    ("maker", "size", "split", "packed"),
    [
        ("libvhost-user", 128, 2112, 4160),
        ("libvhost-user", 1, 64, 64),
        ("libvhost-user", 4, 128, 192),
        ("dpdk", 128, 2112, 4160),
        ("dpdk", 4, 128, 192),
        ("yc", 128, 2064, 4160),
        ("yc", 4, 80, 192),
    ],
)
def test_strides_are_those_of_others(maker: Maker, size: int, split: int, packed: int) -> None:
    """The part of a queue is as long as its maker makes it."""
    assert (stride(maker, size), stride(maker, size, packed=True)) == (split, packed)


def test_parts_lie_where_the_stride_says(region: Inflight) -> None:
    """The part of the second queue begins one stride further, behind the offset."""
    region.write(1, 10, b"\4\0")
    assert region.read(1, 8, 4) == b"\0\0\4\0"
    assert (region.desc_num(0), region.desc_num(1)) == (0, 4)


def test_what_is_marked_in_a_split_part(region: Inflight) -> None:
    """Heads come in the order of their counters, not of their numbers."""
    region.write(0, 0, bytes.fromhex("0000000000000000 0100 0400 0000 0000"))
    for head, counter in ((2, 9), (0, 11), (3, 10)):
        region.write(0, 16 + 16 * head, b"\1" + bytes(7) + counter.to_bytes(8, "little"))
    region.write(0, 16 + 16 * 3, b"\0")  # done
    assert region.marked(0) == [2, 0]


def test_what_is_marked_in_a_packed_part() -> None:
    """The id of a chain is in the entry its first one names as the last."""
    made = Inflight.make("dpdk", queues=1, queue_size=4, packed=True)
    with contextlib.closing(made):
        made.write(0, 8, b"\1\0\4\0")
        # inflight, pad, next, last, num, counter; id, flags, len, addr
        first = bytes.fromhex("01 00 0100 0100 0200 0500000000000000 ffff 0100") + bytes(12)
        second = bytes.fromhex("00 00 0200 0000 0000 0000000000000000 0700 0200") + bytes(12)
        made.write(0, 32, first + second)
        assert made.marked(0, packed=True) == [7]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "GET_INFLIGHT_FD was answered"),
        (bytes(20), "GET_INFLIGHT_FD was answered"),
        (b"\1" + bytes(23), "GET_INFLIGHT_FD was answered"),
        (bytes(24), "makes no inflight region for 1 queues of 4 descriptors"),
    ],
)
def test_a_reply_without_a_region_is_an_error(payload: bytes, says: str) -> None:
    """24 bytes and one descriptor, or the back-end is not believed; all zeros are a refusal."""
    with scripted({Request.GET_INFLIGHT_FD: payload}) as backend:
        frontend = FrontEnd.over(backend.front)
        with pytest.raises(GuestError, match=says):
            frontend.get_inflight_fd(1, 4)
