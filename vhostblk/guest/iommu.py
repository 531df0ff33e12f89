"""
An IOMMU in front of the device: the driver maps IOVAs, the front-end answers what the device asks.

Three parties meet here.  The driver takes IOVAs from the top down and uses those it gave back at
once, so that a device that remembers too long reads the wrong page.  The front-end answers MISS
on a thread of its own, but never while it waits for a reply, as QEMU does.  The page table is
between them.

Spec: vhost-user, "IOMMU support"; ``struct vhost_iotlb_msg`` of <linux/vhost_types.h>.
"""

import contextlib
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vhostblk.guest import wire
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.errors import DisconnectedError, GuestError, NackError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.spec.vhost_user import BackendRequest, IotlbType

Flush = Literal["page", "aligned", "global"]
Answer = Literal["prompt", "late", "slow", "negative", "silent", "read-only", "wide"]

TOP = 1 << 32
"""IOVAs are taken from here downwards, as Linux does."""
FLUSHES = ((0, 0xFEE0_0000), (0xFEF0_0000, (1 << 64) - 0xFEF0_0000))
"""What QEMU sends for a global flush: all but the interrupt window; the second ends at 2^64."""
FLOOD = 1 << 40
"""IOVA from which on ``flood`` tells of pages; no driver takes any up there."""
READ, WRITE = 1, 2
_POLL_MS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class IommuOptions:
    """
    What kind of IOMMU it is.

    Args:
        flush: What the front-end sends when the driver unmaps, before the driver goes on:
            ``page``: every page by itself, as with ATS; ``aligned``: the smallest power of two of
            pages that holds them, neighbours included; ``global``: everything, in two messages of
            which the second ends at 2^64.
        entries: How much an UPDATE tells: ``page``, or ``run``: all that was mapped with it.
        top: IOVAs are taken from here downwards; a multiple of the page size.
        identity: IOVAs are guest-physical addresses, and all RAM is mapped for ever (``iommu=pt``).
            The firmware's are so in any case.
    """

    flush: Flush = "page"
    entries: Literal["page", "run"] = "page"
    top: int = TOP
    identity: bool = False

    @classmethod
    def of(cls, chosen: "Flush | IommuOptions") -> "IommuOptions":
        """
        Make them of the name of a flush.

        Args:
            chosen: A name, or options made already.

        Raises:
            GuestError: There is no such flush, or IOVAs would not begin at a page.
        """
        made = cls(flush=chosen) if isinstance(chosen, str) else chosen
        if made.flush not in {"page", "aligned", "global"}:
            raise GuestError(f"there is no IOMMU flush {made.flush!r}: page, aligned or global")
        if made.top <= 0 or made.top % PAGE:
            raise GuestError(f"IOVAs cannot begin at {made.top:#x}: not a multiple of {PAGE}")
        return made


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
        options: What kind; the name of a flush stands for the others as they are.
    """

    def __init__(self, memory: GuestMemory, options: Flush | IommuOptions = "page") -> None:
        self._memory = memory
        self._options = IommuOptions.of(options)
        self._mapped: dict[int, Mapped] = {}
        self._frontend: FrontEnd | None = None
        self._channel: BackendChannel | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._passed: set[int] = set()
        self._delayed: list[tuple[float, wire.Message | None, int]] = []
        self.identity = self._options.identity
        """IOVAs are GPAs now; change it while the device is stopped."""
        self.answers: Answers = lambda _: "prompt"
        """How the front-end answers a MISS of something that is mapped."""
        self.delay = 0.0
        """Seconds that answers take which are late or slow."""
        self.misses = 0
        self.invalidations = 0
        self.updates = 0
        self.refused = 0
        """Of those that answered a MISS, how many the back-end refused."""

    # ---- the page table -------------------------------------------------------------------

    def map(self, gpa: int, length: int, perm: int) -> int:
        """
        Map the pages of a buffer; return the IOVA of its first byte.

        Raises:
            GuestError: No IOVAs are left.
        """
        if self.identity:
            self._passed.add(gpa)
            return gpa
        first = gpa - gpa % PAGE
        size = -(-(gpa + length - first) // PAGE) * PAGE
        iova = self._room(size)
        self._mapped[iova] = Mapped(iova, first, size, perm)
        return iova + gpa - first

    def _room(self, size: int) -> int:
        end = self._options.top
        for start in sorted(self._mapped, reverse=True):
            if end - (start + self._mapped[start].length) >= size:
                break
            end = start
        if end < size:
            raise GuestError(f"no {size} bytes of IOVAs are left below {self._options.top:#x}")
        return end - size

    def find(self, iova: int) -> Mapped | None:
        """Return what is mapped there."""
        if self.identity:
            page = iova - iova % PAGE
            return Mapped(page, page, PAGE, READ | WRITE) if self._memory.is_ram(page) else None
        return self._found(iova)

    def _found(self, iova: int) -> Mapped | None:
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
        if iova in self._passed:
            self._passed.remove(iova)
            return
        one = self._found(iova)
        if one is None:
            raise GuestError(f"IOVA {iova:#x} is not mapped")
        del self._mapped[one.iova]
        if self._frontend is not None:
            with contextlib.suppress(DisconnectedError):  # who is gone remembers nothing
                for start, size in self._flushes(one):
                    self.invalidate(start, size)

    def reset(self, *, firmware: bool) -> None:
        """Begin anew with the machine: nobody tells the device, which is stopped."""
        self.identity = firmware or self._options.identity

    def _flushes(self, one: Mapped) -> list[tuple[int, int]]:
        match self._options.flush:
            case "page":
                return [(at, PAGE) for at in range(one.iova, one.iova + one.length, PAGE)]
            case "aligned":
                size = PAGE
                while one.iova // size != (one.iova + one.length - 1) // size:
                    size *= 2
                return [(one.iova - one.iova % size, size)]
            case _:
                return list(FLUSHES)

    # ---- the front-end --------------------------------------------------------------------

    def plug(self, frontend: FrontEnd, channel: BackendChannel) -> None:
        """Begin to answer; the device is about to start."""
        self._frontend = frontend
        self._stopping.clear()
        channel.served = True
        self._channel = channel
        self._thread = threading.Thread(target=self._serve, args=(frontend, channel), daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Answer nothing and invalidate nothing any more, as QEMU when the device has stopped."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._channel is not None:
            self._channel.served = False
        self._thread = self._frontend = self._channel = None

    def invalidate(self, iova: int, length: int) -> None:
        """
        Have the device forget a range, whether it is still mapped or not.

        Args:
            iova: First byte.
            length: Bytes; the range may end at 2^64.

        Raises:
            GuestError: Nobody listens, or the back-end refused.
        """
        self.invalidations += 1
        self._listener().iotlb(wire.Iotlb(iova, length, 0, 0, IotlbType.INVALIDATE))

    def tell(self, iova: int, *, perm: int | None = None) -> None:
        """
        Send an UPDATE for what is mapped at *iova*, asked for or not.

        Args:
            iova: Any byte of the page.
            perm: Rights to tell of; ``None``: those it has.

        Raises:
            GuestError: It is not mapped, nobody listens, or the back-end refused.
        """
        one = self.find(iova)
        if one is None:
            raise GuestError(f"IOVA {iova:#x} is not mapped")
        start, size = iova - iova % PAGE, PAGE
        if self._options.entries == "run":
            start, size = one.iova, one.length
        uva = self._memory.uva(one.gpa + start - one.iova)
        self._update(wire.Iotlb(start, size, uva, perm or one.perm, IotlbType.UPDATE))

    def flood(self, count: int, *, first: int = 0) -> None:
        """
        Tell of many pages that nobody asked for, no two of which continue each other.

        Args:
            count: How many UPDATE messages.
            first: Where to go on: how many were sent before.

        Raises:
            GuestError: Nobody listens, or the back-end refused.
        """
        place = self._memory.mappings[0]
        pages = place.region.size // PAGE
        for i in range(first, first + count):
            uva = place.uva + (pages - 1 - i % pages) * PAGE
            self._update(wire.Iotlb(FLOOD + i * PAGE, PAGE, uva, READ | WRITE, IotlbType.UPDATE))

    def _update(self, message: wire.Iotlb) -> None:
        self.updates += 1
        self._listener().iotlb(message)

    def _listener(self) -> FrontEnd:
        frontend = self._frontend
        if frontend is None:
            raise GuestError("the device is stopped: nobody listens to its IOMMU")
        return frontend

    def _serve(self, frontend: FrontEnd, channel: BackendChannel) -> None:
        poller = select.poll()
        poller.register(channel.connection.fileno(), select.POLLIN)
        self._delayed.clear()
        while not self._stopping.is_set():
            asked = poller.poll(self._patience())
            try:
                # Not while a reply is waited for: QEMU serves nothing then.
                with frontend.lock:
                    if asked:
                        self._answer(channel)
                    self._answer_delayed(channel)
            except GuestError:
                return  # the back-end is gone

    def _patience(self) -> int:
        if not self._delayed:
            return _POLL_MS
        left = min(due for due, _, _ in self._delayed) - time.monotonic()
        return max(0, min(_POLL_MS, int(left * 1000) + 1))

    def _answer(self, channel: BackendChannel) -> None:
        request = channel.receive()
        if request.request != BackendRequest.IOTLB_MSG:
            channel.others.put(request)
            return
        asked = wire.Iotlb.parse(request.payload)
        self.misses += 1
        one = self.find(asked.iova)
        match "negative" if one is None else self.answers(one):
            case "negative":
                channel.reply(request, 1)
            case "late":
                channel.reply(request)
                self._delayed.append((time.monotonic() + self.delay, None, asked.iova))
            case "slow":
                self._delayed.append((time.monotonic() + self.delay, request, asked.iova))
            case "prompt" | "wide" | "read-only" as how:
                perms = {"prompt": None, "wide": READ | WRITE, "read-only": READ}
                channel.reply(request, int(not self._told(asked.iova, perms[how])))

    def _answer_delayed(self, channel: BackendChannel) -> None:
        now = time.monotonic()
        due = [one for one in self._delayed if one[0] <= now]
        self._delayed = [one for one in self._delayed if one[0] > now]
        for _, request, iova in due:
            # The driver may have unmapped it meanwhile.
            told = self.find(iova) is not None and self._told(iova, None)
            if request is not None:
                channel.reply(request, int(not told))

    def _told(self, iova: int, perm: int | None) -> bool:
        try:
            self.tell(iova, perm=perm)
        except NackError:
            self.refused += 1
            return False
        return True
