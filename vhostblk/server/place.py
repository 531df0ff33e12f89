"""Where a ring is said to be, in its driver's format, and where that is in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from errno import EINVAL
from typing import TypeAlias

from vhostblk.engine.api import Piece
from vhostblk.errors import Refused
from vhostblk.memory.parts import (
    AVAIL,
    DESC,
    DEVICE_EVENT,
    DRIVER_EVENT,
    PACKED_DESC,
    USED,
    RingPart,
)
from vhostblk.memory.ranges import Range
from vhostblk.memory.space import AddressSpace, Denied, Missing
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_SIZE,
    EVENT_SIZE,
    PACKED_EVENT_SIZE,
    PACKED_WRAP,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

_HALF = 16
"""Bits of a packed base that belong to the avail ring; those above belong to the used one."""
_SPLIT_MAX = (1 << 16) - 1

Part: TypeAlias = tuple[int, int, RingPart]
"""(address, length in bytes, kind) of a part of a ring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """
    Where the parts of a ring are: front-end virtual addresses, or IOVAs behind an IOMMU.

    Args:
        desc: Descriptor table; packed: the descriptor ring.
        avail: Avail ring; packed: the driver's event suppression.
        used: Used ring; packed: the device's event suppression.
    """

    desc: int
    avail: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A ring in this process's memory; parts as in `Addresses`."""

    desc: Sequence[Piece]
    avail: Sequence[Piece]
    used: Sequence[Piece]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    What a front-end has said of where a ring is.

    Args:
        index: The ring's number.
        num: Its size in descriptors; 0: not said yet.
        addresses: None: not said yet.
        packed: Its format, which the last start has decided.
    """

    index: int
    num: int = 0
    addresses: Addresses | None = None
    packed: bool = False

    def started(self, *, packed: bool) -> "Place":
        """
        Return it in the format of a start, which is known only then: the size may come before.

        Raises:
            Refused: Its size is not one of that format.

        Spec: virtio 1.3, 2.7 and 2.8.
        """
        if not packed and self.num.bit_count() > 1:
            raise Refused(
                EINVAL, f"split ring {self.index} has a power of two of descriptors, not {self.num}"
            )
        return replace(self, packed=packed)

    def layout(self) -> list[Part]:
        """
        Return its parts.

        Raises:
            Refused: Its size or its addresses are missing.
        """
        if self.addresses is None:
            raise Refused(EINVAL, f"ring {self.index} has no address: SET_VRING_ADDR is missing")
        if self.num == 0:
            raise Refused(EINVAL, f"ring {self.index} has no size: SET_VRING_NUM is missing")
        return layout(self.num, self.addresses, packed=self.packed)

    def pieces(self, space: AddressSpace) -> Placed:
        """
        Find it by the front-end's addresses.

        Raises:
            Refused: Not all of it is in *space*.
        """
        desc, avail, used = (space.ring_pieces(*one) for one in self.layout())
        return Placed(desc=desc, avail=avail, used=used)

    def pieces_by_iova(self, space: AddressSpace) -> Placed:
        """
        Find it behind an IOMMU; raises what `AddressSpace.ring_pieces_by_iova` does.

        Args:
            space: Behind the IOMMU.
        """
        desc, avail, used = (space.ring_pieces_by_iova(*one) for one in self.layout())
        return Placed(desc=desc, avail=avail, used=used)

    def lies_in(self, space: AddressSpace) -> list[list[Range]]:
        """Return the guest memory of its parts, as `lies_in` does; none before a set-up."""
        try:
            return [lies_in(part, space) for part in self.layout()]
        except Refused:
            return []


def first_base(*, packed: bool) -> int:
    """Return the base of a ring nothing has happened to; virtio 1.3, 2.7.13 and 2.8.1."""
    return PACKED_WRAP << _HALF | PACKED_WRAP if packed else 0


def check_base(base: int, place: Place) -> None:
    """
    Check where a ring is to go on.

    Args:
        base: As SET_VRING_BASE says it.
        place: Its format and size.

    Raises:
        Refused: It is no such place.

    Spec: vhost-user, "A vring state description".
    """
    if not place.packed:
        if base > _SPLIT_MAX:
            raise Refused(EINVAL, f"split ring {place.index} has a base of 16 bits, not {base:#x}")
        return
    for half in (base, base >> _HALF):
        if half & (PACKED_WRAP - 1) >= place.num:
            raise Refused(
                EINVAL, f"packed ring {place.index} of {place.num} cannot go on at {base:#x}"
            )


def layout(num: int, where: Addresses, *, packed: bool = False) -> list[Part]:
    """Return the parts of a ring of *num* descriptors, in the order of `Addresses`."""
    if packed:
        return [
            (where.desc, num * DESC_SIZE, PACKED_DESC),
            (where.avail, PACKED_EVENT_SIZE, DRIVER_EVENT),
            (where.used, PACKED_EVENT_SIZE, DEVICE_EVENT),
        ]
    avail = AVAIL_HEADER_SIZE + num * AVAIL_ELEM_SIZE + EVENT_SIZE
    used = USED_HEADER_SIZE + num * USED_ELEM_SIZE + EVENT_SIZE
    return [
        (where.desc, num * DESC_SIZE, DESC),
        (where.avail, avail, AVAIL),
        (where.used, used, USED),
    ]


def lies_in(part: Part, space: AddressSpace) -> list[Range]:
    """
    Return where in guest physical memory a part of a ring is, whether it goes through an IOMMU.

    Returns:
        Ranges in order; nothing where *space* does not tell of all of it.
    """
    try:
        return space.guest_ranges(space.ring_pieces(*part))
    except Refused:
        if not space.asks:
            return []
    try:
        return space.guest_ranges(space.ring_pieces_by_iova(*part))
    except (Refused, Missing, Denied):
        return []
