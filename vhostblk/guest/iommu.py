"""
An IOMMU in front of the device: the driver maps IOVAs, the front-end answers what the device asks.

Three parties meet here.  The driver takes IOVAs from the top down and uses those it gave back at
once, so that a device that remembers too long reads the wrong page.  The front-end answers MISS
on a thread of its own, but never while it waits for a reply, as QEMU does.  The page table is
between them.

Spec: vhost-user, "IOMMU support"; ``struct vhost_iotlb_msg`` of <linux/vhost_types.h>.
"""

import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vhostblk.guest import wire
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.dma import Dma
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.ring import RingAddresses, avail_bytes, desc_bytes, used_bytes
from vhostblk.spec.vhost_user import BackendRequest, IotlbType

Flush = Literal["page", "global"]
Answer = Literal["prompt", "late", "negative", "silent"]

TOP = 1 << 32
"""IOVAs are taken from here downwards, as Linux does."""
FLUSHES = ((0, 0xFEE0_0000), (0xFEF0_0000, (1 << 64) - 0xFEF0_0000))
"""What QEMU sends for a global flush: all but the interrupt window; the second ends at 2^64."""
READ, WRITE = 1, 2
_POLL_MS = 20


@dataclass(frozen=True, slots=True)
class Mapped:
    """
    A run of pages.

    Args:
        iova: First byte, at a page border.
        gpa: Where that is.
        length: Bytes, whole pages.
        perm: 1: the device may read, 2: write, 3: both.
    """

    iova: int
    gpa: int
    length: int
    perm: int


Answers: TypeAlias = Callable[[Mapped], Answer]
"""How a MISS is answered, by what it is for."""


