"""
The address space of the device: one flat table, built once, then only read.

All policy is applied when the table is built.  Who reads it does one lookup and knows neither
where a segment came from nor why it is missing.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from errno import EINVAL
from typing import TYPE_CHECKING, TypeAlias

from vhostblk.errors import Refused, VhostBlkError
from vhostblk.memory.ranges import Limit, OnViolation, Range
from vhostblk.memory.regions import Region, RegionTable

if TYPE_CHECKING:  # it says what is done with each in our words
    from vhostblk.memory.parts import RingPart

Piece: TypeAlias = tuple[int, int]
"""(host address, length in bytes) of a part of a ring."""


class Access(IntFlag):
    """What the device may do with a segment, or is about to; the numbers are the C header's."""

    READ = 1
    WRITE = 2
    NOTED = 4
    """Allowed, but a request that goes there is counted and told of."""
    FATAL = 8
    """A request that goes there breaks its queue."""


_ANY = Access.READ | Access.WRITE


@dataclass(frozen=True, slots=True)
class Segment:
    """
    One row of the table.

    Args:
        iova: First byte, as the driver writes it in a descriptor.
        length: Bytes.
        host: Where that byte lives in this process.
        access: What the device may do there; 0: denied, and asking anyone would not help.
    """

    iova: int
    length: int
    host: int
    access: Access

    def part(self, iova: int, length: int) -> "Segment":
        """Return the row for a range that lies inside."""
        return Segment(iova, length, self.host + iova - self.iova, self.access)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """
    What an IOMMU makes of a range.

    Args:
        iova: First byte, as the driver writes it.
        size: Bytes.
        uaddr: The same byte, as a front-end virtual address.
        access: What the device may do there.
    """

    iova: int
    size: int
    uaddr: int
    access: Access


class Missing(VhostBlkError):  # noqa: N818 - a question, not an error of ours
    """
    Nobody has said yet what is there; asking the front-end may help.

    Args:
        iova: The first address that is not known, or not with *access*.
        length: Bytes from there on that are needed.
        access: What the device was about to do.
    """

    def __init__(self, iova: int, length: int, access: Access) -> None:
        super().__init__(f"{access!r} of {length:#x} bytes is not translated at {iova:#x}")
        self.iova = iova
        self.length = length
        self.access = access


