"""Where a ring is said to be, and what it runs by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import Piece
from vhostblk.errors import Refused
from vhostblk.memory.ranges import Range
from vhostblk.memory.space import (
    AVAIL,
    DESC,
    USED,
    AddressSpace,
    Denied,
    Missing,
    RingPart,
)
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_SIZE,
    EVENT_SIZE,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

Part: TypeAlias = tuple[int, int, RingPart]
"""(address, length in bytes, kind) of a part of a ring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the parts of a ring are: front-end virtual addresses, or IOVAs behind an IOMMU."""

    desc: int
    avail: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What a ring runs by; gathered anew at each start, as a driver may ack less than the last one.

    Args:
        features: Acked by the driver.
        space: Guest memory.
        translated: The same behind the driver's IOMMU; None where there is none.
        blk: What the device promises.
        writethrough: Every write is stable before its status.
        always_translated: Its addresses go through the IOMMU if there is one, wherever it is.
        required: Feature bits without which it does not start.
    """

    features: int
    space: AddressSpace
    translated: AddressSpace | None = None
    blk: BlkDevice
    writethrough: bool
    always_translated: bool = False
    required: int = 0

    def translates(self, parts: Sequence[Part]) -> bool:
        """
        Tell whether a ring goes through the IOMMU, by where it is.

        crosvm acks ACCESS_PLATFORM for a protected guest, and goes on to send its own addresses.

        Args:
            parts: Its own, as `layout` returns them.
        """
        return self.translated is not None and (
            self.always_translated or any(self.space.table.at_uva(at) is None for at, *_ in parts)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A ring in this process's memory."""

    desc: Sequence[Piece]
    avail: Sequence[Piece]
    used: Sequence[Piece]


def layout(num: int, where: Addresses) -> list[Part]:
    """Return the descriptor table, the avail and the used ring of *num* descriptors."""
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
