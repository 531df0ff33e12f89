"""
A look at a ring from outside, for a diagnosis: its bytes as they are in the guest's memory file.

Through the file and not through our mapping, so no page is touched, none is allocated in a hole,
and one that has vanished is merely missed.  Nothing beside the ring is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.memory.ranges import Range
from vhostblk.memory.regions import RegionTable

_PARTS = "desc", "avail", "used"


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """
    What a ring was when it was looked at.

    Args:
        gpa: Where it begins in the guest, behind an IOMMU as well.
        desc: Bytes of the descriptor table.
        avail: Bytes of the avail ring.
        used: Bytes of the used ring.
    """

    gpa: int
    desc: bytes
    avail: bytes
    used: bytes

    @property
    def whole(self) -> bytes:
        """Return all bytes."""
        return self.desc + self.avail + self.used

    @property
    def idx(self) -> int:
        """Return the avail index."""
        return int.from_bytes(self.avail[2:4], "little")

    @property
    def blank(self) -> bool:
        """Whether the driver has left nothing in it.  The used ring is ours to write."""
        return not any(self.desc) and not any(self.avail)


def glance(parts: Sequence[Sequence[Range]], table: RegionTable) -> Glance | None:
    """
    Look at a ring.

    Args:
        parts: Guest physical memory of its three parts, as `Ring.lies_in` returns it.
        table: The memory they are in.

    Returns:
        None where a part of it is not known or cannot be read: it is gone, or in no file in memory.
    """
    if len(parts) != len(_PARTS) or not all(parts):
        return None
    desc, avail, used = (_peek(part, table) for part in parts)
    if desc is None or avail is None or used is None:
        return None
    gpa, _ = parts[0][0]
    return Glance(gpa=gpa, desc=desc, avail=avail, used=used)


def _peek(ranges: Sequence[Range], table: RegionTable) -> bytes | None:
    found = []
    for gpa, length in ranges:
        region = table.at_gpa(gpa)
        data = region and region.mapping.peek(gpa - region.place.gpa, length)
        if not data:
            return None
        found.append(data)
    return b"".join(found)
