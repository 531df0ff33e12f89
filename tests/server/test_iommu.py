"""Behind an IOMMU: what the front-end is asked, and what its answers do to the rings."""

import asyncio
import os

import pytest
import uvloop
from frontend_bytes import message, u64, vring
from server_kit.iommu import (
    BATCH_BEGIN,
    BUFFER,
    INVALIDATE,
    IOTLB,
    PAGE,
    PARTS,
    PLATFORM,
    RING,
    iommu,
)
from server_kit.wire import LINUX, UVA

from vhostblk.engine.api import Miss
from vhostblk.memory.space import Access
from vhostblk.server import parting
from vhostblk.server.policy import Confidential, IommuMode, parse_shared_ranges


def test_ring_by_iova_starts_when_it_is_translated() -> None:
    """
    Nothing waits for a translation: ENABLE is answered first, and the ring runs once all is known.

    Source: traces/README.md, 8: QEMU waits in SET_VRING_ENABLE and serves no MISS meanwhile.
    """

    async def start() -> None:
        async with iommu() as front:
            await front.begin()
            assert not front.queue.running
            for page, (iova, perm) in enumerate(zip(PARTS, (1, 1, 2), strict=True)):
                assert await front.missed() == (iova, perm)
                assert await front.update(iova, UVA + page * PAGE) == 0
                front.answer()
            await front.until(lambda: front.queue.running)
            names = front.queue.names()
            assert names.count("run") == 1
            assert ("base" in names, "ask" in names, "ring" in names) == (True, True, True)
            await front.nothing_is_asked()

    uvloop.run(start())


def test_unasked_updates_are_taken() -> None:
    """QEMU tells the used ring's page by itself; for a queue that was never set up, IOVA 0."""

    async def start() -> None:
        async with iommu() as front:
            await front.begin()
            assert await front.update(0) == 0
            for page, iova in reversed(list(enumerate(PARTS))):
                assert await front.update(iova, UVA + page * PAGE) == 0
            await front.until(lambda: front.queue.running)

    uvloop.run(start())


@pytest.mark.parametrize(
    ("features", "ring"), [(LINUX | PLATFORM, UVA), (LINUX, UVA)], ids=["crosvm", "qemu-coco"]
)
def test_ring_at_front_end_addresses_is_not_translated(features: int, ring: int) -> None:
    """Crosvm acks bit 33 and sends its own addresses; QEMU without a vIOMMU takes the bit away."""

    async def start() -> None:
        async with iommu() as front:
            await front.begin(features=features, ring=ring)
            assert front.queue.running
            assert "ask" not in front.queue.names()
            await front.nothing_is_asked()

    uvloop.run(start())


def test_iommu_on_translates_wherever_the_ring_is() -> None:
    """The override: what looks like a front-end address is asked for as an IOVA."""

    async def start() -> None:
        async with iommu(iommu=IommuMode.ON) as front:
            await front.begin(ring=UVA)
            assert not front.queue.running
            assert await front.missed() == (UVA, 1)

    uvloop.run(start())


def test_iommu_off_translates_nothing() -> None:
    """The override: IOVAs are refused like any address in no region, others are served."""

    async def start(ring: int) -> None:
        async with iommu(iommu=IommuMode.OFF) as front:
            await front.begin(ring=ring)
            assert front.queue.running
            await front.nothing_is_asked()

    uvloop.run(start(UVA))
    with pytest.raises(AssertionError):
        uvloop.run(start(RING))


@pytest.mark.parametrize("outside", [False, True])
def test_ring_behind_an_iommu_is_judged_by_where_it_is_in_the_guest(
    caplog: pytest.LogCaptureFixture, *, outside: bool
) -> None:
    """With rings=inside it runs where its GPA is listed; else it is held, and the log says why."""
    shared = parse_shared_ranges(f"{PAGE if outside else 0}+{4 * PAGE},rings=inside")
    options = {"confidential": Confidential.REQUIRE, "shared_ranges": shared}

    async def start() -> None:
        async with iommu(**options) as front:
            await front.begin()
            for page, iova in enumerate(PARTS):
                await front.update(iova, UVA + page * PAGE)
            if outside:
                await front.until(lambda: "queue 0 cannot run: a ring at GPA 0x0" in caplog.text)
            await front.until(lambda: front.queue.running != outside)

    uvloop.run(start())


