"""
vhost-user: message numbers, flags, feature bits, payload sizes.

Source: QEMU, docs/interop/vhost-user.rst.
"""

from enum import IntEnum, IntFlag

HEADER_SIZE = 12
VERSION = 1
FLAG_VERSION_MASK = 0x3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3
MAX_FDS = 8
"""File descriptors in one message at most (one per region of SET_MEM_TABLE)."""
MAX_PAYLOAD = 4096
"""Larger sizes are nobody's message; the largest real one is a config space of 256 bytes."""
VRING_INDEX_MASK = 0xFF
VRING_NOFD = 1 << 8
MAX_MEM_SLOTS = 509
"""What QEMU, libvhost-user and rust-vmm use; constant over reconnects (QEMU refuses less)."""
MAX_CONFIG_SIZE = 256
MEM_TABLE_REGIONS = 8
"""Regions SET_MEM_TABLE can carry: each needs a descriptor of the same message."""


class Request(IntEnum):
    """Front-end requests."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Back-end requests, sent on the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5


class IotlbType(IntEnum):
    """What an IOTLB message says; ``VHOST_IOTLB_*`` of <linux/vhost_types.h>."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4
    BATCH_BEGIN = 5
    BATCH_END = 6


class ProtocolFeature(IntFlag):
    """Bits of SET_PROTOCOL_FEATURES."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


VHOST_F_LOG_ALL = 1 << 26
VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30


class VringAddrFlag(IntFlag):
    """Flags of SET_VRING_ADDR."""

    LOG = 1 << 0


class ConfigFlag(IntEnum):
    """Who asks for SET_CONFIG."""

    WRITABLE = 0
    LIVE_MIGRATION = 1


class DeviceStatus(IntFlag):
    """Bits of SET_STATUS; virtio 1.3, 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128
