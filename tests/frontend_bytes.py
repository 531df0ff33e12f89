"""
The front-end's bytes, packed by hand from the standard: what the protocol tests feed.

Shares nothing with `vhostblk.protocol.wire`, so that a mistake there cannot hide.
"""

import os
import struct
from dataclasses import dataclass

NEED_REPLY = 8
REPLY = 4
VERSION = 1
REPLY_ACK_SET = 0x1B22B
"""Protocol features QEMU 10.2 acks of all that were offered."""


def message(number: int, payload: bytes = b"", flags: int = VERSION) -> bytes:
    """Return header and payload of one message."""
    return struct.pack("=III", number, flags, len(payload)) + payload


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def vring(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def some_fds(count: int) -> list[int]:
    """Return fresh descriptors; who is given them closes them."""
    return [os.eventfd(0) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Sample:
    """A good message: its number, payload, how many descriptors, what it must parse to."""

    number: int
    payload: bytes
    fds: int
    fields: dict[str, object]


REGION = struct.pack("=QQQQ", 0x100000, 0x200000, 0x7F0000000000, 0x3000)
ADDR = struct.pack("=IIQQQQ", 1, 1, 0xD000, 0xE000, 0xA000, 0x1000)
INFLIGHT = struct.pack("=QQHHI", 8192, 4096, 2, 128, 0)
IOTLB = struct.pack("=QQQBB6x", 0x1000, 0x2000, 0x7F0000001000, 3, 2)

SAMPLES = [
    Sample(1, b"", 0, {}),
    Sample(2, u64(0x140000046), 0, {"features": 0x140000046}),
    Sample(3, b"", 0, {}),
    Sample(4, b"", 0, {}),
    Sample(5, struct.pack("=II", 2, 0) + REGION + REGION, 2, {}),
    Sample(6, struct.pack("=QQ", 0x4000, 0x1000), 1, {"mmap_size": 0x4000, "mmap_offset": 0x1000}),
    Sample(7, b"", 1, {}),
    Sample(8, vring(1, 128), 0, {"index": 1, "num": 128}),
    Sample(
        9,
        ADDR,
        0,
        {"index": 1, "flags": 1, "desc": 0xD000, "used": 0xE000, "avail": 0xA000, "log": 0x1000},
    ),
    Sample(10, vring(1, 77), 0, {"index": 1, "base": 77}),
    Sample(11, vring(1, 0), 0, {"index": 1}),
    Sample(12, u64(1), 1, {"index": 1}),
    Sample(13, u64(1), 1, {"index": 1}),
    Sample(14, u64(1), 1, {"index": 1}),
    Sample(15, b"", 0, {}),
    Sample(16, u64((1 << 20) - 1), 0, {"features": (1 << 20) - 1}),
    Sample(17, b"", 0, {}),
    Sample(18, vring(1, 1), 0, {"index": 1, "enable": True}),
    Sample(19, u64(0x525400123456), 0, {"mac": 0x525400123456}),
    Sample(20, u64(1500), 0, {"mtu": 1500}),
    Sample(21, b"", 1, {}),
    Sample(
        22,
        IOTLB,
        0,
        {"iova": 0x1000, "size": 0x2000, "uaddr": 0x7F0000001000, "perm": 3, "kind": 2},
    ),
    Sample(23, vring(1, 0), 0, {"index": 1, "num": 0}),
    Sample(24, struct.pack("=III", 8, 4, 0) + bytes(4), 0, {"offset": 8, "size": 4, "flags": 0}),
    Sample(25, struct.pack("=III", 32, 1, 0) + b"\1", 0, {"offset": 32, "data": b"\1"}),
    Sample(26, b"any payload", 0, {"payload": b"any payload"}),
    Sample(27, u64(5), 0, {"session": 5}),
    Sample(28, b"", 0, {}),
    Sample(29, b"", 0, {}),
    Sample(30, b"", 0, {}),
    Sample(31, INFLIGHT, 0, {"num_queues": 2, "queue_size": 128}),
    Sample(
        32,
        INFLIGHT,
        1,
        {"mmap_size": 8192, "mmap_offset": 4096, "num_queues": 2, "queue_size": 128},
    ),
    Sample(33, b"", 1, {}),
    Sample(34, b"", 0, {}),
    Sample(35, vring(1, 0), 0, {"index": 1}),
    Sample(36, b"", 0, {}),
    Sample(37, bytes(8) + REGION, 1, {}),
    Sample(38, bytes(8) + REGION, 0, {}),
    Sample(39, u64(0xF), 0, {"status": 0xF}),
    Sample(40, b"", 0, {}),
    Sample(41, bytes(range(16)), 0, {"uuid": bytes(range(16))}),
    Sample(42, struct.pack("=II", 1, 0), 1, {"direction": 1, "phase": 0}),
    Sample(43, b"", 0, {}),
]