def test_iova_without_the_bit_is_refused() -> None:
    """Without ACCESS_PLATFORM a ring must be where the front-end says."""

    async def start() -> None:
        async with iommu() as front:
            with pytest.raises(AssertionError):
                await front.begin(features=LINUX)
            assert not front.engine.queues or not front.queue.running

    uvloop.run(start())


def test_chain_is_answered_and_goes_on() -> None:
    """All pages of a buffer are asked for back to back; then park, new table, run."""

    async def miss() -> None:
        async with iommu() as front:
            queue = await front.up()
            assert queue.on_miss is not None
            queue.on_miss(Miss(BUFFER + 100, 2 * PAGE, Access.READ, 5))
            for page in range(3):
                assert await front.missed() == (BUFFER + page * PAGE, 1)
            for page in range(3):
                assert queue.names() == []
                assert await front.update(BUFFER + page * PAGE, UVA + 0x10000) == 0
                front.answer()
            await front.until(lambda: queue.running and queue.calls)
            parked, (_, space), run = queue.calls
            assert (parked, run) == (("parked",), ("run",))
            assert (BUFFER, PAGE) in space  # type: ignore[operator]

    uvloop.run(miss())


@pytest.mark.parametrize("how", ["negative", "silent", "gone", "too little"])
def test_chain_without_an_answer_is_denied(how: str) -> None:
    """A no, no reply in time, no channel any more, or not the right that is needed."""

    async def miss() -> None:
        async with iommu(miss_seconds=0.05) as front:
            queue = await front.up()
            assert queue.on_miss is not None
            queue.on_miss(Miss(BUFFER + 8, 16, Access.WRITE, 5))
            assert await front.missed() == (BUFFER, 2)
            if how == "negative":
                front.answer(1)
            elif how == "gone":
                front.channel.close()
            elif how == "too little":
                assert await front.update(BUFFER, perm=1) == 0
                front.answer()
            await front.until(lambda: ("run",) in queue.calls)
            assert ("deny", BUFFER, PAGE) in queue.calls
            assert await front.acked(18, vring(0, 0)) == 0  # the session goes on

    uvloop.run(miss())


def test_stop_waits_for_no_translation() -> None:
    """GET_VRING_BASE is answered while a ring, or a chain, waits; the base is the one that was."""

    async def stop() -> None:
        async with iommu() as front:
            await front.begin()
            await front.missed()
            assert await front.ask(11, vring(0, 0)) == vring(0, 5)
            for page, iova in enumerate(PARTS):
                await front.update(iova, UVA + page * PAGE)
            assert not front.queue.running

    uvloop.run(stop())


def test_nothing_is_believed_at_the_next_start() -> None:
    """QEMU does not say what was unmapped while the device stood."""

    async def again() -> None:
        async with iommu() as front:
            queue = await front.up()
            assert await front.ask(11, vring(0, 0)) == vring(0, 5)
            assert await front.acked(12, u64(0), [os.eventfd(0)]) == 0
            assert not queue.running
            assert await front.missed() == (RING, 1)

    uvloop.run(again())


def test_invalidated_buffer_leaves_the_table() -> None:
    """Parked, swapped, run; the reply comes afterwards, and the ring itself is not asked for."""

    async def invalidate() -> None:
        async with iommu() as front:
            queue = await front.up()
            await front.update(BUFFER, UVA + 0x10000)
            assert await front.invalidate(BUFFER) == 0
            assert [call[0] for call in queue.calls] == ["parked", "space", "run"]
            assert all(iova != BUFFER for iova, _ in queue.calls[1][1])  # type: ignore[attr-defined]
            assert queue.running
            await front.nothing_is_asked()

    uvloop.run(invalidate())


@pytest.mark.parametrize("kind", ["page", "global"])
def test_invalidated_ring_is_asked_for_again(kind: str) -> None:
    """
    It stands until it is known again: one page of it, or everything, in QEMU's two halves.

    Source: CONFIDENTIAL.md, 3.4: the second half ends at 2 to the 64.
    """

    async def invalidate() -> None:
        async with iommu() as front:
            queue = await front.up()
            if kind == "page":
                assert await front.invalidate(PARTS[2]) == 0
            else:
                assert await front.invalidate(0, 0xFEE00000) == 0
                assert queue.running
                assert await front.invalidate(0xFEF00000, 0xFFFFFFFF01100000) == 0
            assert not queue.running
            lost = PARTS[2:] if kind == "page" else PARTS
            for iova in lost:
                assert (await front.missed())[0] == iova
                assert await front.update(iova, UVA + PARTS.index(iova) * PAGE) == 0
                front.answer()
            await front.until(lambda: queue.running)

    uvloop.run(invalidate())


