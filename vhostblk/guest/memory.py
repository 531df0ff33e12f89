"""
The RAM of the fake guest: regions of guest-physical addresses over memfds.

The device sees the same pages through the descriptors it is sent, so everything here goes through
one MAP_SHARED mapping per region.  ``read`` and ``write`` are the guest CPU's view; they cross from
one region into an adjacent one, as a CPU's access would.

The front-end's addresses (UVA) of regions are made up.  They are no addresses of any process, they
run against the order of the GPAs, and regions that touch in GPA are far apart in UVA: a back-end
that confuses the two spaces, or takes neighbours in one for neighbours in the other, fails here.

Spec: vhost-user, "Memory regions description".
"""

import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from vhostblk.guest.allocator import Allocator
from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import MIB, PAGE, Region

UVA_TOP = 0x7FFF_0000_0000
UVA_STRIDE = 1 << 36
"""Between the made-up addresses of two regions; larger than any region of a test."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """
    A region with the memory behind it.

    Args:
        region: Its place in the guest.
        uva: Its address in SET_MEM_TABLE, ADD_MEM_REG and SET_VRING_ADDR.
        fd: The memfd; several mappings may share one.
        offset: Where the region begins in *fd*, in bytes.
        data: The bytes.
        words: The same bytes as native 16-bit words.
    """

    region: Region
    uva: int
    fd: int
    offset: int
    data: memoryview
    words: memoryview


class GuestMemory:
    """
    Guest RAM, and the allocator that hands it out.

    Not safe for use by several threads, except for ``read``, ``write``, ``load_u16`` and
    ``store_u16`` while no region is added or removed.

    Args:
        regions: Disjoint, in any order; they may touch and may leave holes.
        own_memfds: Give every region a memfd of its own instead of one for all, in which the later
            regions begin at an offset.
        hugetlb: Back the memfds with huge pages of the default size; sizes must be multiples of it.

    Raises:
        GuestError: Regions overlap or are not whole pages, or the kernel refuses: descriptors (one
            for each memfd and one for each region) or huge pages ran out.
    """

    def __init__(
        self,
        regions: Sequence[Region] = (Region(0, 64 * MIB),),
        *,
        own_memfds: bool = False,
        hugetlb: bool = False,
    ) -> None:
        if sys.byteorder != "little":  # virtio 1.x is little-endian; words are stored natively
            raise GuestError("the fake guest runs on little-endian machines only")
        self._hugetlb = hugetlb
        self._mappings: list[Mapping] = []
        self._allocator = Allocator()
        self._fds: set[int] = set()
        self._made = 0
        try:
            for group in [[r] for r in regions] if own_memfds else [list(regions)]:
                self._map_group(group)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close everything; views handed out before become unusable."""
        for mapping in self._mappings:
            _unmap(mapping)
        self._mappings.clear()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """Return all regions, sorted by GPA."""
        return tuple(self._mappings)

    def add_region(self, region: Region) -> Mapping:
        """
        Add RAM on a memfd of its own; tell the back-end separately.

        Args:
            region: Must not overlap what is there.

        Returns:
            The new mapping.

        Raises:
            GuestError: It overlaps, is empty or is not page-aligned.
        """
        self._map_group([region])
        return self._find(region.gpa)

    def removable(self, gpa: int) -> Mapping:
        """
        Find a region that can be taken away.

        Args:
            gpa: First address of the region.

        Returns:
            Its mapping.

        Raises:
            GuestError: No region begins there, or something in it is still allocated.
        """
        mapping = next((m for m in self._mappings if m.region.gpa == gpa), None)
        if mapping is None:
            raise GuestError(f"no region begins at GPA {gpa:#x}")
        self._allocator.check_unused(gpa, mapping.region.size)
        return mapping

    def remove_region(self, gpa: int) -> None:
        """Take a ``removable`` region away; tell the back-end before."""
        mapping = self.removable(gpa)
        self._allocator.remove(mapping.region.gpa, mapping.region.size)
        self._mappings.remove(mapping)
        _unmap(mapping)
        if all(other.fd != mapping.fd for other in self._mappings):
            self._fds.remove(mapping.fd)
            os.close(mapping.fd)

    def vanish(self, gpa: int) -> None:
        """
        Let the memory behind a region disappear while the back-end has it mapped.

        The memfd is cut off where the region begins, so the back-end's next access there raises
        SIGBUS or fails with EFAULT.  The guest goes on with private zeros in its place, for it
        would die of the same.

        Args:
            gpa: First address of the region, the only one on its memfd.

        Raises:
            GuestError: No region begins there, or its memfd holds others.
        """
        at = self._find(gpa)
        if at.region.gpa != gpa or sum(m.fd == at.fd for m in self._mappings) > 1:
            raise GuestError(f"no region with a memfd of its own begins at GPA {gpa:#x}")
        data = memoryview(_map(-1, at.region.size, 0))
        self._mappings[self._mappings.index(at)] = replace(at, data=data, words=data.cast("H"))
        _unmap(at)
        os.ftruncate(at.fd, at.offset)

    def allocate(self, length: int, *, align: int = 16) -> int:
        """
        Hand out RAM nobody uses; successive calls go round the regions.

        Args:
            length: Bytes, at least 1.
            align: A power of two.

        Returns:
            GPA of the first byte; all of it lies in one region.  Contents are whatever was there.

        Raises:
            GuestError: No region has that much left in one piece.
        """
        return self._allocator.allocate(length, align)

    def reserve(self, gpa: int, length: int) -> int:
        """
        Hand out exactly this piece of RAM, which may reach over a border of two adjacent regions.

        Args:
            gpa: First byte.
            length: Bytes, at least 1.

        Returns:
            *gpa*.

        Raises:
            GuestError: Part of it is in use or is no RAM.
        """
        return self._allocator.reserve(gpa, length)

    def free(self, gpa: int) -> None:
        """Give back what ``allocate`` or ``reserve`` returned."""
        self._allocator.free(gpa)

    def read(self, gpa: int, length: int) -> bytes:
        """
        Read as the guest's CPU does.

        Args:
            gpa: First byte.
            length: Bytes.

        Returns:
            A copy.

        Raises:
            GuestError: Part of the range is no RAM.
        """
        return b"".join(bytes(view) for view in self._views(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """
        Write as the guest's CPU does.

        Args:
            gpa: First byte.
            data: What to write.

        Raises:
            GuestError: Part of the range is no RAM; nothing was written.
        """
        done = 0
        for view in self._views(gpa, len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)

    def load_u16(self, gpa: int) -> int:
        """Read a 16-bit word at an even address, in one access."""
        mapping = self._find(gpa)
        # struct.unpack("<H") assembles a word from single bytes, so it could see half of an index;
        # a cast view copies two bytes at once.
        return int(mapping.words[(gpa - mapping.region.gpa) >> 1])

    def store_u16(self, gpa: int, value: int) -> None:
        """Write a 16-bit word at an even address, in one access (see ``load_u16``)."""
        mapping = self._find(gpa)
        mapping.words[(gpa - mapping.region.gpa) >> 1] = value

    def uva(self, gpa: int) -> int:
        """
        Translate to the front-end's address.

        Args:
            gpa: Any address of a region.

        Returns:
            What SET_VRING_ADDR carries for it.

        Raises:
            GuestError: It is no RAM.
        """
        mapping = self._find(gpa)
        return mapping.uva + gpa - mapping.region.gpa

    def is_ram(self, gpa: int, length: int = 1) -> bool:
        """Tell whether every byte of the range is RAM."""
        try:
            self._views(gpa, length)
        except GuestError:
            return False
        return True

    def hole(self, length: int = PAGE) -> int:
        """
        Find addresses that are no RAM.

        Args:
            length: Bytes.

        Returns:
            The lowest GPA of such a range, past the first region.
        """
        for mapping, after in zip(self._mappings, self._mappings[1:], strict=False):
            if after.region.gpa - mapping.region.end >= length:
                return mapping.region.end
        return self._mappings[-1].region.end

    def _map_group(self, regions: list[Region]) -> None:
        for region in regions:
            self._check(region)
        fd = _memfd(sum(region.size for region in regions), hugetlb=self._hugetlb)
        self._fds.add(fd)
        offset = 0
        for region in regions:
            self._check(region)
            data = memoryview(_map(fd, region.size, offset))
            self._made += 1
            uva = UVA_TOP - self._made * UVA_STRIDE
            mapping = Mapping(region, uva, fd, offset, data, data.cast("H"))
            self._mappings.append(mapping)
            self._mappings.sort(key=lambda m: m.region.gpa)
            self._allocator.add(region.gpa, region.size)
            offset += region.size

    def _check(self, region: Region) -> None:
        if region.size <= 0 or region.gpa < 0 or (region.gpa | region.size) % PAGE:
            raise GuestError(f"{region} is not made of whole pages of {PAGE} bytes")
        for mapping in self._mappings:
            if region.gpa < mapping.region.end and mapping.region.gpa < region.end:
                raise GuestError(f"{region} overlaps {mapping.region}")

    def _find(self, gpa: int) -> Mapping:
        at = bisect_right(self._mappings, gpa, key=lambda m: m.region.gpa) - 1
        if at < 0 or gpa >= self._mappings[at].region.end:
            raise GuestError(f"GPA {gpa:#x} is no RAM")
        return self._mappings[at]

    def _views(self, gpa: int, length: int) -> list[memoryview]:
        views = []
        while length:
            mapping = self._find(gpa)
            start = gpa - mapping.region.gpa
            view = mapping.data[start : start + length]
            views.append(view)
            gpa += len(view)
            length -= len(view)
        return views


def _memfd(size: int, *, hugetlb: bool) -> int:
    try:
        fd = os.memfd_create("fake-guest", os.MFD_CLOEXEC | (os.MFD_HUGETLB if hugetlb else 0))
    except OSError as error:
        raise GuestError(f"cannot make guest memory: {error}") from error
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        os.close(fd)
        raise GuestError(f"cannot make {size} bytes of guest memory: {error}") from error
    return fd


def _map(fd: int, size: int, offset: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)
    except (OSError, ValueError) as error:
        raise GuestError(f"cannot map {size} bytes of guest memory: {error}") from error


def _unmap(mapping: Mapping) -> None:
    mapping.words.release()
    owner = mapping.data.obj
    mapping.data.release()
    if isinstance(owner, mmap.mmap):
        owner.close()
