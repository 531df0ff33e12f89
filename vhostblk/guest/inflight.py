"""
The region in which a back-end notes what it has taken and not yet given back.

The back-end makes it, the front-end keeps it: over a stop, and over the back-end's death.  The
layout is the standard's, but not the distance between the parts of two queues, so a back-end may be
handed a region that another implementation would have made.

Spec: vhost-user, "Inflight I/O tracking".
"""

import os
import struct
from dataclasses import dataclass
from typing import Literal

from vhostblk.guest.errors import GuestError
from vhostblk.guest.mapping import make_memfd

LAYOUT = struct.Struct("=QQHH4x")
SPLIT_HEAD = struct.Struct("=QHHHH")
SPLIT_DESC = struct.Struct("=B5xHQ")
PACKED_HEAD = struct.Struct("=QHHHHHHBB")
PACKED_DESC = struct.Struct("=BxHHHQHHIQ")
PACKED_DESCS_AT = 32
CACHE_LINE = 64

Maker = Literal["libvhost-user", "dpdk", "yc"]
"""Whose strides; each of them has made the regions that QEMU keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflight:
    """
    A region.

    Args:
        fd: Its memory; owned.
        mmap_size: Bytes, as the back-end said.
        mmap_offset: Where it begins in *fd*.
        num_queues: Queues it has room for.
        queue_size: Descriptors of each.
    """

    fd: int
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int

    @classmethod
    def make(
        cls,
        maker: Maker,
        *,
        queues: int,
        queue_size: int,
        packed: bool = False,
        offset: int = 0,
    ) -> "Inflight":
        """
        Make a region of zeros, as another back-end would have.

        Args:
            maker: Which; yc knows no packed rings.
            queues: How many.
            queue_size: Descriptors of each.
            packed: For packed rings.
            offset: Where it begins in its file, in bytes, whole pages.

        Returns:
            The region; close it, or hand it to a guest.
        """
        size = stride(maker, queue_size, packed=packed) * queues
        return cls(
            fd=make_memfd(offset + size, hugetlb=False),
            mmap_size=size,
            mmap_offset=offset,
            num_queues=queues,
            queue_size=queue_size,
        )

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)

    def pack(self) -> bytes:
        """Return the 24 bytes of the message."""
        return LAYOUT.pack(self.mmap_size, self.mmap_offset, self.num_queues, self.queue_size)

    @classmethod
    def parse(cls, payload: bytes, fd: int) -> "Inflight":
        """
        Unpack the reply of a back-end.

        Args:
            payload: Of the reply.
            fd: That came with it.

        Raises:
            GuestError: It has another size; QEMU looks at that, too.
        """
        if len(payload) != LAYOUT.size:
            raise GuestError(f"an inflight reply has {len(payload)} bytes, not {LAYOUT.size}")
        size, offset, queues, queue_size = LAYOUT.unpack(payload)
        return cls(
            fd=fd, mmap_size=size, mmap_offset=offset, num_queues=queues, queue_size=queue_size
        )

    @property
    def stride(self) -> int:
        """Return the bytes from one queue's part to the next."""
        return self.mmap_size // self.num_queues

    def read(self, queue: int, offset: int, length: int) -> bytes:
        """Read from the part of *queue*."""
        return os.pread(self.fd, length, self._at(queue, offset))

    def write(self, queue: int, offset: int, data: bytes) -> None:
        """Write into the part of *queue*, as the back-end that died might have."""
        os.pwrite(self.fd, data, self._at(queue, offset))

    def marked(self, queue: int, *, packed: bool = False) -> list[int]:
        """
        Tell what is in flight according to the region.

        Args:
            queue: Which.
            packed: It has the packed format.

        Returns:
            Heads, or buffer ids, in the order in which they were taken.
        """
        at, desc = (PACKED_DESCS_AT, PACKED_DESC) if packed else (SPLIT_HEAD.size, SPLIT_DESC)
        count = self.desc_num(queue)
        rows = list(desc.iter_unpack(self.read(queue, at, count * desc.size)))
        flying = [(row[4 if packed else 2], i) for i, row in enumerate(rows) if row[0]]
        # Of a packed chain the id is in the last of its entries.
        return [rows[rows[i][2]][5] if packed else i for _, i in sorted(flying)]

    def desc_num(self, queue: int) -> int:
        """Return how many descriptors the part of *queue* is for, 0 before its first use."""
        head = SPLIT_HEAD.unpack(self.read(queue, 0, SPLIT_HEAD.size))
        return int(head[2])

    def _at(self, queue: int, offset: int) -> int:
        return self.mmap_offset + queue * self.stride + offset


def stride(maker: Maker, queue_size: int, *, packed: bool = False) -> int:
    """
    Return the bytes that an implementation gives to a queue.

    Source: libvhost-user.c, vu_inflight_queue_size; DPDK, lib/vhost/vhost_user.c,
    get_pervq_shm_size_split and _packed; yc-libvhost-server, vdev.c.
    """
    if packed:
        return _up(PACKED_DESCS_AT + PACKED_DESC.size * queue_size)
    match maker:
        case "libvhost-user":  # room for the header comes from rounding up
            return max(_up(SPLIT_DESC.size * queue_size + 2), CACHE_LINE)
        case "dpdk":
            return _up(SPLIT_HEAD.size + SPLIT_DESC.size * queue_size)
        case "yc":
            return SPLIT_HEAD.size + SPLIT_DESC.size * queue_size


def _up(size: int) -> int:
    return -(-size // CACHE_LINE) * CACHE_LINE