class Denied(VhostBlkError):  # noqa: N818 - a verdict, not an error of ours
    """
    The device may not go there.

    Args:
        iova: The first address it may not touch.
        access: What it was about to do.
        fatal: To go there breaks the queue.
    """

    def __init__(self, iova: int, access: Access, *, fatal: bool = False) -> None:
        super().__init__(f"{access!r} denied at {iova:#x}")
        self.iova = iova
        self.access = access
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """
    Sorted, disjoint segments.  Made by `build`.

    Args:
        segments: In the order of *iova*.
        table: The regions they were made from; their mappings are not held by this.
        asks: What is in no segment may be asked for; else it is denied.
        window: What *segments* were limited to; None: to nothing.
        whole: The segments without that limit; rings are found in them.
    """

    segments: tuple[Segment, ...]
    table: RegionTable
    asks: bool = False
    window: Limit | None = None
    whole: tuple[Segment, ...] | None = None

    @classmethod
    def build(
        cls,
        table: RegionTable,
        translations: Sequence[Translation] | None = None,
        *,
        window: Limit | None = None,
        cuts: "Cuts | None" = None,
    ) -> "AddressSpace":
        """
        Make the address space of a device.

        Args:
            table: Its memory.
            translations: What is known of its IOMMU, sorted and disjoint; what is in no region
                (any more) is left out.  None: it has none, and the driver uses guest physical
                addresses.
            window: Where the device may go at all, in guest physical addresses; None: everywhere.
            cuts: Of *table*, for who builds again and again.
        """
        if translations is None:
            rows = [(region.place.gpa, _whole(region)) for region in table.regions]
        else:
            rows = (cuts or Cuts(table)).rows(translations)
        asks = translations is not None
        whole = tuple(row for _, row in rows)
        if window is None:
            return cls(whole, table, asks)
        limited = tuple(part for gpa, row in rows for part in _limited(gpa, row, window))
        return cls(limited, table, asks, window, whole)

    def translate(self, iova: int, length: int, access: Access) -> list[Segment]:
        """
        Find where a guest range lives in this process.

        Args:
            iova: First byte, as the driver wrote it in the descriptor.
            length: Bytes, at least 1.
            access: What the device is about to do there.

        Returns:
            Segments in order; their lengths add up to *length*.  Two regions that are neighbours
            in the guest need not be neighbours here.

        Raises:
            Missing: A byte of it is not mapped, or mapped without *access*, and this space asks.
            Denied: The same where it does not, or the byte is in a segment that allows nothing or
                is FATAL.

        Spec: vhost-user, "Memory access"; "IOMMU support".
        """
        pieces: list[Segment] = []
        at, end = iova, iova + length
        row = bisect_right(self.segments, iova, key=lambda segment: segment.iova) - 1
        while at < end:
            segment = self.segments[row] if 0 <= row < len(self.segments) else None
            if segment is not None and not segment.iova <= at < segment.iova + segment.length:
                segment = None
            allowed = Access(0) if segment is None else segment.access
            fatal = Access.FATAL in allowed
            if segment is None or fatal or access not in allowed:
                if self.asks and not fatal and (segment is None or allowed & _ANY):
                    raise Missing(at, end - at, access)
                raise Denied(at, access, fatal=fatal)
            here = min(end, segment.iova + segment.length) - at
            pieces.append(segment.part(at, here))
            at += here
            row += 1
        return pieces

    def ring_pieces_by_iova(self, iova: int, length: int, part: "RingPart") -> list[Piece]:
        """
        Find where a part of a ring lives whose address goes through the IOMMU.

        Args:
            iova: Its first byte, as SET_VRING_ADDR says it.
            length: Bytes, at least 1.
            part: What it looks like.

        Returns:
            Pieces in order; their lengths add up to *length*.

        Raises:
            Missing: Not all of it is translated yet.
            Denied: A byte of it may not be touched.
            Refused: It is misaligned, a border of the translations splits an element, or it must
                lie in the window and does not.

        Spec: vhost-user, "IOMMU support".
        """
        space = self if self.whole is None else replace(self, segments=self.whole)
        rows = space.translate(iova, length, part.access)
        if any(row.host % part.align for row in rows):
            raise Refused(EINVAL, f"a ring at {iova:#x} is not aligned to {part.align} bytes")
        pieces = [(row.host, row.length) for row in rows]
        _check_borders(iova, pieces, part)
        self._check_window(pieces)
        return pieces

    def ring_pieces(self, uva: int, length: int, part: "RingPart") -> list[Piece]:
        """
        Find where a part of a ring lives in this process.

        Args:
            uva: Its first byte, as SET_VRING_ADDR says it: a front-end virtual address.
            length: Bytes, at least 1.
            part: What it looks like.

        Returns:
            Pieces in order; their lengths add up to *length*.

        Raises:
            Refused: A byte of it is in no region, it is misaligned, the border between two
                regions splits an element, or it must lie in the window and does not.

        Spec: vhost-user, "VHOST_USER_SET_VRING_ADDR"; virtio 1.3, 2.7.
        """
        pieces: list[Piece] = []
        done = 0
        while done < length:
            host, room = self._at_uva(uva + done)
            here = min(room, length - done)
            if host % part.align:
                raise Refused(EINVAL, f"a ring at {uva:#x} is not aligned to {part.align} bytes")
            pieces.append((host, here))
            done += here
        _check_borders(uva, pieces, part)
        self._check_window(pieces)
        return pieces

    def guest_ranges(self, pieces: Iterable[Piece]) -> list[Range]:
        """
        Say where in guest physical memory the pieces of a ring lie.

        Args:
            pieces: As `ring_pieces` or `ring_pieces_by_iova` returned them.
        """
        return [(self._gpa(host), length) for host, length in pieces]

    def _gpa(self, host: int) -> int:
        for region in self.table.regions:
            if 0 <= host - region.mapping.address < region.place.size:
                return region.place.gpa + host - region.mapping.address
        raise AssertionError("a piece is in a region")

    def _check_window(self, pieces: Sequence[Piece]) -> None:
        if self.window is None or not self.window.rings_too:
            return
        for gpa, length in self.guest_ranges(pieces):
            if not self.window.inside.holds(gpa, length):
                raise Refused(
                    EINVAL,
                    f"a ring at GPA {gpa:#x} lies outside the shared ranges, and rings=inside "
                    "asks for it to be there",
                )

    def _at_uva(self, uva: int) -> Piece:
        region = self.table.at_uva(uva)
        if region is None and not self.table.regions:
            raise Refused(
                EINVAL,
                f"ring address {uva:#x} and no guest memory: give QEMU a memory-backend-memfd with "
                "share=on and -machine memory-backend=, as `vhostblk qemu-args` does",
            )
        if region is None:
            raise Refused(EINVAL, f"no memory region holds ring address {uva:#x}")
        skip = uva - region.place.uva
        return region.mapping.address + skip, region.place.size - skip


