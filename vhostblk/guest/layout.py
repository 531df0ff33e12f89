"""
Where RAM lies in the guest: addresses only, no memory.

Spec: vhost-user, "Memory regions description".
"""

import mmap
from dataclasses import dataclass

MIB = 1 << 20
PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Region:
    """
    Where a piece of RAM lies in the guest.

    Args:
        gpa: First guest-physical address, a multiple of the page size.
        size: Bytes, a multiple of the page size.
    """

    gpa: int
    size: int

    @property
    def end(self) -> int:
        """Return the first address behind the region."""
        return self.gpa + self.size


def pc_layout(below: int, above: int) -> list[Region]:
    """
    Lay RAM out as a PC does, with the hole for devices below 4 GiB.

    Args:
        below: Bytes at address 0.
        above: Bytes at 4 GiB.

    Returns:
        Two regions.
    """
    return [Region(0, below), Region(1 << 32, above)]


def slots_layout(count: int, size: int, *, gap: int = 0, base: int = 1 << 32) -> list[Region]:
    """
    Lay out many equal regions.

    Args:
        count: How many.
        size: Bytes of each.
        gap: Bytes between two of them; 0 makes them touch.
        base: GPA of the first.

    Returns:
        The regions, by address.
    """
    return [Region(base + i * (size + gap), size) for i in range(count)]
