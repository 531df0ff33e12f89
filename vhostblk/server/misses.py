"""
What the queues of a front-end miss of its IOMMU, and what that takes back from them.

A miss is a task beside the session: it asks, waits, and goes on with the queue under the session's
lock.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from vhostblk.engine.api import Miss, Piece
from vhostblk.memory.iotlb import EVERYWHERE, meet
from vhostblk.memory.ranges import Range
from vhostblk.memory.space import AddressSpace
from vhostblk.protocol.state import RingState
from vhostblk.server.iommu import Iommu
from vhostblk.server.log import Log
from vhostblk.server.observer import Observer
from vhostblk.server.parting import unused
from vhostblk.server.ring import Ring

GLOBAL_FLUSH = 1 << 30
"""Bytes from which on an invalidation means everything: nothing in flight is waited for, as what
the guest unmapped before it flushed was not in flight any more."""


class Translated(Protocol):
    """
    What is asked of the attachment whose misses these are.

    Attributes:
        space: Guest memory.
        iommu: The front-end's.
        observer: Of the guest.
    """

    space: AddressSpace
    iommu: Iommu
    observer: Observer

    def translated(self) -> AddressSpace:
        """Return the address space behind the IOMMU, as far as it is known now."""
        ...


class Misses:
    """
    Misses and invalidations of one front-end.

    Args:
        front: Its attachment.
        rings: All of its rings.
        lock: Held while a message is handled, and here while an answer is.
        log: For what an operator should know.
    """

    def __init__(
        self, front: Translated, rings: Sequence[Ring], lock: asyncio.Lock, log: Log
    ) -> None:
        self._front = front
        self._rings = rings
        self._lock = lock
        self._log = log

    async def invalidate(self, iova: int, size: int) -> None:
        """
        Forget a range; afterwards nothing is accessed through it any more.

        Args:
            iova: Its first byte.
            size: Bytes, at least 1; may wrap.
        """
        self._front.observer.look()  # where its samples are is still known
        wait = size < GLOBAL_FLUSH
        use = self._front.iommu.iotlb.memory(iova, size, self._front.space.table) if wait else ()
        ranges = self._front.iommu.invalidate(iova, size)
        space = self._front.translated()
        rings = [ring for ring in self._rings if ring.running and ring.translated]
        in_time = await asyncio.gather(*(lose(ring, ranges, space, use=use) for ring in rings))
        if not all(in_time):
            self._front.iommu.counters.late += 1
            self._log.warning(
                "requests still use the memory at IOVA %#x that the guest has unmapped", iova
            )

    def missed(self, ring: Ring, miss: Miss | None) -> None:
        """Ask for what a chain needs; None: for what the ring itself does."""
        if miss is None:
            self._front.iommu.wait(ring.index, self._find_ring(ring))
        elif not ring.held:
            self._front.iommu.wait(ring.index, self._find(ring, miss))

    async def _find(self, ring: Ring, miss: Miss) -> None:
        needed = miss.iova, miss.length
        self._front.iommu.need(ring.index, miss.index, needed)
        denied = await self._front.iommu.ask(ring.index, miss.index, needed, miss.access)
        if denied is not None:
            self._log.warning(
                "queue %d: a request fails, as IOVA %#x is not mapped", ring.index, miss.iova
            )
        async with self._lock:
            if ring.running:
                await _answer(ring, self._front.translated(), denied)
                if denied is not None:
                    self._front.iommu.denied(ring.index)

    async def _find_ring(self, ring: Ring) -> None:
        said = False
        ask = partial(self._front.iommu.ask, ring.index, None)
        while ring.held:
            for iova, length, access in ring.parts():
                if await ask((iova, length), access) is not None:
                    if not said:  # once; it is asked again at everything the front-end tells
                        self._log.warning(
                            "queue %d waits: its ring at IOVA %#x is not mapped", ring.index, iova
                        )
                    said = True
                    await self._front.iommu.changed()
                    break
            else:
                async with self._lock:
                    if not ring.running or not ring.settle(self._front.translated(), ask=False):
                        return


async def lose(
    ring: Ring, ranges: Sequence[Range], space: AddressSpace, *, use: Sequence[Piece]
) -> bool:
    """
    Begin nothing new in *ranges*, and have ended what was begun.

    Args:
        ring: One behind the IOMMU that runs.
        ranges: Of IOVAs.
        space: Without them.
        use: Memory of this process, sorted and disjoint: what is in flight there is waited
            for, for a bounded time, while the ring runs on.  Nothing: for nothing.

    Returns:
        False when something in flight still uses it.
    """
    await ring.keeper.take_back(drain=False)
    if not meet(ranges, [(at, length) for at, length, _ in ring.place.layout()]):
        ring.queue.watch_use(use)
        ring.queue.set_space(space.segments)
        ring.keeper.hand_over()
        return await unused(ring.queue)
    in_time = not use or await _complete(ring)
    ring.settle(space)
    return in_time


async def _complete(ring: Ring) -> bool:
    """Put what is in flight into the used ring before that goes, as far as it ends in time."""
    ring.queue.watch_use(EVERYWHERE)
    ring.queue.set_enabled(enabled=False)
    ring.keeper.hand_over()
    in_time = await unused(ring.queue)
    await ring.keeper.take_back(drain=False)
    ring.queue.set_enabled(enabled=ring.state is RingState.STARTED)
    return in_time


async def _answer(ring: Ring, space: AddressSpace, denied: Range | None) -> None:
    """Go on with the chain that waits; it may be denied something."""
    await ring.keeper.take_back(drain=False)
    ring.queue.set_space(space.segments)
    if denied is not None:
        ring.queue.deny(*denied)
    ring.keeper.hand_over()