class Cuts:
    """
    What translations are in the regions of a table: made once of each, as long as it is known.

    What an IOMMU has told changes by one entry at a time, and is built anew each time.

    Args:
        table: The regions.
    """

    def __init__(self, table: RegionTable) -> None:
        self.table = table
        self._by_uva = sorted(table.regions, key=lambda region: region.place.uva)
        self._made: dict[int, tuple[Translation, tuple[tuple[int, Segment], ...]]] = {}

    def rows(self, translations: Sequence[Translation]) -> list[tuple[int, Segment]]:
        """Return all rows in the order of *translations*, each behind its GPA."""
        before, self._made = self._made, {}
        for one in translations:
            name = id(one)  # nobody else has it: those that have rows are held
            self._made[name] = before.get(name) or (one, tuple(_cut(one, self._by_uva)))
        return [row for _, rows in self._made.values() for row in rows]


def _whole(region: Region) -> Segment:
    """Return the row of a region whose guest has no IOMMU."""
    place, access = region.place, Access.READ | Access.WRITE
    return Segment(place.gpa, place.size, region.mapping.address, access)


def _limited(gpa: int, row: Segment, window: Limit) -> Iterator[Segment]:
    """Yield the parts of a row that begins at *gpa*, cut where it enters or leaves a window."""
    for start, length, inside in window.inside.split(gpa, row.length):
        part = row.part(row.iova + start - gpa, length)
        yield part if inside else replace(part, access=_outside(row.access, window.on_violation))


def _outside(access: Access, policy: OnViolation) -> Access:
    """Return what is allowed outside a window of what the table itself would."""
    match policy:
        case OnViolation.WARN:
            return access | Access.NOTED
        case OnViolation.FAIL:
            return Access(0)
        case OnViolation.BREAK:
            return Access.FATAL


def _cut(one: Translation, by_uva: Sequence[Region]) -> Iterator[tuple[int, Segment]]:
    """Yield what of a translation is in memory, one row for each region, and its GPA."""
    first = bisect_right(by_uva, one.uaddr, key=lambda region: region.place.uva) - 1
    for region in by_uva[max(first, 0) :]:
        place = region.place
        start = max(one.uaddr, place.uva)
        length = min(one.uaddr + one.size, place.uva + place.size) - start
        if place.uva >= one.uaddr + one.size:
            return
        if length > 0:
            skip = start - place.uva
            iova = one.iova + start - one.uaddr
            gpa = place.gpa + skip
            host = region.mapping.address + skip
            yield gpa, Segment(iova, length, host, one.access)


def _check_borders(uva: int, pieces: Sequence[Piece], part: "RingPart") -> None:
    border = 0
    for _, length in pieces[:-1]:
        border += length
        if border < part.header or (border - part.header) % part.element:
            raise Refused(EINVAL, f"a border of memory splits the ring at {uva:#x} at {border:#x}")
