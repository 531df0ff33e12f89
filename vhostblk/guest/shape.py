"""
What a ring of either format looks like from outside: its parts, what goes on it, five verbs.

`ring` is the split format and `packed` the packed one; each does its own arithmetic and they share
nothing but this.

Spec: virtio 1.3, 2.7 and 2.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vhostblk.guest.memory import GuestMemory
from vhostblk.spec import virtio_ring as vr


@dataclass(frozen=True, slots=True)
class Buffer:
    """
    One piece of a request.

    Args:
        gpa: First byte.
        length: Bytes.
        writable: The device may write it (else: read it).
    """

    gpa: int
    length: int
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Used:
    """
    A chain the device gave back.

    Args:
        head: Which chain: its first descriptor, or its buffer id.
        length: Bytes the device says it wrote.
    """

    head: int
    length: int


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """GPAs of a ring's three parts; of a packed one the last two are event suppression."""

    desc: int
    avail: int
    used: int


@dataclass(frozen=True, slots=True)
class RingShape:
    """
    How much room a ring takes.

    Args:
        size: Descriptors.
        packed: It has the packed format.
    """

    size: int
    packed: bool = False

    @property
    def desc_bytes(self) -> int:
        """Return the bytes of the descriptors."""
        return vr.DESC_SIZE * self.size

    @property
    def avail_bytes(self) -> int:
        """Return the bytes of the available ring, or of what the driver says of events."""
        if self.packed:
            return vr.PACKED_EVENT_SIZE
        return vr.AVAIL_HEADER_SIZE + vr.AVAIL_ELEM_SIZE * self.size + vr.EVENT_SIZE

    @property
    def used_bytes(self) -> int:
        """Return the bytes of the used ring, or of what the device says of events."""
        if self.packed:
            return vr.PACKED_EVENT_SIZE
        return vr.USED_HEADER_SIZE + vr.USED_ELEM_SIZE * self.size + vr.EVENT_SIZE

    @property
    def avail_align(self) -> int:
        """Return what the second part begins at a multiple of."""
        return vr.PACKED_EVENT_ALIGN if self.packed else vr.AVAIL_ALIGN

    @property
    def used_align(self) -> int:
        """Return what the third part begins at a multiple of."""
        return vr.PACKED_EVENT_ALIGN if self.packed else vr.USED_ALIGN


@dataclass(frozen=True, slots=True)
class RingFeatures:
    """
    What was negotiated about rings.

    Args:
        packed: RING_PACKED.
        event_idx: EVENT_IDX.
        in_order: IN_ORDER.
    """

    packed: bool = False
    event_idx: bool = False
    in_order: bool = False

    @classmethod
    def of(cls, features: int) -> "RingFeatures":
        """Read them out of virtio feature bits."""
        return cls(
            packed=bool(features & vr.F_RING_PACKED),
            event_idx=bool(features & vr.F_EVENT_IDX),
            in_order=bool(features & vr.F_IN_ORDER),
        )


class Ring(Protocol):
    """A ring and what the driver knows of it."""

    @property
    def addresses(self) -> RingAddresses:
        """Return where its parts are."""

    @property
    def shape(self) -> RingShape:
        """Return its size and format."""

    @property
    def free_descriptors(self) -> int:
        """Return how many descriptors are unused."""

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Return the heads the device has not given back, oldest first."""

    def add(self, buffers: Sequence[Buffer]) -> int:
        """Make a chain of direct descriptors, not shown to the device yet; return its head."""

    def add_indirect(self, direct: Sequence[Buffer], table: int, buffers: Sequence[Buffer]) -> int:
        """Make a chain that ends in an indirect table at *table*, written already."""

    def table(self, buffers: Sequence[Buffer]) -> bytes:
        """Return the contents of an indirect table."""

    def publish(self, *heads: int) -> None:
        """Make chains available in one go."""

    def pop_used(self) -> list[Used]:
        """Take what the device gave back, and ask to be called for the next."""

    def has_used(self) -> bool:
        """Tell whether the device has given something back that was not taken."""

    def wants_kick(self) -> bool:
        """Tell whether the device asked to be kicked for the last ``publish``."""

    def quiet(self) -> None:
        """Ask the device not to call."""

    def lost_base(self, known: int) -> int:
        """Return what SET_VRING_BASE says when the device died, which last said *known*."""


def allocate_ring(memory: GuestMemory, shape: RingShape, *, align: int = 1) -> RingAddresses:
    """
    Find room for a ring; its parts lie apart, in different regions if there are any.

    Args:
        memory: Where.
        shape: What.
        align: Each part begins at a multiple of this, a power of two, and of what it needs.

    Returns:
        Where the parts are.
    """
    return RingAddresses(
        desc=memory.allocate(shape.desc_bytes, align=max(align, vr.DESC_ALIGN)),
        avail=memory.allocate(shape.avail_bytes, align=max(align, shape.avail_align)),
        used=memory.allocate(shape.used_bytes, align=max(align, shape.used_align)),
    )


def writable_bytes(buffers: Sequence[Buffer]) -> int:
    """Return how much the device may write."""
    return sum(buffer.length for buffer in buffers if buffer.writable)
