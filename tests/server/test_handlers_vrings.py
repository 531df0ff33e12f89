import errno
import os

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.wire import LINUX, REGION_SIZE, START, UVA, addresses, wired


def test_a_ring_starts_when_it_has_a_kick_and_is_enabled() -> None:
    """
    KICK alone arms a ring; ENABLE starts it with everything the front-end has said.

    Spec: vhost-user, "Ring states".
    """

    async def start() -> None:
        async with wired() as wire:
            await wire.negotiate()
            assert await wire.plug() == 0
            await wire.set_up(num=8, base=5)
            assert wire.queue.names() == ["kick"]
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.calls[0] == ("space", [(0, REGION_SIZE)])
            assert wire.queue.calls[1] == ("ring", 8, 8 * 16, 6 + 2 * 8, 6 + 8 * 8)
            assert wire.queue.calls[2] == ("base", 5)
            assert wire.queue.calls[3] == ("features", LINUX)
            assert wire.queue.names() == START

    uvloop.run(start())


def test_a_ring_starts_when_the_kick_comes_last() -> None:
    """ENABLE before KICK starts a ring at the kick; enabling one never set up costs nothing."""

    async def start() -> None:
        async with wired() as wire:
            await wire.negotiate()
            await wire.plug()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert await wire.acked(18, vring(1, 1)) == 0
            assert not wire.engine.queues
            await wire.set_up()
            assert wire.queue.names() == ["kick", *START]

    uvloop.run(start())


def test_get_vring_base_drains_and_repeats_itself() -> None:
    """
    The reply is the next entry not taken, nothing is in flight, and twice gives the same.

    Spec: vhost-user, "VHOST_USER_GET_VRING_BASE".
    """

    async def stop() -> None:
        async with wired() as wire:
            await wire.start(base=7)
            wire.queue.next = 19
            wire.queue.names()
            assert await wire.ask(11, vring(0, 0)) == vring(0, 19)
            assert wire.queue.names() == ["drained", "kick"]
            assert await wire.ask(11, vring(0, 0)) == vring(0, 19)
            assert not wire.queue.running

    uvloop.run(stop())


def test_a_ring_that_never_ran_gives_the_base_it_was_set() -> None:
    """GET_VRING_BASE of an armed or idle ring is the SET_VRING_BASE before it."""

    async def ask() -> None:
        async with wired() as wire:
            await wire.negotiate()
            assert await wire.ask(11, vring(1, 0)) == vring(1, 0)
            await wire.set_up(base=300)
            assert await wire.ask(11, vring(0, 0)) == vring(0, 300)

    uvloop.run(ask())


def test_a_drain_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A disk that never answers delays GET_VRING_BASE by drain_seconds; the log counts them."""

    async def bounded() -> None:
        async with wired(drain_seconds=0.01) as wire:
            await wire.start()
            wire.queue.may_drain.clear()
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0)
            wire.queue.dead = 0
            wire.queue.may_drain.set()

    uvloop.run(bounded())
    assert "queue 0: 1 requests failed after 0.01 s; the disk still has them" in caplog.text


def test_disable_pauses_and_enable_resumes() -> None:
    """ENABLE(0) parks, disables and runs: base, descriptors and memory stay."""

    async def pause() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.acked(18, vring(0, 0)) == 0
            assert wire.queue.calls == [("parked",), ("enabled", False), ("run",)]
            wire.queue.calls.clear()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.calls == [("parked",), ("enabled", True), ("run",)]

    uvloop.run(pause())


def test_a_new_call_fd_is_taken_under_way() -> None:
    """A guest moves its interrupt, or masks it, while the ring runs."""

    async def move() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.acked(13, u64(0), [os.eventfd(0)]) == 0
            assert await wire.acked(13, u64(1 << 8)) == 0
            moved = [("parked",), ("call", True), ("run",)]
            masked = [("parked",), ("call", False), ("run",)]
            assert wire.queue.calls == moved + masked

    uvloop.run(move())


def test_a_kick_without_descriptor_means_polling() -> None:
    """
    KICK with the NOFD bit starts the ring all the same.

    Spec: vhost-user, "VHOST_USER_SET_VRING_KICK".
    """

    async def poll() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.acked(12, u64(1 << 8)) == 0
            assert wire.queue.calls == [("parked",), ("kick", False), ("run",)]

    uvloop.run(poll())


def test_a_ring_without_memory_is_refused_and_can_be_repaired() -> None:
    """A ring outside every region is refused; with the region it starts."""

    async def repair() -> None:
        async with wired() as wire:
            await wire.negotiate()
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) != 0
            await wire.plug()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.running

    uvloop.run(repair())


def test_bad_ring_numbers_are_refused() -> None:
    """Sizes are those the device has room for, and rings have indexes."""

    async def refuse() -> None:
        async with wired(queue_size=256) as wire:
            await wire.negotiate()
            for num in (0, 257, 512, 1 << 31):
                assert await wire.acked(8, vring(0, num)) != 0
            assert await wire.acked(8, vring(0, 256)) == 0
            assert await wire.acked(8, vring(2, 256)) != 0
            assert await wire.acked(10, vring(2, 0)) != 0

    uvloop.run(refuse())


@pytest.mark.parametrize(("num", "base"), [(12, 0), (8, 1 << 16)])
def test_a_split_ring_with_numbers_it_cannot_have_does_not_start(num: int, base: int) -> None:
    """
    Whether a ring is split is known at its start: there its size and base are checked.

    Spec: virtio 1.3, 2.7; vhost-user, "A vring state description".
    """

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate()
            await wire.plug()
            await wire.set_up(num=num, base=base)
            assert await wire.acked(18, vring(0, 1)) == errno.EINVAL
            await wire.set_up(num=8)
            assert await wire.acked(18, vring(0, 1)) == 0

    uvloop.run(refuse())


def test_size_and_base_of_a_running_ring_cannot_change() -> None:
    """NUM and BASE are for stopped rings; a running one goes on."""

    async def refuse() -> None:
        async with wired() as wire:
            await wire.start()
            assert await wire.acked(8, vring(0, 16)) != 0
            assert await wire.acked(10, vring(0, 3)) != 0
            assert wire.queue.running

    uvloop.run(refuse())


def test_ring_addresses_of_a_running_ring_may_come_again() -> None:
    """SET_VRING_ADDR under way moves the ring; outside of memory it is refused."""

    async def again() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.acked(9, addresses(0, UVA + 0x8000)) == 0
            assert [call[0] for call in wire.queue.calls] == ["parked", "ring", "run"]
            wire.queue.calls.clear()
            assert await wire.acked(9, addresses(0, 0x1000)) != 0
            assert wire.queue.calls == []

    uvloop.run(again())
