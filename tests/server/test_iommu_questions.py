"""Which pages the front-end is asked for while a chain waits, and how often."""

from dataclasses import replace

import uvloop
from server_kit.iommu import BUFFER, PAGE, iommu
from server_kit.wire import UVA

from vhostblk.engine.api import Miss
from vhostblk.memory.space import Access


def test_miss_that_is_named_again_is_asked_for_once() -> None:
    """
    A queue names its miss again whenever it goes on: no page is asked for once too often.

    Asked for after the chain is done, it is not mapped any more, and the guest's IOMMU reports a
    fault of the device: seen with ATS, where each page another request unmaps is invalidated.
    """

    async def again() -> None:
        async with iommu() as front:
            queue = await front.up()
            assert queue.on_miss is not None
            miss = Miss(BUFFER, 2 * PAGE, Access.WRITE, 5)
            queue.on_miss(miss)
            assert [await front.missed() for _ in range(2)] == [(BUFFER, 2), (BUFFER + PAGE, 2)]
            for _ in range(3):
                assert await front.invalidate(BUFFER + 8 * PAGE) == 0
                queue.on_miss(miss)
            assert await front.update(BUFFER, UVA + 0x10000) == 0
            queue.on_miss(miss)
            await front.nothing_is_asked()
            assert await front.update(BUFFER + PAGE, UVA + 0x11000) == 0
            await front.until(lambda: queue.segments[0].iova == BUFFER)
            queue.on_miss(replace(miss, iova=BUFFER + 4 * PAGE, length=PAGE, index=6))
            assert await front.missed() == (BUFFER + 4 * PAGE, 2)

    uvloop.run(again())


def test_answer_that_is_taken_back_is_asked_for_again() -> None:
    """A global flush while a chain waits takes what was told of it, not what is still to come."""

    async def again() -> None:
        async with iommu() as front:
            queue = await front.up()
            assert queue.on_miss is not None
            miss = Miss(BUFFER, 2 * PAGE, Access.READ, 5)
            queue.on_miss(miss)
            assert [await front.missed() for _ in range(2)] == [(BUFFER, 1), (BUFFER + PAGE, 1)]
            assert await front.update(BUFFER, UVA + 0x10000) == 0
            assert await front.invalidate(BUFFER, 2 * PAGE) == 0
            queue.on_miss(miss)
            assert await front.missed() == (BUFFER, 1)
            await front.nothing_is_asked()
            for page in range(2):
                assert await front.update(BUFFER + page * PAGE, UVA + 0x10000 + page * PAGE) == 0
            await front.until(lambda: sum(one.length for one in queue.segments) == 5 * PAGE)

    uvloop.run(again())
