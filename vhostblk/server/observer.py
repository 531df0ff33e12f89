"""
Watches where a front-end's guest does its I/O: samples from the queues to one `Window` a start.

A start begins when the first ring starts.  It ends when the last one has stopped, when memory
moves, and when the front-end leaves; what was seen stays to be shown until the next one begins.
SET_FEATURES and a reset end it, too: nothing runs then.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain

from vhostblk.memory.locate import locate
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import AddressSpace
from vhostblk.memory.window import SCORED, Tap, Use, Window
from vhostblk.server.ring import Ring
from vhostblk.server.terms import Terms

FIRST = SCORED + 1
"""Requests at the beginning that are sampled whole: those that are scored, and one more, which
shows that the last of them is complete."""
EVERY = 61
"""Of the requests after those one in so many is sampled: enough to see all of a pool in time, and
no cost that could be measured.  A prime, so that no rhythm of the guest's hides the same requests
for ever."""
SECONDS = 10.0
BATCH = 512
"""Once the guest is known, of each queue so many samples are looked at that often: 10 ms in 10 s,
however busy the guests are."""


class Observer:
    """
    What is known of one front-end's guest.

    Args:
        rings: All of them.
        terms: What they run by, now.
        saw: Called with what a queue has sampled.
        on_end: Called when a start has ended.
        on: False: the operator wants nothing inferred.
        first: Requests at the beginning of a start that are sampled whole.
        seconds: How often samples are looked at once the guest is known; None: now and then.
        eager: Whether somebody else wants all samples at once, still.

    Attributes:
        window: Of the start under way, or of the last one.
        starts: How many there were.
    """

    def __init__(  # noqa: PLR0913 - one caller, which names them
        self,
        rings: Sequence[Ring],
        terms: Callable[[], Terms],
        *,
        saw: Callable[[Ring, Sequence[Sample]], None],
        on_end: Callable[[], None],
        on: bool = True,
        first: int = FIRST,
        seconds: float | None = None,
        eager: Callable[[], bool] = lambda: False,
    ) -> None:
        self.window = Window()
        self.starts = 0
        self._rings = rings
        self._terms = terms
        self._saw = saw
        self._on_end = on_end
        self._on = on
        self._first = max(first, FIRST)
        self._seconds = SECONDS if seconds is None else seconds
        self._eager = eager
        self._taps: dict[int, Tap] = {}
        self._under_way = False
        self._hits = 0
        self._walked: dict[int, int] = {}
        self._taken: dict[int, float] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def begin(self, ring: Ring) -> None:
        """
        Heed that a ring is about to start; its queue is parked.

        Args:
            ring: Which; it knows whether it is translated.
        """
        if not self._under_way:
            self.window, self._taps = Window(), {}
            self.starts += 1
            self._under_way = True
        self._fold(ring)
        if ring.translated:
            self.window.translated = True
            self._walked[ring.index] = ring.counters().descriptors
        if self._on:
            self._see(ring, self._terms())
            self._taps[ring.index] = Tap(self.window, whole=SCORED)
            news = partial(self._news, ring.index)
            ring.queue.set_sampling(first=self._first, every=EVERY, on_samples=news)

    def end(self, *, drained: bool) -> None:
        """
        End the start under way, if there is one.

        Args:
            drained: Nothing runs, so the last request of each queue was seen to its end.
        """
        if not self._under_way:
            return
        self.look()
        if drained:
            terms = self._terms()
            for index, tap in self._taps.items():
                tap.end(partial(locate, _space(self._rings[index], terms)))
        self._under_way = False
        self._taps = {}
        self._on_end()

    # ---- samples --------------------------------------------------------------------------

    def _news(self, index: int) -> None:
        """Heed that a queue has samples: at once while it is being found out what the guest is."""
        tap = self._taps.get(index)
        if tap is None or index in self._timers:
            return
        loop = asyncio.get_running_loop()
        hurry = tap.scores or self._eager()
        wait = 0.0 if hurry else self._taken.get(index, 0.0) + self._seconds - loop.time()
        if wait > 0:
            self._timers[index] = loop.call_later(wait, self._take, [index])
        else:
            self._take([index])

    def look(self) -> None:
        """Take in what the queues have sampled."""
        self._take(self._taps)

    def _take(self, indices: Iterable[int]) -> None:
        now = asyncio.get_running_loop().time()
        terms: Terms | None = None
        for index in indices:
            self._quiet(index)
            self._taken[index] = now
            ring, tap = self._rings[index], self._taps[index]
            most = None if tap.scores or self._eager() else BATCH
            if samples := ring.queue.samples()[:most]:
                terms = terms or self._terms()
                self._see(ring, terms)
                tap.take(samples, partial(locate, _space(ring, terms)))
                self._saw(ring, samples)

    def space(self, ring: Ring) -> AddressSpace:
        """Return the address space that a ring's samples are of, as it is now."""
        return _space(ring, self._terms())

    def _quiet(self, index: int) -> None:
        timer = self._timers.pop(index, None)
        if timer is not None:
            timer.cancel()

    def _see(self, ring: Ring, terms: Terms) -> None:
        for gpa, length in chain.from_iterable(ring.lies_in(_space(ring, terms))):
            self.window.pages[Use.RING].add(gpa, length)

    # ---- the IOMMU ------------------------------------------------------------------------

    def hits(self) -> int:
        """Return how many descriptors were walked whose addresses went through the IOMMU."""
        return self._hits + sum(
            self._rings[index].counters().descriptors - before
            for index, before in self._walked.items()
        )

    def recall(self, *, hits: int, walked: Mapping[int, int]) -> None:
        """
        Add what another process has counted of the same front-end.

        Args:
            hits: As `hits` said there.
            walked: Descriptors that its queues had walked, which ours now count, by queue.
        """
        self._hits += hits
        for index in self._walked:
            self._walked[index] += walked.get(index, 0)

    def _fold(self, ring: Ring) -> None:
        before = self._walked.pop(ring.index, None)
        if before is not None:
            self._hits += ring.counters().descriptors - before


def _space(ring: Ring, terms: Terms) -> AddressSpace:
    return terms.translated if ring.translated and terms.translated else terms.space
