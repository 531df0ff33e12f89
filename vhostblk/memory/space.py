"""
The address space of the device: one flat table, built once, then only read.

All policy is applied when the table is built.  Who reads it does one lookup and knows neither
where a segment came from nor why it is missing.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from errno import EINVAL
from typing import TypeAlias

from vhostblk.errors import Refused, VhostBlkError
from vhostblk.memory.regions import Region, RegionTable
from vhostblk.spec.virtio_ring import (
    AVAIL_ALIGN,
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_ALIGN,
    DESC_SIZE,
    USED_ALIGN,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

LOG_PAGE = 4096
"""Bytes of guest physical memory one bit of the dirty log stands for."""

Piece: TypeAlias = tuple[int, int]
"""(host address, length in bytes) of a part of a ring."""


class Access(IntFlag):
    """What the device may do with a segment, or is about to; the numbers are the C header's."""

    READ = 1
    WRITE = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """
    One row of the table.

    Args:
        iova: First byte, as the driver writes it in a descriptor.
        length: Bytes.
        host: Where that byte lives in this process.
        access: What the device may do there; 0: denied, and asking anyone would not help.
        log_page: Its page in the dirty log, counted in 4096 bytes.
    """

    iova: int
    length: int
    host: int
    access: Access
    log_page: int

    def part(self, iova: int, length: int) -> "Segment":
        """Return the row for a range that lies inside."""
        skip = iova - self.iova
        page = self.log_page + skip // LOG_PAGE
        return Segment(iova, length, self.host + skip, self.access, page)


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
    """

    def __init__(self, iova: int, access: Access) -> None:
        super().__init__(f"{access!r} denied at {iova:#x}")
        self.iova = iova
        self.access = access


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


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """
    Sorted, disjoint segments.  Made by `build`.

    Args:
        segments: In the order of *iova*.
        table: The regions they were made from; their mappings are not held by this.
        asks: What is in no segment may be asked for; else it is denied.
    """

    segments: tuple[Segment, ...]
    table: RegionTable
    asks: bool = False

    @classmethod
    def build(
        cls, table: RegionTable, translations: Sequence[Translation] | None = None
    ) -> "AddressSpace":
        """
        Make the address space of a device.

        Args:
            table: Its memory.
            translations: What is known of its IOMMU, sorted and disjoint; what is in no region
                (any more) is left out.  None: it has none, and the driver uses guest physical
                addresses.
        """
        if translations is not None:
            by_uva = sorted(table.regions, key=lambda region: region.place.uva)
            rows = (row for one in translations for row in _cut(one, by_uva))
            return cls(tuple(rows), table, asks=True)
        rows = (
            Segment(
                region.place.gpa,
                region.place.size,
                region.mapping.address,
                Access.READ | Access.WRITE,
                region.place.gpa // LOG_PAGE,
            )
            for region in table.regions
        )
        return cls(tuple(rows), table)

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
            Denied: The same where it does not, or the byte is in a segment that allows nothing.

        Spec: vhost-user, "Memory access"; "IOMMU support".
        """
        pieces: list[Segment] = []
        at, end = iova, iova + length
        row = bisect_right(self.segments, iova, key=lambda segment: segment.iova) - 1
        while at < end:
            segment = self.segments[row] if 0 <= row < len(self.segments) else None
            if segment is not None and not segment.iova <= at < segment.iova + segment.length:
                segment = None
            if segment is None or access not in segment.access:
                if self.asks and (segment is None or segment.access):
                    raise Missing(at, end - at, access)
                raise Denied(at, access)
            here = min(end, segment.iova + segment.length) - at
            pieces.append(segment.part(at, here))
            at += here
            row += 1
        return pieces

    def ring_pieces_by_iova(self, iova: int, length: int, part: RingPart) -> list[Piece]:
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
            Refused: It is misaligned, or a border of the translations splits an element.

        Spec: vhost-user, "IOMMU support".
        """
        rows = self.translate(iova, length, part.access)
        if any(row.host % part.align for row in rows):
            raise Refused(EINVAL, f"a ring at {iova:#x} is not aligned to {part.align} bytes")
        pieces = [(row.host, row.length) for row in rows]
        _check_borders(iova, pieces, part)
        return pieces

    def ring_pieces(self, uva: int, length: int, part: RingPart) -> list[Piece]:
        """
        Find where a part of a ring lives in this process.

        Args:
            uva: Its first byte, as SET_VRING_ADDR says it: a front-end virtual address.
            length: Bytes, at least 1.
            part: What it looks like.

        Returns:
            Pieces in order; their lengths add up to *length*.

        Raises:
            Refused: A byte of it is in no region, it is misaligned, or the border between two
                regions splits an element.

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
        return pieces

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


def _cut(one: Translation, by_uva: Sequence[Region]) -> Iterator[Segment]:
    """Yield what of a translation is in memory, one row for each region it touches."""
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
            page = (place.gpa + skip) // LOG_PAGE
            yield Segment(iova, length, region.mapping.address + skip, one.access, page)


def _check_borders(uva: int, pieces: Sequence[Piece], part: RingPart) -> None:
    border = 0
    for _, length in pieces[:-1]:
        border += length
        if border < part.header or (border - part.header) % part.element:
            raise Refused(EINVAL, f"a border of memory splits the ring at {uva:#x} at {border:#x}")
