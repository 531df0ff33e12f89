"""
Virtqueues: flags, sizes and feature bits.

Source: virtio 1.3, 2.6 to 2.8 and 6.  Pinned against <linux/virtio_ring.h> by
tests/spec/test_virtio_ring.py.
"""

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
DESC_SIZE = 16
DESC_ALIGN = 16
AVAIL_F_NO_INTERRUPT = 1
AVAIL_HEADER_SIZE = 4
AVAIL_ELEM_SIZE = 2
AVAIL_ALIGN = 2
USED_F_NO_NOTIFY = 1
USED_HEADER_SIZE = 4
USED_ELEM_SIZE = 8
USED_ALIGN = 4
EVENT_SIZE = 2
"""used_event behind the avail ring, avail_event behind the used ring."""

PACKED_DESC_F_AVAIL = 1 << 7
PACKED_DESC_F_USED = 1 << 15
PACKED_EVENT_SIZE = 4
"""An event suppression structure: descriptor offset and wrap counter, then flags."""
PACKED_EVENT_ALIGN = 4
PACKED_EVENT_ENABLE = 0
PACKED_EVENT_DISABLE = 1
PACKED_EVENT_DESC = 2
PACKED_WRAP = 1 << 15
"""The wrap counter in an event suppression structure, and in each half of a base."""

MAX_QUEUE_SIZE = 1024
"""The largest ring we serve (QEMU's largest too); the format allows 32768."""

F_NOTIFY_ON_EMPTY = 1 << 24
F_ANY_LAYOUT = 1 << 27
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_ACCESS_PLATFORM = 1 << 33
F_RING_PACKED = 1 << 34
F_IN_ORDER = 1 << 35
F_ORDER_PLATFORM = 1 << 36
F_RING_RESET = 1 << 40