class Iommu:
    """
    A page table, and the front-end that speaks for it.

    Args:
        memory: The guest's.
        flush: What the front-end sends when the driver unmaps: the pages, or two halves of
            everything.
    """

    def __init__(self, memory: GuestMemory, *, flush: Flush = "page") -> None:
        self._memory = memory
        self._flush = flush
        self._mapped: dict[int, Mapped] = {}
        self._frontend: FrontEnd | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.answers: Answers = lambda _: "prompt"
        """How the front-end answers a MISS of something that is mapped."""
        self.misses = 0
        self.invalidations = 0

    # ---- the page table -------------------------------------------------------------------

    def map(self, gpa: int, length: int, perm: int) -> int:
        """Map the pages of a buffer; return the IOVA of its first byte."""
        first = gpa - gpa % PAGE
        size = -(-(gpa + length - first) // PAGE) * PAGE
        iova = self._room(size)
        self._mapped[iova] = Mapped(iova, first, size, perm)
        return iova + gpa - first

    def _room(self, size: int) -> int:
        end = TOP
        for start in sorted(self._mapped, reverse=True):
            if end - (start + self._mapped[start].length) >= size:
                break
            end = start
        return end - size

    def find(self, iova: int) -> Mapped | None:
        """Return what is mapped there."""
        for one in tuple(self._mapped.values()):
            if one.iova <= iova < one.iova + one.length:
                return one
        return None

    def gpa(self, iova: int) -> int:
        """
        Return where *iova* leads.

        Raises:
            GuestError: Nowhere.
        """
        one = self.find(iova)
        if one is None:
            raise GuestError(f"IOVA {iova:#x} is not mapped")
        return one.gpa + iova - one.iova

    def unmap(self, iova: int) -> None:
        """Take a mapping away; when this returns, the device has forgotten it."""
        one = self.find(iova)
        if one is None:
            raise GuestError(f"IOVA {iova:#x} is not mapped")
        del self._mapped[one.iova]
        if self._frontend is None:
            return
        for start, size in ((one.iova, one.length),) if self._flush == "page" else FLUSHES:
            self.invalidations += 1
            self._frontend.iotlb(wire.Iotlb(start, size, 0, 0, IotlbType.INVALIDATE))

    # ---- the front-end --------------------------------------------------------------------

    def plug(self, frontend: FrontEnd, channel: BackendChannel) -> None:
        """Begin to answer; the device is about to start."""
        self._frontend = frontend
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, args=(frontend, channel), daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Answer nothing and invalidate nothing any more, as QEMU when the device has stopped."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._frontend = None

    def tell(self, iova: int) -> None:
        """Send an UPDATE for one page, asked for or not."""
        one = self.find(iova)
        if one is None or self._frontend is None:
            raise GuestError(f"IOVA {iova:#x} is not mapped, or nobody listens")
        page = iova - iova % PAGE
        uva = self._memory.uva(one.gpa + page - one.iova)
        self._frontend.iotlb(wire.Iotlb(page, PAGE, uva, one.perm, IotlbType.UPDATE))

    def _serve(self, frontend: FrontEnd, channel: BackendChannel) -> None:
        poller = select.poll()
        poller.register(channel.connection.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            if not poller.poll(_POLL_MS):
                continue
            try:
                # Not while a reply is waited for: QEMU serves nothing then.
                with frontend.lock:
                    self._answer(channel)
            except GuestError:
                return  # the back-end is gone, or has said no to an update

    def _answer(self, channel: BackendChannel) -> None:
        request = channel.receive()
        if request.request != BackendRequest.IOTLB_MSG:
            channel.reply(request, 1)
            return
        asked = wire.Iotlb.parse(request.payload)
        self.misses += 1
        one = self.find(asked.iova)
        answer = "negative" if one is None else self.answers(one)
        if answer == "negative":
            channel.reply(request, 1)
        elif answer == "prompt":
            self.tell(asked.iova)
            channel.reply(request)
        elif answer == "late":
            channel.reply(request)
            self.tell(asked.iova)


class Remapped:
    """
    The driver's way to show memory to a device behind an IOMMU.

    Args:
        dma: How it would show it without.
        iommu: The IOMMU.
    """

    def __init__(self, dma: Dma, iommu: Iommu) -> None:
        self._dma = dma
        self._iommu = iommu

    @property
    def max_mapping(self) -> int | None:
        """Return the limit without the IOMMU: it adds none."""
        return self._dma.max_mapping

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        """Map the pages, with no more rights than are needed."""
        at = self._dma.map(gpa, length, writable=writable, cpu=cpu)
        return self._iommu.map(at, length, WRITE if writable else READ)

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Unmap, and have the device forget."""
        at = self._iommu.gpa(address)
        self._iommu.unmap(address)
        self._dma.unmap(at, written, spare=spare)

    def drop(self, address: int) -> None:
        """Unmap what the device may still be using."""
        at = self._iommu.gpa(address)
        self._iommu.unmap(address)
        self._dma.drop(at)

    def allocate_ring(self, size: int) -> RingAddresses:
        """Allocate a ring; `RingMap` shows it to the device."""
        return self._dma.allocate_ring(size)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Give the memory of a ring back."""
        self._dma.free_ring(addresses)

    def close(self) -> None:
        """Close what is below; the IOMMU stays, for the driver after this one."""
        self._dma.close()


@dataclass(slots=True)
class RingMap:
    """
    Where the IOMMU shows the rings of a device.

    Args:
        iommu: The IOMMU.
    """

    iommu: Iommu
    _shown: dict[int, RingAddresses] = field(default_factory=dict)

    def show(self, index: int, addresses: RingAddresses, size: int) -> RingAddresses:
        """Map the parts of ring *index*, in place of those it had; return their IOVAs."""
        before = self._shown.pop(index, None)
        if before is not None:
            for iova in (before.desc, before.avail, before.used):
                self.iommu.unmap(iova)
        both = READ | WRITE
        shown = RingAddresses(
            desc=self.iommu.map(addresses.desc, desc_bytes(size), both),
            avail=self.iommu.map(addresses.avail, avail_bytes(size), both),
            used=self.iommu.map(addresses.used, used_bytes(size), both),
        )
        self._shown[index] = shown
        return shown

    def tell(self, index: int) -> None:
        """Send the page of a used ring unasked, as QEMU does at a start."""
        self.iommu.tell(self._shown[index].used)
