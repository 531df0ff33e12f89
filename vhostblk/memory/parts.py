"""What the parts of a ring look like, of which `vhostblk.memory.space` says where they live."""

from dataclasses import dataclass

from vhostblk.memory.space import Access
from vhostblk.spec.virtio_ring import (
    AVAIL_ALIGN,
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_ALIGN,
    DESC_SIZE,
    PACKED_EVENT_ALIGN,
    PACKED_EVENT_SIZE,
    USED_ALIGN,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingPart:
    """
    What a part of a ring looks like, for `AddressSpace.ring_pieces`.

    Args:
        align: What its address must be a multiple of, bytes.
        header: Bytes before the first element.
        element: Bytes of an element, which no border may split.
        access: What the device does with it.
    """

    align: int
    header: int
    element: int
    access: Access


DESC = RingPart(align=DESC_ALIGN, header=0, element=DESC_SIZE, access=Access.READ)
AVAIL = RingPart(
    align=AVAIL_ALIGN, header=AVAIL_HEADER_SIZE, element=AVAIL_ELEM_SIZE, access=Access.READ
)
USED = RingPart(
    align=USED_ALIGN, header=USED_HEADER_SIZE, element=USED_ELEM_SIZE, access=Access.WRITE
)
PACKED_DESC = RingPart(
    align=DESC_ALIGN, header=0, element=DESC_SIZE, access=Access.READ | Access.WRITE
)
DRIVER_EVENT = RingPart(
    align=PACKED_EVENT_ALIGN, header=0, element=PACKED_EVENT_SIZE, access=Access.READ
)
DEVICE_EVENT = RingPart(
    align=PACKED_EVENT_ALIGN, header=0, element=PACKED_EVENT_SIZE, access=Access.WRITE
)
