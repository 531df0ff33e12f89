"""
Who uses which guest-physical addresses: arithmetic only, no memory.

First fit, but each allocation starts at the next region.  So the pieces of one request lie in
different regions whenever there are several, and a back-end that serves only the region it found
first is noticed without a test having to ask for it.
"""

from bisect import insort

from vhostblk.guest.errors import GuestError


class Allocator:
    """
    Free extents of each region, and what was handed out.

    The page at GPA 0 is never handed out by ``allocate``: address 0 is what bugs produce.
    """

    def __init__(self) -> None:
        self._regions: list[tuple[int, int]] = []
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._taken: dict[int, int] = {}
        self._turn = 0
        self._offline: set[int] = set()

    def add(self, gpa: int, size: int) -> None:
        """Add a region of *size* bytes, all free."""
        insort(self._regions, (gpa, size))
        self._free[gpa] = [(gpa, size)]

    def check_unused(self, gpa: int, size: int) -> None:
        """
        Check that a region could be removed.

        Args:
            gpa: Where it begins.
            size: Bytes.

        Raises:
            GuestError: Something in it is handed out.
        """
        if self._free[gpa] != [(gpa, size)]:
            raise GuestError(f"the region at GPA {gpa:#x} is still in use")

    def remove(self, gpa: int, size: int) -> None:
        """Remove a region, which must be unused (see ``check_unused``)."""
        self.check_unused(gpa, size)
        self._regions.remove((gpa, size))
        del self._free[gpa]
        self._offline.discard(gpa)

    def set_offline(self, gpa: int) -> None:
        """Hand nothing out of the region at *gpa* any more, but by ``reserve``."""
        self._offline.add(gpa)

    def allocate(self, length: int, align: int) -> int:
        """
        Hand out *length* bytes of one region.

        Args:
            length: Bytes, at least 1.
            align: A power of two.

        Returns:
            The first address.

        Raises:
            GuestError: Nothing fits.
        """
        if length < 1:
            raise GuestError(f"cannot allocate {length} bytes")
        for i in range(len(self._regions)):
            region = (self._turn + i) % len(self._regions)
            if self._regions[region][0] in self._offline:
                continue
            gpa = self._fit(self._regions[region][0], length, align)
            if gpa is not None:
                self._turn = region + 1
                return self.reserve(gpa, length)
        raise GuestError(f"no {length} bytes of guest memory are free in one piece")

    def reserve(self, gpa: int, length: int) -> int:
        """
        Hand out exactly this range, which may cross from a region into an adjacent one.

        Args:
            gpa: First byte.
            length: Bytes, at least 1.

        Returns:
            *gpa*.

        Raises:
            GuestError: Part of it is not free; nothing was taken.
        """
        pieces = list(self._pieces(gpa, length))
        for region, start, size in pieces:
            self._cut(region, start, size)
        self._taken[gpa] = length
        return gpa

    def free(self, gpa: int) -> None:
        """
        Take back what was handed out at *gpa*.

        Args:
            gpa: What ``allocate`` or ``reserve`` returned.

        Raises:
            GuestError: Nothing was handed out there.
        """
        if gpa not in self._taken:
            raise GuestError(f"nothing was allocated at GPA {gpa:#x}")
        end = gpa + self._taken.pop(gpa)
        for region, size in self._regions:
            start, stop = max(gpa, region), min(end, region + size)
            if start < stop:
                self._join(region, start, stop - start)

    def _fit(self, region: int, length: int, align: int) -> int | None:
        for start, size in self._free[region]:
            at = -(-max(start, 4096) // align) * align
            if at + length <= start + size:
                return at
        return None

    def _pieces(self, gpa: int, length: int) -> list[tuple[int, int, int]]:
        pieces = []
        at, end = gpa, gpa + length
        for region in (r for r, _ in self._regions):
            for start, size in self._free[region]:
                if start <= at < start + size and at < end:
                    pieces.append((region, at, min(end, start + size) - at))
                    at += pieces[-1][2]
        if at < end or length < 1:
            raise GuestError(f"{length} bytes at GPA {gpa:#x} are not free guest memory")
        return pieces

    def _cut(self, region: int, start: int, size: int) -> None:
        extents = self._free[region]
        at = next(e for e in extents if e[0] <= start < e[0] + e[1])
        extents.remove(at)
        for left in ((at[0], start - at[0]), (start + size, at[0] + at[1] - start - size)):
            if left[1]:
                insort(extents, left)

    def _join(self, region: int, start: int, size: int) -> None:
        extents = self._free[region]
        for extent in list(extents):
            if extent[0] + extent[1] == start or start + size == extent[0]:
                extents.remove(extent)
                start, size = min(start, extent[0]), size + extent[1]
        insort(extents, (start, size))
