"""Where on a disk the tests read and write, and how they cut their requests."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest

from vhostblk.guest.blk import Framing, Request
from vhostblk.guest.guest import Guest
from vhostblk.guest.options import RINGS
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import SECTOR_SIZE

on_all_rings = pytest.mark.parametrize("vhostblk_guest", RINGS, indirect=True, ids=str)
"""A test of ``vhostblk_guest`` runs with every kind of ring that the back-end offers."""
on_both_formats = pytest.mark.parametrize(
    "vhostblk_guest",
    [one for one in RINGS if str(one) in {"split", "packed"}],
    indirect=True,
    ids=str,
)
MANY = 64
"""Requests in flight at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """
    A disk's measures.

    Args:
        block: Bytes of a logical block.
        sectors: Of the disk.
        most: Bytes of a request that every back-end takes in one piece.
    """

    block: int
    sectors: int
    most: int

    @classmethod
    def of(cls, guest: Guest) -> Self:
        """Ask the config space."""
        config = guest.config()
        block = config.blk_size if guest.features & vb.F_BLK_SIZE else SECTOR_SIZE
        most = min(8 * max(block, SECTOR_SIZE), config.capacity * SECTOR_SIZE)
        if guest.features & vb.F_SIZE_MAX and config.size_max:
            most = max(min(most, config.size_max // block * block), block)
        return cls(block=block, sectors=config.capacity, most=most)

    @property
    def last(self) -> int:
        """Return the first sector of the last block."""
        return self.sectors - self.block // SECTOR_SIZE

    def blocks(self, count: int) -> Iterator[int]:
        """Yield the first sectors of some blocks, spread over the disk."""
        step = self.block // SECTOR_SIZE
        total = self.sectors // step
        for i in range(min(count, total)):
            yield i * total // min(count, total) * step


def framings(guest: Guest, request: Request) -> Iterator[Framing]:
    """Yield ways to cut a request that mean nothing to it, as far as this queue has room."""
    most = guest.queues[0].ring.shape.size
    config = guest.config()
    if guest.features & vb.F_SEG_MAX and config.seg_max:
        most = min(most, config.seg_max + 2)
    data = max(len(request.out), request.in_length)
    for framing in (
        Framing(),
        Framing.compact(),
        Framing(readable=(1, 15), writable=(data, 1)),
        Framing(readable=(7, 9)),
        Framing(readable=(8, 8 + data // 2), writable=(data // 2,)),
        Framing(readable=(16, 1), writable=(1,)),
        Framing(skew=1),
        Framing(skew=513, align=4096),
        Framing.every(SECTOR_SIZE, request),
        Framing.every(max(data // 30, 1), request),
    ):
        readable, writable = framing.cut(request)
        if len(readable) + len(writable) <= most:
            yield framing
