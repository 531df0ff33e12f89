"""
Watches where a front-end's guest does its I/O: one `Window` a start.

A start begins when the first ring starts.  It ends when the last one has stopped, when memory
moves, and when the front-end leaves; what was seen stays to be shown until the next one begins.
SET_FEATURES and a reset end it, too: nothing runs then.
"""

from collections.abc import Callable, Sequence
from itertools import chain

from vhostblk.memory.space import AddressSpace
from vhostblk.memory.window import Use, Window
from vhostblk.server.ring import Ring
from vhostblk.server.terms import Terms


class Observer:
    """
    What is known of one front-end's guest.

    Args:
        rings: All of them.
        terms: What they run by, now.
        on_end: Called when a start has ended.
        on: False: the operator wants nothing inferred.

    Attributes:
        window: Of the start under way, or of the last one.
        starts: How many there were.
    """

    def __init__(
        self,
        rings: Sequence[Ring],
        terms: Callable[[], Terms],
        *,
        on_end: Callable[[], None],
        on: bool = True,
    ) -> None:
        self.window = Window()
        self.starts = 0
        self._rings = rings
        self._terms = terms
        self._on_end = on_end
        self._on = on
        self._under_way = False

    def begin(self, ring: Ring) -> None:
        """
        Heed that a ring is about to start; its queue is parked.

        Args:
            ring: Which; it knows whether it is translated.
        """
        if not self._under_way:
            self.window = Window()
            self.starts += 1
            self._under_way = True
        if ring.translated:
            self.window.translated = True
        if self._on:
            self._see(ring, self._terms())

    def end(self) -> None:
        """End the start under way, if there is one."""
        if not self._under_way:
            return
        self.look()
        self._under_way = False
        self._on_end()

    def look(self) -> None:
        """Take in what can be seen now."""
        if not self._under_way:
            return
        terms = self._terms()
        for ring in self._rings:
            if ring.running:
                self._see(ring, terms)

    def _see(self, ring: Ring, terms: Terms) -> None:
        for gpa, length in chain.from_iterable(ring.lies_in(_space(ring, terms))):
            self.window.pages[Use.RING].add(gpa, length)


def _space(ring: Ring, terms: Terms) -> AddressSpace:
    return terms.translated if ring.translated and terms.translated else terms.space
