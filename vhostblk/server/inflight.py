"""
The inflight region: where queues note what they have taken and not given back.

The front-end keeps it while we are away, and hands it to whoever comes after us, which may be
another implementation, as may have been whoever made it.  What is in it is the data plane's
business; here it is made, mapped and shared out.

Spec: vhost-user, "Inflight I/O tracking".
"""

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL
from hashlib import blake2b
from pathlib import Path

from vhostblk.engine.api import Piece, Queue
from vhostblk.errors import Refused
from vhostblk.memory.mapping import Mapping
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.replies import InflightRegion
from vhostblk.server.log import Log
from vhostblk.server.place import Place

SPLIT_HEADER, SPLIT_ENTRY = 16, 16
PACKED_HEADER, PACKED_ENTRY = 32, 32
"""Bytes of the region of one queue: a header, and an entry for each descriptor.  Packed: 29 bytes
of header, and what follows is aligned to 8 and, in every implementation, to 32."""
_ALIGN = 64
"""Each queue begins on a cache line of its own."""
_WORD = 8
"""Bytes of the largest number in it."""
MAX_ENTRIES = 32768
"""The largest ring of either format: no region of a queue is longer than for that."""
_STRIDE_MAX = PACKED_HEADER + PACKED_ENTRY * MAX_ENTRIES + 4096
_LOWEST_FD = 3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """
    A region that is in use.

    Args:
        mapping: Its memory.
        num_queues: It is for so many, one behind the other.
        queue_size: Entries of each, as the front-end says.  QEMU 10.0 has rings of 1024 whatever
            it says here, so this is a lower bound.
    """

    mapping: Mapping
    num_queues: int
    queue_size: int

    @property
    def number(self) -> int:
        """
        What tells it from any other, here and on other hosts, and stays when it is handed on.

        A file in memory has a number of its own only within one kernel's life.
        """
        boot = b""
        with suppress(OSError):
            boot = _BOOT_ID.read_bytes()
        named = f"{boot.hex()} {self.mapping.file} {self.mapping.offset}"
        return int.from_bytes(blake2b(named.encode(), digest_size=8).digest())

    @property
    def stride(self) -> int:
        """Bytes from one queue's to the next one's: whoever made it has chosen, and not said."""
        return self.mapping.length // self.num_queues

    def of(self, place: Place) -> tuple[Piece, int] | None:
        """
        Return the memory of one queue, and its entries.

        Args:
            place: Of the ring, in the format it starts in.

        Returns:
            None where there is none, or not enough of it.
        """
        entries = max(self.queue_size, place.num)
        if place.index >= self.num_queues or region_size(entries, place.packed) > self.stride:
            return None
        return (self.mapping.address + place.index * self.stride, self.stride), entries


def region_size(entries: int, packed: bool) -> int:  # noqa: FBT001 - it has no other sense here
    """Return the bytes that a queue of *entries* descriptors needs."""
    if packed:
        return PACKED_HEADER + PACKED_ENTRY * entries
    return SPLIT_HEADER + SPLIT_ENTRY * entries


def track(queue: Queue, area: Area | None, place: Place, log: Log) -> Area | None:
    """
    Have a queue that is about to start note what it takes, where there is room for it.

    Args:
        queue: Parked.
        area: The region; None: there is none.
        place: Of its ring.
        log: For what an operator should know.

    Returns:
        Where it notes that now.
    """
    found = None if area is None else area.of(place)
    if found is not None:
        memory, size = found
        queue.set_inflight(memory, size=size)
        return area
    queue.set_inflight(None, size=0)
    if area is not None:
        log.warning(
            "queue %d: the front-end's inflight region has no room for its %d descriptors: "
            "after a crash its requests in flight would be lost",
            place.index,
            place.num,
        )
    return None


