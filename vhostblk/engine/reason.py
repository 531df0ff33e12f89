"""Why a ring is not a ring: one word for each way, the same for every engine."""

from enum import IntEnum


class Reason(IntEnum):
    """
    Numbers of ``enum vhb_reason``; `Fault.reason` is the *text* of one.

    Spec: virtio 1.3, 2.7 and 2.8.
    """

    AVAIL_INDEX = 1
    HEAD = 2
    NEXT = 3
    LOOP = 4
    INDIRECT = 5
    TABLE_ADDRESS = 6
    STATUS_ADDRESS = 7
    MEMORY_GONE = 8
    DISK_KEPT_VIEW = 9
    OUTSIDE = 10
    CONDEMNED = 11
    PARTIAL = 12
    ID_IN_FLIGHT = 13
    LOG_GONE = 14
    INFLIGHT = 15
    ID = 16

    @property
    def text(self) -> str:
        """Return short words for a log line."""
        return _TEXT[self]


_TEXT = {
    Reason.AVAIL_INDEX: "avail index further ahead than the ring is long",
    Reason.HEAD: "head out of range",
    Reason.NEXT: "next descriptor out of range",
    Reason.LOOP: "descriptor chain longer than its table or ring",
    Reason.INDIRECT: "malformed indirect table",
    Reason.TABLE_ADDRESS: "indirect table that may not be read",
    Reason.STATUS_ADDRESS: "status byte that may not be written",
    Reason.MEMORY_GONE: "guest memory vanished",
    Reason.DISK_KEPT_VIEW: "disk kept a view of guest memory",
    Reason.OUTSIDE: "outside the shared ranges",
    Reason.CONDEMNED: "condemned",
    Reason.PARTIAL: "chain runs into a descriptor that is not available",
    Reason.ID_IN_FLIGHT: "buffer id in use already",
    Reason.LOG_GONE: "dirty log vanished",
    Reason.INFLIGHT: "malformed inflight region",
    Reason.ID: "buffer id out of range",
}
