"""
Where a guest's requests go, and what that says of the guest: pure inference from samples.

A confidential Linux guest bounces all of its I/O through one pool (swiotlb), cut into slots of
2 KiB.  Every mapping gets slots of its own, so the header and the status byte of a request, which
are neighbours in the driver, are in different slots, each at the beginning of one; an indirect
table is at the beginning of one, too.  No other driver has a reason to do that.

A `Window` is about one start.  Firmware goes before the system and has its own: SeaBIOS reads into
low memory directly even in a guest whose kernel will bounce.

Source: Linux, kernel/dma/swiotlb.c; Documentation/core-api/swiotlb.rst.
"""

from collections.abc import Callable, Iterable
from enum import Enum, StrEnum

from vhostblk.memory.pages import PageSet
from vhostblk.memory.ranges import Range
from vhostblk.memory.sample import Role, Sample
from vhostblk.spec.virtio_blk import REQUEST_HEADER_SIZE

SLOT = 2048
"""Bytes of a swiotlb slot: IO_TLB_SIZE."""
SCORED = 32
"""Requests that decide what the guest is."""
MAX_SPAN = 1 << 30
"""Bytes of the largest pool there is: confidential guests get 6 % of their memory up to that."""
MAX_ISLANDS = 64
ISLAND_GAP = 4 << 20
"""Bytes between pages of one island at most: the largest piece a dynamic swiotlb grows by.  One
request in many is sampled, so what is seen of one pool has holes."""

MAX_BUFFERS = 256
"""Buffers of a request whose pages are noted; no driver uses more, as `seg_max` is 126."""

Locate = Callable[[int, int], Iterable[Range]]
"""(address, length) as in a descriptor to guest physical ranges: what is known of it."""


class GuestDma(StrEnum):
    """How a guest lets the device at its buffers."""

    UNKNOWN = "unknown"
    DIRECT = "direct"
    BOUNCED = "bounced"
    IOMMU = "iommu"


class Use(Enum):
    """What pages are there for."""

    RING = "ring"
    TABLE = "table"
    META = "header or status"
    DATA = "data"


class Window:
    """
    What one start of a device has shown; its size does not depend on the guest.

    Attributes:
        pages: What was seen, by its use.
        segment_max: Bytes of the longest buffer among the samples.
        scored: Requests that count for `guest_dma`, up to `SCORED`.
        translated: A ring of this start is behind an IOMMU.
    """

    def __init__(self) -> None:
        self.pages = {use: PageSet() for use in Use}
        self.segment_max = 0
        self.scored = 0
        self.translated = False
        self._slotted = 0

    def score(self, *, slotted: bool) -> None:
        """Count a request that looks bounced, or does not."""
        if self.scored < SCORED:
            self.scored += 1
            self._slotted += slotted

    @property
    def guest_dma(self) -> GuestDma:
        """Return what the guest is, as far as that is decided."""
        if self.translated:
            return GuestDma.IOMMU
        if self.scored < SCORED:
            return GuestDma.UNKNOWN
        return GuestDma.BOUNCED if self._slotted == self.scored else GuestDma.DIRECT

    def shared(self) -> PageSet:
        """Return the pages of all requests; rings are not in the pool, nor near it."""
        union = PageSet()
        for use in (Use.TABLE, Use.META, Use.DATA):
            union.update(self.pages[use])
        return union

    def is_window(self, shared: PageSet) -> bool:
        """Tell whether *shared* looks like a pool: not scattered, as firmware's buffers are."""
        return (
            self.guest_dma is GuestDma.BOUNCED
            and shared.span <= MAX_SPAN
            and len(shared.islands(ISLAND_GAP)) <= MAX_ISLANDS
        )


class Tap:
    """
    Samples of one queue in one start, put together to requests again.

    Args:
        window: What they are for.
        whole: Requests at the beginning of which no sample is missing: only they are scored.
    """

    def __init__(self, window: Window, *, whole: int) -> None:
        self._window = window
        self._whole = whole
        self._chain: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._header: int | None = None
        self._writable: Sample | None = None
        self._tables = True
        self._buffers = 0

    @property
    def scores(self) -> bool:
        """Whether requests are still to come that count for what the guest is."""
        return self._whole > 0

    def take(self, samples: Iterable[Sample], locate: Locate) -> None:
        """
        Learn from samples.

        Args:
            samples: The next ones, in order; a request may end in a later call.
            locate: Tells where they are.
        """
        for sample in samples:
            if sample.chain != self._chain:
                self.end(locate)
                self._chain = sample.chain
            if sample.length > 0:
                self._heed(sample, locate)

    def _heed(self, sample: Sample, locate: Locate) -> None:
        if sample.role is Role.TABLE:
            self._tables &= sample.iova % SLOT == 0
            self._see(Use.TABLE, sample, locate)
            return
        self._window.segment_max = max(self._window.segment_max, sample.length)
        if sample.role is Role.WRITABLE:
            if self._writable is not None:  # not the last one: no status in it
                self._see(Use.DATA, self._writable, locate)
            self._writable = sample
        elif self._header is None:
            self._header = sample.iova
            self._see(Use.META, sample, locate, end=REQUEST_HEADER_SIZE)
            self._see(Use.DATA, sample, locate, begin=REQUEST_HEADER_SIZE)
        else:
            self._see(Use.DATA, sample, locate)

    def end(self, locate: Locate) -> None:
        """End the request in hand: nothing more of it will come."""
        last = self._writable
        if last is not None:
            self._see(Use.DATA, last, locate, end=last.length - 1)
            self._see(Use.META, last, locate, begin=last.length - 1)
        if self._chain is not None and self._whole:
            self._whole -= 1
            if self._header is not None and last is not None:
                self._window.score(slotted=self._tables and _apart(self._header, last))
        self._chain = None
        self._forget()

    def _see(
        self, use: Use, sample: Sample, locate: Locate, *, begin: int = 0, end: int | None = None
    ) -> None:
        """Note the pages of a part of a buffer; one that was not to be touched has none."""
        self._buffers += 1
        if self._buffers > MAX_BUFFERS:
            return
        length = min(sample.length, sample.length if end is None else end) - begin
        if sample.outside or length <= 0:
            return
        for gpa, here in locate(sample.iova + begin, length):
            self._window.pages[use].add(gpa, here)


def _apart(header: int, status: Sample) -> bool:
    """Tell whether header and status have a slot each, to themselves."""
    slots = {header // SLOT, status.iova // SLOT}
    return header % SLOT == status.iova % SLOT == 0 and status.length == 1 and len(slots) > 1