class Inflight:
    """
    What one front-end has of inflight regions.

    Args:
        queues: How many queues the device has.
        queue_size: Descriptors a ring may have.
        guard: Has the data plane survive the loss of a mapping's pages.
        bury: Releases mappings once nobody can touch them any more.

    Attributes:
        area: What the next start of a ring uses; None: nothing is noted.
        asked: A region was made on this connection: its driver begins here.
    """

    def __init__(
        self,
        *,
        queues: int,
        queue_size: int,
        guard: Callable[[Mapping], None],
        bury: Callable[[Sequence[Mapping]], None],
    ) -> None:
        self.area: Area | None = None
        self.asked = False
        self._queues = queues
        self._queue_size = queue_size
        self._guard = guard
        self._bury = bury
        self._offered: int | None = None

    def offer(self, num_queues: int, queue_size: int) -> InflightRegion:
        """
        Make a region, of which the front-end gets the descriptor.

        It has room for the larger format and for the largest ring: which there will be is known
        only when a ring starts.

        Args:
            num_queues: As GET_INFLIGHT_FD says it.
            queue_size: The same.

        Raises:
            Refused: They are not those of this device.
        """
        if not 1 <= num_queues <= self._queues:
            raise Refused(EINVAL, f"an inflight region for {num_queues} queues of {self._queues}")
        if not 1 <= queue_size <= self._queue_size:
            raise Refused(
                EINVAL, f"an inflight region for rings of {queue_size}, at most {self._queue_size}"
            )
        stride = -(-region_size(self._queue_size, packed=True) // _ALIGN) * _ALIGN
        size = num_queues * stride  # exactly: who gets it back divides
        self._withdraw()
        self._offered = _make(size)
        self.asked = True
        return InflightRegion(
            mmap_size=size,
            mmap_offset=0,
            num_queues=num_queues,
            queue_size=queue_size,
            fd=self._offered,
        )

    def take(
        self, fd: Fd, *, mmap_size: int, mmap_offset: int, num_queues: int, queue_size: int
    ) -> Area:
        """
        Take a region into use, made by us or by somebody else; the one before it goes.

        Args:
            fd: Its file; taken over.
            mmap_size: Bytes of it.
            mmap_offset: Where it begins in the file.
            num_queues: It is for so many.
            queue_size: Of so many descriptors or more.

        Returns:
            It, as long as it is in use.

        Raises:
            Refused: That cannot be, or the file is shorter; the one before it stays.

        Spec: vhost-user, "VHOST_USER_SET_INFLIGHT_FD".
        """
        _check(mmap_size, mmap_offset, num_queues, queue_size)
        mapping = Mapping(fd.take(), offset=mmap_offset, length=mmap_size)
        self._guard(mapping)
        self.forget()
        self.area = Area(mapping=mapping, num_queues=num_queues, queue_size=queue_size)
        return self.area

    def forget(self) -> None:
        """Use none any more: the driver begins anew, and there will be a new one."""
        if self.area is not None:
            self._bury([self.area.mapping])
        self.area = None
        self._withdraw()

    def close(self) -> None:
        """Let go of everything; the front-end keeps what it has."""
        self.forget()

    def _withdraw(self) -> None:
        if self._offered is not None:
            os.close(self._offered)
        self._offered = None


def _check(size: int, offset: int, num_queues: int, queue_size: int) -> None:
    if num_queues == 0 or not 1 <= queue_size <= MAX_ENTRIES:
        raise Refused(EINVAL, f"an inflight region for {num_queues} queues of {queue_size}")
    stride = size // num_queues
    if not region_size(1, packed=False) <= stride <= _STRIDE_MAX:
        raise Refused(EINVAL, f"an inflight region of {size:#x} bytes for {num_queues} queues")
    if offset % _WORD or stride % _WORD:
        raise Refused(EINVAL, f"an inflight region at {offset:#x}, {stride:#x} bytes a queue")
    if offset + size > 1 << 63:
        raise Refused(EINVAL, f"an inflight region of {size:#x} bytes at {offset:#x}")


def _make(size: int) -> int:
    """Make zeroes that nobody can cut off, under a number that is nobody's "no descriptor"."""
    made = os.memfd_create("vhostblk-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, size)
        with suppress(OSError):  # where a sandbox lets nobody seal it is as good as others'
            fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
        return fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
    finally:
        os.close(made)
