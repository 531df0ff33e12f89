"""The regions of guest RAM with the memfds behind them, by address."""

import os
from bisect import bisect_right
from collections.abc import Sequence

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE, Region
from vhostblk.guest.mapping import Mapping, make_memfd, map_memory

UVA_TOP = 0x7FFF_0000_0000
UVA_STRIDE = 1 << 36
"""Between the made-up addresses of two regions; larger than any region of a test."""


class Regions:
    """
    Regions that are mapped.

    Args:
        hugetlb: Back the memfds with huge pages.
        share: False: what is written here is not seen through the memfds.
    """

    def __init__(self, *, hugetlb: bool, share: bool) -> None:
        self.hugetlb = hugetlb
        self.share = share
        self.mappings: list[Mapping] = []
        """Sorted by GPA."""
        self._fds: set[int] = set()
        self._made = 0

    def close(self) -> None:
        """Unmap and close everything."""
        for mapping in self.mappings:
            mapping.unmap()
        self.mappings.clear()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def add(self, regions: Sequence[Region]) -> None:
        """Map *regions* on one memfd, one behind the other."""
        for region in regions:
            self._check(region)
        fd = make_memfd(sum(region.size for region in regions), hugetlb=self.hugetlb)
        self._fds.add(fd)
        offset = 0
        for region in regions:
            self._check(region)
            data = map_memory(fd, region.size, offset, share=self.share)
            self._made += 1
            uva = UVA_TOP - self._made * UVA_STRIDE
            self.mappings.append(Mapping(region, uva, fd, offset, data, data.cast("H")))
            self.mappings.sort(key=lambda m: m.region.gpa)
            offset += region.size

    def remove(self, mapping: Mapping) -> None:
        """Unmap one, and close its memfd with the last region on it."""
        self.mappings.remove(mapping)
        mapping.unmap()
        if all(other.fd != mapping.fd for other in self.mappings):
            self._fds.remove(mapping.fd)
            os.close(mapping.fd)

    def find(self, gpa: int) -> Mapping:
        """Return the region that *gpa* is in; GuestError if there is none."""
        at = bisect_right(self.mappings, gpa, key=lambda m: m.region.gpa) - 1
        if at < 0 or gpa >= self.mappings[at].region.end:
            raise GuestError(f"GPA {gpa:#x} is no RAM")
        return self.mappings[at]

    def views(self, gpa: int, length: int) -> list[memoryview]:
        """Return the bytes of a range, region by region; GuestError if part of it is no RAM."""
        views = []
        while length:
            mapping = self.find(gpa)
            start = gpa - mapping.region.gpa
            view = mapping.data[start : start + length]
            views.append(view)
            gpa += len(view)
            length -= len(view)
        return views

    def twin(self) -> "Regions":
        """Return the same regions once more, on memfds of their own, full of zeros."""
        made = Regions(hugetlb=self.hugetlb, share=self.share)
        # From other addresses than these, for an address of ours means nothing to another process.
        made._made = self._made
        try:
            for fd in dict.fromkeys(mapping.fd for mapping in self.mappings):
                made.add([m.region for m in self.mappings if m.fd == fd])
        except BaseException:
            made.close()
            raise
        return made

    def _check(self, region: Region) -> None:
        if region.size <= 0 or region.gpa < 0 or (region.gpa | region.size) % PAGE:
            raise GuestError(f"{region} is not made of whole pages of {PAGE} bytes")
        for mapping in self.mappings:
            if region.gpa < mapping.region.end and mapping.region.gpa < region.end:
                raise GuestError(f"{region} overlaps {mapping.region}")
