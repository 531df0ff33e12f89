"""From the addresses in descriptors back to guest physical memory, as far as it is known."""

from bisect import bisect_right

from vhostblk.memory.ranges import Range
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
            found += _behind(space, segment.part(at, here))
        row += 1
    return found


def _start(segment: Segment) -> int:
    return segment.iova


def _behind(space: AddressSpace, segment: Segment) -> list[Range]:
    if not space.asks:
        return [(segment.iova, segment.length)]
    return space.guest_ranges([(segment.host, segment.length)])
