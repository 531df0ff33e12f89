"""
The front-end's IOMMU, as far as it has told us: what is known, what is asked for, who waits.

A question never makes a message wait: the front-end answers none while it waits for us.  So every
question is a task beside the session; what it changes in the end it changes under the session's
lock.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import islice

from vhostblk.memory.iotlb import Iotlb, Range
from vhostblk.memory.space import Access, Translation
from vhostblk.protocol.channel import IotlbMiss
from vhostblk.server.log import Log
from vhostblk.server.requests import Requests

MISS_SECONDS = 5.0
"""How long an answer is waited for; QEMU gives one at once, others may give none."""
PAGE = 4096
PAGES_AT_ONCE = 64
"""Pages of one buffer that are asked for back to back."""


@dataclass(slots=True)
class IommuCounters:
    """
    What happened so far.

    Args:
        misses: Questions asked, one a page.
        denied: Of those, answered with no.
        expired: Of those, not answered in time.
        late: Invalidations that were answered while a request still used old memory.
        updates: Translations taken in, asked for or not.
        invalidates: Invalidations.
    """

    misses: int = 0
    denied: int = 0
    expired: int = 0
    late: int = 0
    updates: int = 0
    invalidates: int = 0


@dataclass(frozen=True, slots=True)
class _Question:
    """
    A question without an answer yet.

    Args:
        ack: Becomes the front-end's ack.
        since: The loop's time when it was asked.
    """

    ack: asyncio.Future[int]
    since: float


@dataclass(slots=True)
class _Asked:
    """
    The open questions of a ring, or of the chain that it waits with.

    A queue names its miss again whenever it goes on, and with ATS that is at every page another
    request has unmapped.  Asked again, a page would be asked for once too often: after the chain
    is done, when the guest has unmapped it and its IOMMU reports a fault of the device.

    Args:
        chain: Its avail index; None: it is the ring's own.
        questions: By page and access.
    """

    chain: int | None
    questions: dict[tuple[Range, Access], _Question] = field(default_factory=dict)

    def answered(self, new: Translation) -> None:
        """Close what *new* answers: if that goes, it is asked for again."""
        for page, access in tuple(self.questions):
            if new.iova <= page[0] < new.iova + new.size:
                del self.questions[page, access]


class Iommu:
    """
    Translations and questions of one front-end.

    Args:
        seconds: How long an answer is waited for.
        log: For what an operator should know.
    """

    def __init__(self, *, seconds: float, log: Log) -> None:
        self.iotlb = Iotlb()
        self.counters = IommuCounters()
        self._log = log
        self._requests: Requests | None = None
        self._closed = False
        self._seconds = seconds
        self._news: asyncio.Future[int] | None = None
        self._waits: dict[int, asyncio.Task[None]] = {}
        self._needed: dict[int, tuple[int, list[Range]]] = {}
        self._asked: dict[tuple[int, bool], _Asked] = {}  # by ring, and whether for a chain

    @property
    def requests(self) -> Requests | None:
        """Return the channel for questions; None: there is none."""
        return self._requests

    @property
    def can_ask(self) -> bool:
        """Whether there is a channel for questions."""
        return self._requests is not None

    @property
    def channel(self) -> Requests | None:
        """Return the channel for our requests, of whatever kind."""
        return self._requests

    def set_channel(self, fd: int) -> None:
        """
        Take over the socket for our questions; the one before it is closed.

        Raises:
            Refused: It is no socket.
        """
        requests = Requests(fd, self._log)
        if self._requests is not None:
            self._requests.close()
        self._requests = requests

    # ---- what is known --------------------------------------------------------------------

    def update(self, new: Translation) -> None:
        """
        Take in what the front-end says, and wake who waits for it.

        Raises:
            Refused: More is needed at once than is kept.
        """
        self.iotlb.update(new, keep=self._kept())
        for asked in self._asked.values():
            asked.answered(new)
        self.counters.updates += 1
        if self._news is not None:
            self._news.set_result(0)
        self._news = None

    def invalidate(self, iova: int, size: int) -> tuple[Range, ...]:
        """Forget a range; return it without its wrap (see `Iotlb.invalidate`)."""
        self.counters.invalidates += 1
        return self.iotlb.invalidate(iova, size, keep=self._kept())

    def _kept(self) -> list[Range]:
        return [one for _, ranges in self._needed.values() for one in ranges]

    def need(self, ring: int, chain: int, one: Range) -> None:
        """Keep *one* as long as this chain (its avail index) of this ring waits."""
        before, ranges = self._needed.get(ring, (chain, []))
        self._needed[ring] = (chain, [*ranges, one] if before == chain else [one])

    # ---- who waits ------------------------------------------------------------------------

    def wait(self, ring: int, answer: Coroutine[object, object, None]) -> None:
        """Do *answer* beside the session, in place of what this ring waited for before."""
        self._cancel(ring)
        if self._closed:
            answer.close()
            return
        task = asyncio.ensure_future(answer)
        self._waits[ring] = task
        task.add_done_callback(lambda done: self._done(ring, done))

    def _done(self, ring: int, task: asyncio.Task[None]) -> None:
        if self._waits.get(ring) is task:
            del self._waits[ring]
        if not task.cancelled():
            task.result()

    def forget(self, ring: int) -> None:
        """Let a ring that ends wait for nothing."""
        self._needed.pop(ring, None)
        for for_chain in (False, True):
            self._asked.pop((ring, for_chain), None)
        self._cancel(ring)

    def _cancel(self, ring: int) -> None:
        task = self._waits.pop(ring, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """Let nobody wait any more, now or later, and hang up."""
        self._closed = True
        for ring in tuple(self._waits):
            self.forget(ring)
        if self._requests is not None:
            self._requests.close()
        if self.counters != IommuCounters():
            self._log.info("the guest's IOMMU: %s", self.counters)

    # ---- questions ------------------------------------------------------------------------

    async def ask(
        self, ring: int, chain: int | None, wanted: Range, access: Access
    ) -> Range | None:
        """
        Ask for what is not known of *wanted*, a bounded part of it.

        A page is asked for once, and its time counts from then, however often the queue that
        waits for it is stopped for a moment and names it again.

        Args:
            ring: Who needs it.
            chain: With which chain (its avail index); None: the ring itself.
            wanted: IOVAs.
            access: Needed all over.

        Returns:
            None when all of that is known; else a page that is denied.
        """
        gaps = self.iotlb.gaps(*wanted, access)
        pages = list(islice((page for gap in gaps for page in _pages(gap)), PAGES_AT_ONCE))
        asked = {page: self._question(ring, chain, page, access) for page in pages}
        first = min((one.since for one in asked.values()), default=_now())
        try:
            async with asyncio.timeout_at(first + self._seconds):
                denied = await self._known({page: asked[page].ack for page in pages}, access)
        except TimeoutError:
            # The last answer may have come at that very moment.
            denied = next((page for page in pages if self.iotlb.gaps(*page, access)), None)
            self.counters.expired += denied is not None
        if denied is None:
            return None
        if chain is None:
            self._asked.pop((ring, False), None)  # it asks until it is told
        return _whole(denied)

    def denied(self, ring: int) -> None:
        """Forget what was asked for a chain that has been told no."""
        self._asked.pop((ring, True), None)

    def _question(self, ring: int, chain: int | None, page: Range, access: Access) -> _Question:
        """Ask for a page, unless that is on its way."""
        who = ring, chain is not None  # a ring that is flushed interrupts its chain
        asked = self._asked.get(who)
        if asked is None or asked.chain != chain:
            asked = self._asked[who] = _Asked(chain)
        key = _whole(page), access
        if key not in asked.questions:
            asked.questions[key] = _Question(self._miss(page, access), _now())
        return asked.questions[key]

    def _miss(self, page: Range, access: Access) -> asyncio.Future[int]:
        if self._requests is None:
            raise AssertionError("without a channel nothing is translated")
        self.counters.misses += 1
        return self._requests.ask(IotlbMiss(iova=_whole(page)[0], perm=int(access)))

    async def _known(self, asked: dict[Range, asyncio.Future[int]], access: Access) -> Range | None:
        while left := [page for page in asked if self.iotlb.gaps(*page, access)]:
            for page in left:
                if asked[page].done() and (asked[page].result() or self._too_little(page)):
                    self.counters.denied += 1
                    return page
            pending = [ack for ack in asked.values() if not ack.done()]
            await asyncio.wait([self._next(), *pending], return_when=asyncio.FIRST_COMPLETED)
        return None

    def _too_little(self, page: Range) -> bool:
        """Whether *page* is mapped, without the right that was asked for."""
        return not self.iotlb.gaps(*page, Access(0))

    async def changed(self) -> None:
        """Return when the front-end has told something new."""
        await asyncio.wait([self._next()])

    def _next(self) -> asyncio.Future[int]:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news


def _pages(one: Range) -> list[Range]:
    """Cut a range at page borders, as far as it is asked for at once."""
    start, length = one
    pages = []
    end = min(start + length, (start // PAGE + PAGES_AT_ONCE) * PAGE)
    while start < end:
        here = min(end, (start // PAGE + 1) * PAGE) - start
        pages.append((start, here))
        start += here
    return pages


def _whole(page: Range) -> Range:
    return page[0] // PAGE * PAGE, PAGE


def _now() -> float:
    return asyncio.get_running_loop().time()
