"""
The RAM of the fake guest: regions of guest-physical addresses over memfds.

The device sees the same pages through the descriptors it is sent, so everything here goes through
one MAP_SHARED mapping per region.  ``read`` and ``write`` are the guest CPU's view; they cross from
one region into an adjacent one, as a CPU's access would.  In a confidential machine they also go
through what protects its pages (see ``pages``), and the device sees what is left of them.

The front-end's addresses (UVA) of regions are made up.  They are no addresses of any process, they
run against the order of the GPAs, and regions that touch in GPA are far apart in UVA: a back-end
that confuses the two spaces, or takes neighbours in one for neighbours in the other, fails here.

Spec: vhost-user, "Memory regions description".
"""

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from vhostblk.guest.allocator import Allocator
from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import MIB, PAGE, Region
from vhostblk.guest.mapping import Mapping, map_memory
from vhostblk.guest.pages import Mode, Protection, protect
from vhostblk.guest.protected import Protected
from vhostblk.guest.regions import Regions


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
        mode: How the pages are protected from the host; all are private at the start.  A name
            stands for the ``Protection`` with the other values as they are.
        share: False: the guest's view is a private copy, as with a memory back-end of QEMU's that
            lacks share=on, and the back-end sees zeros for ever.

    Raises:
        GuestError: Regions overlap or are not whole pages, the modes do not go together, or the
            kernel refuses: descriptors (one for each memfd and one for each region) or huge pages
            ran out.
    """

    def __init__(
        self,
        regions: Sequence[Region] = (Region(0, 64 * MIB),),
        *,
        own_memfds: bool = False,
        hugetlb: bool = False,
        mode: Mode | Protection = "plain",
        share: bool = True,
    ) -> None:
        if sys.byteorder != "little":  # virtio 1.x is little-endian; words are stored natively
            raise GuestError("the fake guest runs on little-endian machines only")
        self.protection = Protection(mode=mode) if isinstance(mode, str) else mode
        if hugetlb:
            self.protection = replace(self.protection, punch=False)
        self._regions = Regions(hugetlb=hugetlb, share=share)
        self._mirror: Regions | None = None
        self._protected = self._protect(share=share)
        self._allocator = Allocator()
        try:
            for group in [[r] for r in regions] if own_memfds else [list(regions)]:
                self._add(group)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close everything; views handed out before become unusable."""
        self._regions.close()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """Return all regions, sorted by GPA."""
        return tuple(self._regions.mappings)

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
        self._add([region])
        return self._regions.find(region.gpa)

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
        mapping = next((m for m in self.mappings if m.region.gpa == gpa), None)
        if mapping is None:
            raise GuestError(f"no region begins at GPA {gpa:#x}")
        self._allocator.check_unused(gpa, mapping.region.size)
        return mapping

    def set_offline(self, gpa: int) -> None:
        """
        Use the region that begins at *gpa* for nothing new, as a kernel before RAM is unplugged.

        Args:
            gpa: First address of the region.

        Raises:
            GuestError: No region begins there.
        """
        if all(mapping.region.gpa != gpa for mapping in self.mappings):
            raise GuestError(f"no region begins at GPA {gpa:#x}")
        self._allocator.set_offline(gpa)

    def remove_region(self, gpa: int) -> None:
        """Take a ``removable`` region away; tell the back-end before."""
        mapping = self.removable(gpa)
        self._allocator.remove(mapping.region.gpa, mapping.region.size)
        if self._protected is not None:
            self._protected.forget(mapping.region)
        self._regions.remove(mapping)

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
        at = self._regions.find(gpa)
        if at.region.gpa != gpa or sum(m.fd == at.fd for m in self.mappings) > 1:
            raise GuestError(f"no region with a memfd of its own begins at GPA {gpa:#x}")
        data = map_memory(-1, at.region.size, 0)
        mappings = self._regions.mappings
        mappings[mappings.index(at)] = replace(at, data=data, words=data.cast("H"))
        at.unmap()
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

    def read(self, gpa: int, length: int, *, private: bool | None = None) -> bytes:
        """
        Read as the guest's CPU does.

        Args:
            gpa: First byte.
            length: Bytes.
            private: The form of the access in a confidential machine; ``None``: each page's own.

        Returns:
            A copy.

        Raises:
            GuestError: Part of the range is no RAM.
            PageStateError: The machine forbids this form of access.
        """
        if self._protected is not None:
            return self._protected.read(gpa, length, private)
        return b"".join(bytes(view) for view in self._regions.views(gpa, length))

    def write(
        self, gpa: int, data: bytes | bytearray | memoryview, *, private: bool | None = None
    ) -> None:
        """
        Write as the guest's CPU does.

        Args:
            gpa: First byte.
            data: What to write.
            private: As for ``read``.

        Raises:
            GuestError: Part of the range is no RAM; nothing was written.
            PageStateError: The machine forbids this form of access; nothing was written.
        """
        if self._protected is not None:
            self._protected.write(gpa, data, private)
            return
        _store(self._regions, gpa, data)
        if self._mirror is not None:
            _store(self._mirror, gpa, data)

    def load_u16(self, gpa: int) -> int:
        """Read a 16-bit word at an even address; in one access, unless the page is private."""
        if not self.is_shared(gpa):
            return int.from_bytes(self.read(gpa, 2), "little")
        mapping = self._regions.find(gpa)
        # struct.unpack("<H") assembles a word from single bytes, so it could see half of an index;
        # a cast view copies two bytes at once.
        return int(mapping.words[(gpa - mapping.region.gpa) >> 1])

    def store_u16(self, gpa: int, value: int) -> None:
        """Write a 16-bit word at an even address (see ``load_u16``)."""
        if not self.is_shared(gpa):
            self.write(gpa, value.to_bytes(2, "little"))
            return
        mapping = self._regions.find(gpa)
        mapping.words[(gpa - mapping.region.gpa) >> 1] = value
        if self._mirror is not None:
            _store(self._mirror, gpa, value.to_bytes(2, "little"))

    def set_shared(self, gpa: int, length: int) -> None:
        """
        Share pages with the host; in a plain machine they are.

        What they held is lost (SEV-SNP, TDX) or reads as noise (SEV): write them anew.

        Args:
            gpa: First byte, of a page.
            length: Bytes, whole pages.

        Raises:
            GuestError: Not whole pages, or no RAM.
            PageStateError: One of them is shared already.
        """
        if self._protected is not None:
            self._protected.convert(gpa, length, private=False)

    def set_private(self, gpa: int, length: int) -> None:
        """Take pages back from the host (see ``set_shared``)."""
        if self._protected is not None:
            self._protected.convert(gpa, length, private=True)

    def is_shared(self, gpa: int) -> bool:
        """Tell whether the host sees what the guest writes at *gpa*."""
        return self._protected is None or self._protected.is_shared(gpa)

    @property
    def shared_pages(self) -> frozenset[int]:
        """Return the GPAs of all pages that were shared; in a plain machine none was."""
        return frozenset() if self._protected is None else self._protected.shared

    def damaged_pages(self) -> frozenset[int]:
        """Return the GPAs of private pages whose ciphertext is not the guest's (``sev`` only)."""
        return frozenset() if self._protected is None else self._protected.damaged(self.mappings)

    def move_page(self, gpa: int) -> None:
        """Let the host put the page at *gpa* elsewhere in the machine: its ciphertext changes."""
        if self._protected is not None:
            self._protected.move(gpa)

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
        mapping = self._regions.find(gpa)
        return mapping.uva + gpa - mapping.region.gpa

    def is_ram(self, gpa: int, length: int = 1) -> bool:
        """Tell whether every byte of the range is RAM."""
        try:
            self._regions.views(gpa, length)
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
        for mapping, after in itertools.pairwise(self.mappings):
            if after.region.gpa - mapping.region.end >= length:
                return mapping.region.end
        return self.mappings[-1].region.end

    def mirror(self, regions: Regions | None) -> None:
        """
        Have whatever the guest's CPU writes written to *regions* as well, from now on.

        Args:
            regions: A ``twin``; ``None``: no more.

        Raises:
            GuestError: The memory is protected, or a private copy: what the host sees of it is not
                what the guest wrote.
        """
        if self._protected is not None or not self._regions.share:
            raise GuestError("memory that the host does not see cannot be mirrored")
        self._mirror = regions

    def twin(self) -> Regions:
        """Return regions like these, full of zeros; the caller's to close."""
        return self._regions.twin()

    def exchange(self, regions: Regions) -> Regions:
        """Take *regions*, a ``twin``, in place of those there are; return these, to be closed."""
        before, self._regions, self._mirror = self._regions, regions, None
        return before

    def _protect(self, *, share: bool) -> Protected | None:
        pages = protect(self.protection)
        if pages is None:
            return None
        if not share and self.protection.mode != "sev":
            raise GuestError(f"memory of mode {self.protection.mode} cannot be a private copy")
        return Protected(self.protection, pages, self._regions.find)

    def _add(self, regions: list[Region]) -> None:
        self._regions.add(regions)
        for region in regions:
            self._allocator.add(region.gpa, region.size)


def _store(regions: Regions, gpa: int, data: bytes | bytearray | memoryview) -> None:
    done = 0
    for view in regions.views(gpa, len(data)):
        view[:] = data[done : done + len(view)]
        done += len(view)
