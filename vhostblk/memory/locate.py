"""From the addresses in descriptors back to guest physical memory, as far as it is known."""

from bisect import bisect_right

from vhostblk.memory.pages import Range
from vhostblk.memory.space import AddressSpace, Segment


def locate(space: AddressSpace, iova: int, length: int) -> list[Range]:
    """
    Return the guest physical ranges behind a buffer.

    Args:
        space: The driver's, with its IOMMU if it has one.
        iova: First byte, as in the descriptor.
        length: Bytes.

    Returns:
        Ranges in the order of the buffer; what is in no segment is left out.
    """
    found: list[Range] = []
    end = iova + length
    row = max(bisect_right(space.segments, iova, key=_start) - 1, 0)
    while row < len(space.segments) and space.segments[row].iova < end:
        segment = space.segments[row]
        at = max(iova, segment.iova)
        here = min(end, segment.iova + segment.length) - at
        if here > 0:
            found.append((_gpa(space, segment, at), here))
        row += 1
    return found


def _start(segment: Segment) -> int:
    return segment.iova


def _gpa(space: AddressSpace, segment: Segment, iova: int) -> int:
    """Return the guest physical address of a byte in a segment."""
    if not space.asks:
        return iova
    host = segment.host + iova - segment.iova
    for region in space.table.regions:
        if region.mapping.address <= host < region.mapping.address + region.mapping.length:
            return region.place.gpa + host - region.mapping.address
    raise AssertionError("a segment lies in a region")
