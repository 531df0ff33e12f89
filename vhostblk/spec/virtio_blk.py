"""
virtio-blk: feature bits, config offsets, request types, status codes.

Source: virtio 1.3, 5.2.  Pinned against <linux/virtio_blk.h> by tests/spec/test_virtio_blk.py.
"""

from enum import IntEnum

SECTOR_SIZE = 512
"""A sector is 512 bytes, always; blk_size only says what requests must be a multiple of."""
REQUEST_HEADER_SIZE = 16
SERIAL_SIZE = 20

F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14
F_LIFETIME = 1 << 15
F_SECURE_ERASE = 1 << 16
F_ZONED = 1 << 17

CONFIG_SIZE = 60
"""Bytes up to and with write_zeroes_may_unmap and its padding."""
CONFIG_WRITEBACK_OFFSET = 32


class RequestType(IntEnum):
    """The type field of a request; bit 31 is legacy's BARRIER and means nothing."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


TYPE_BARRIER = 1 << 31


class Status(IntEnum):
    """The last byte of a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


RANGE_SIZE = 16
"""One segment of DISCARD and WRITE_ZEROES: u64 sector, u32 num_sectors, u32 flags."""
WRITE_ZEROES_F_UNMAP = 1
