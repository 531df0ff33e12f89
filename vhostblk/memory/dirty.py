"""
The dirty log: a bit for each page of guest physical memory that the device has written.

A front-end that migrates its guest gives a log and takes the bits away as it sends pages.  Only the
C core marks it, by an atomic OR that Python has not; here is what it must look like.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vhostblk.memory.ranges import Range
from vhostblk.memory.regions import RegionTable

PAGE = 4096
"""Bytes of guest physical memory one bit stands for, whatever the guest's page size."""
LOG_USED_BY_HOST: Final = (1 << 64) - 2
"""In place of an address: the used ring is looked up in the regions, as data is.  For a ring behind
an IOMMU, whose address for the log is no guest physical one; the number is the C header's."""


@dataclass(frozen=True, slots=True)
class LogRegion:
    """
    A stretch of memory that the log can tell of; nothing of it need begin on a page.

    Args:
        host: Where it lives in this process.
        length: Bytes, at least 1.
        gpa: Its first guest physical address.
    """

    host: int
    length: int
    gpa: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DirtyLog:
    """
    What a queue marks.

    Args:
        address: Of the log in this process; mapped until the queue has another one, or none.
        length: Of the log in bytes; pages that have no bit in it are not marked.
        regions: Sorted by *host*, disjoint.  What lies in none is not marked.
        used_gpa: Guest physical address the used ring is logged at, or `LOG_USED_BY_HOST`; None:
            nothing of the ring is logged.

    Spec: vhost-user, "Migration"; "VHOST_USER_SET_LOG_BASE".
    """

    address: int
    length: int
    regions: tuple[LogRegion, ...]
    used_gpa: int | None = None

    def ranges(self, host: int, length: int) -> list[Range]:
        """
        Say where in guest physical memory a stretch of this process's lies.

        Args:
            host: Its first byte.
            length: Bytes.

        Returns:
            (guest physical address, bytes) of each part that lies in a region, in order.
        """
        found: list[Range] = []
        for region in self.regions:
            start = max(host, region.host)
            end = min(host + length, region.host + region.length)
            if start < end:
                found.append((region.gpa + start - region.host, end - start))
        return found

    def pages(self, written: Iterable[Range]) -> set[int]:
        """
        Return the pages that must be marked.

        Args:
            written: Ranges of guest physical memory.
        """
        return {
            page
            for gpa, length in written
            for page in range(gpa // PAGE, -(-(gpa + length) // PAGE))
            if length and page < 8 * self.length
        }


def log_regions(table: RegionTable) -> tuple[LogRegion, ...]:
    """Return all memory of a front-end as a log wants it."""
    regions = (
        LogRegion(one.mapping.address, one.place.size, one.place.gpa) for one in table.regions
    )
    return tuple(sorted(regions, key=lambda region: region.host))


def marked(log: bytes) -> set[int]:
    """Return the pages whose bits are set in the bytes of a log."""
    return {
        8 * at + bit for at, byte in enumerate(log) if byte for bit in range(8) if byte >> bit & 1
    }


def log_bytes(table: RegionTable) -> int:
    """Return the bytes of the shortest log that has a bit for every page of memory."""
    end = max((one.place.gpa + one.place.size for one in table.regions), default=0)
    return -(-end // (8 * PAGE))
