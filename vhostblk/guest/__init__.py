"""
The fake guest: a vhost-user front-end with RAM and a virtio-blk driver, for testing back-ends.

It shares nothing with the back-end of this package but the numbers of the standards, so it tests
any vhost-user-blk back-end.  See docs/how-to/test-with-the-fake-guest.md.
"""

from vhostblk.guest import hostile, hostile_packed, personality, wire
from vhostblk.guest.blk import Completion, Framing, Range, Request
from vhostblk.guest.bounce import SwiotlbOptions
from vhostblk.guest.confidential import Confidential
from vhostblk.guest.dma import BounceError
from vhostblk.guest.errors import (
    BrokenQueueError,
    DeadlineError,
    DisconnectedError,
    GuestError,
    NackError,
    RingError,
    StatusError,
)
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.guest import Guest
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.inflight import Inflight
from vhostblk.guest.iommu import Iommu, IommuOptions, Mapped
from vhostblk.guest.layout import Region, pc_layout, slots_layout
from vhostblk.guest.ledger import Ledger, LedgerError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.migration import Migration, UnmarkedError
from vhostblk.guest.migration import Report as MigrationReport
from vhostblk.guest.negotiate import DEFAULT_FEATURES, DEFAULT_PROTOCOL_FEATURES
from vhostblk.guest.packed import PackedDescriptor
from vhostblk.guest.pages import PageStateError, Protection
from vhostblk.guest.queue import Queue, Ticket
from vhostblk.guest.ring import Descriptor
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.shape import Buffer, RingAddresses, RingShape
from vhostblk.guest.swiotlb import PoolFullError
from vhostblk.guest.touches import Auditor, Report, Touch

__all__ = [
    "DEFAULT_FEATURES",
    "DEFAULT_PROTOCOL_FEATURES",
    "Auditor",
    "BounceError",
    "BrokenQueueError",
    "Buffer",
    "Completion",
    "Confidential",
    "DeadlineError",
    "Descriptor",
    "DisconnectedError",
    "Framing",
    "FrontEnd",
    "Guest",
    "GuestError",
    "GuestMemory",
    "Inflight",
    "Iommu",
    "IommuOptions",
    "Ledger",
    "LedgerError",
    "Mapped",
    "Migration",
    "MigrationReport",
    "NackError",
    "PackedDescriptor",
    "PageStateError",
    "PoolFullError",
    "Protection",
    "Queue",
    "QueueOptions",
    "Range",
    "Region",
    "Report",
    "Request",
    "RingAddresses",
    "RingError",
    "RingShape",
    "StatusError",
    "SwiotlbOptions",
    "Ticket",
    "Touch",
    "UnmarkedError",
    "hostile",
    "hostile_packed",
    "pc_layout",
    "personality",
    "slots_layout",
    "touched_pages",
    "wire",
]