def test_unmapped_ring_runs_when_it_is_told_at_last() -> None:
    """A no for the ring itself is not the end: firmware leaves one behind when Linux maps anew."""

    async def late() -> None:
        async with iommu() as front:
            await front.begin()
            await front.missed()
            front.answer(1)
            await front.nothing_is_asked()
            for page, iova in enumerate(PARTS):
                await front.update(iova, UVA + page * PAGE)
            await front.until(lambda: front.queue.running)

    uvloop.run(late())


@pytest.mark.parametrize("kind", [0, 1, 4, BATCH_BEGIN, 6, 255])
def test_other_messages_are_refused(kind: int) -> None:
    """The connection lives on."""

    async def refuse() -> None:
        async with iommu() as front:
            await front.begin()
            assert await front.acked(22, IOTLB.pack(0, PAGE, UVA, 3, kind)) != 0
            assert await front.invalidate(0, 0) != 0
            assert await front.update(0, uaddr=1) != 0
            assert await front.update(0) == 0

    uvloop.run(refuse())


def test_bad_ack_ends_the_channel_only() -> None:
    """What waits is denied; the session goes on."""

    async def bad() -> None:
        async with iommu() as front:
            queue = await front.up()
            assert queue.on_miss is not None
            queue.on_miss(Miss(BUFFER, 16, Access.READ, 5))
            await front.missed()
            front.channel.send(message(2, u64(0), 5))
            await front.until(lambda: ("deny", BUFFER, PAGE) in queue.calls)
            queue.on_miss(Miss(BUFFER, 16, Access.READ, 6))
            await front.until(lambda: queue.calls.count(("deny", BUFFER, PAGE)) == 2)

    uvloop.run(bad())


def test_front_end_leaves_while_a_chain_waits() -> None:
    """Nobody waits for the answer, and a miss that comes while the queue ends is not asked for."""

    async def leave() -> None:
        async with iommu() as front:
            queue = await front.up()
            on_miss = queue.on_miss
            assert on_miss is not None
            on_miss(Miss(BUFFER, 16, Access.READ, 5))
            await front.missed()
            front.sock.close()
            await front.closed()
            assert queue.closed
            assert len(front.engine.queues) == 1
            on_miss(Miss(BUFFER, 16, Access.READ, 5))
            await asyncio.sleep(0)
            assert len(front.engine.queues) == 1

    uvloop.run(leave())


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "stays"])
def test_invalidation_waits_for_what_is_in_flight(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ends: bool,  # noqa: FBT001 - named by its ids
) -> None:
    """The reply promises that the page is not used any more; it comes late rather than never."""
    monkeypatch.setattr(parting, "INVALIDATE_SECONDS", 5.0 if ends else 0.02)

    async def wait() -> None:
        async with iommu() as front:
            queue = await front.up()
            await front.update(BUFFER, UVA + 0x10000)
            queue.is_unused.clear()
            front.tell(22, IOTLB.pack(BUFFER, PAGE, 0, 0, INVALIDATE), ack=True)
            if ends:
                await front.nothing_comes()
                assert queue.running
                queue.is_unused.set()
            assert await front.reply() == (22, u64(0))
            ((host, length),) = queue.using
            assert length == PAGE
            assert host % PAGE == 0
            assert queue.running
            assert ("drained",) not in queue.calls

    uvloop.run(wait())
    assert ("has unmapped" in caplog.text) is not ends


def test_global_flush_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guest unmapped before a flush of everything was not in flight any more."""
    monkeypatch.setattr(parting, "INVALIDATE_SECONDS", 60.0)

    async def flush() -> None:
        async with iommu() as front:
            queue = await front.up()
            queue.is_unused.clear()
            assert await front.invalidate(0, 0xFEE00000) == 0

    uvloop.run(flush())
