"""Who may use a device when: front-ends that follow each other."""

import asyncio
import os

import uvloop
from frontend_bytes import u64, vring
from server_kit.engine import FakeQueue
from server_kit.house import House, house
from server_kit.left import mappings, open_fds

from vhostblk.server.service import MOST_LEAVING
from vhostblk.server.status import status


async def left(one: House) -> FakeQueue:
    """Have the first front-end come and go, and its queue not drained yet."""
    old = one.connect()
    await old.start()
    (first,) = one.engine.queues
    first.may_drain.clear()
    old.sock.close()
    return first


def test_a_front_end_that_returns_is_answered_while_the_old_one_drains() -> None:
    """
    Its questions are answered at once and its rings started, but they run behind the old ones.

    Source: PROTOCOL.md, 16.
    """

    async def come_back() -> None:
        before = open_fds()
        async with house() as one:
            first = await left(one)
            new = one.connect()
            await new.start()
            second = new.queue
            assert second is not first
            assert not second.running
            assert not first.closed
            assert await new.acked(18, vring(0, 0)) == 0
            assert await new.acked(18, vring(0, 1)) == 0
            assert await new.acked(13, u64(0), [os.eventfd(0)]) == 0
            assert not second.running
            first.may_drain.set()
            await one.until(lambda: second.running)
            assert first.closed
            assert mappings() == 1
            new.sock.close()
        assert mappings() == 0
        assert open_fds() <= before

    uvloop.run(come_back())


def test_front_ends_that_hurry_are_held_back() -> None:
    """Only so many may be on their way out at once: the next one is taken when one is gone."""

    async def hurry() -> None:
        async with house() as one:
            for _ in range(MOST_LEAVING):
                caller = one.connect()
                await caller.start()
                caller.queue.may_drain.clear()
                caller.sock.close()
            await one.until(lambda: len(one.service.leaving) == MOST_LEAVING)
            last = one.connect()
            await asyncio.sleep(0.02)
            assert one.service.session is None
            one.engine.queues[0].may_drain.set()
            await one.until(lambda: one.service.session is not None)
            for queue in one.engine.queues:
                queue.may_drain.set()
            last.sock.close()

    uvloop.run(hurry())


def test_a_front_end_that_returns_is_bounded_by_the_drain() -> None:
    """A disk that never answers keeps the next front-end's rings for drain_seconds, not longer."""

    async def come_back() -> None:
        async with house(drain_seconds=0.02) as one:
            first = await left(one)
            new = one.connect()
            await new.start()
            await one.until(lambda: new.queue.running)
            assert first.closed
            first.dead = 0
            new.sock.close()

    uvloop.run(come_back())


def test_a_front_end_that_dies_while_it_waits_for_us_is_gone() -> None:
    """One that is killed in GET_VRING_BASE, or mid-way in what follows, keeps nobody waiting."""

    async def die() -> None:
        async with house() as one:
            old = one.connect()
            await old.start()
            (first,) = one.engine.queues
            first.may_drain.clear()
            old.tell(11, vring(0, 0))
            await old.nothing_comes()
            old.sock.close()
            new = one.connect()
            await new.start()
            assert not new.queue.running
            assert status(one.service.device)["front_end_connected"]
            first.may_drain.set()
            await one.until(lambda: new.queue.running)
            assert first.closed
            new.sock.close()

    uvloop.run(die())


def test_a_front_end_that_sends_on_is_not_taken_for_gone() -> None:
    """Messages that come while one is handled are read when their turn comes."""

    async def go_on() -> None:
        async with house() as one:
            wire = one.connect()
            await wire.start()
            wire.queue.may_drain.clear()
            wire.tell(11, vring(0, 0))
            await wire.nothing_comes()
            wire.tell(1)
            await wire.nothing_comes()
            wire.queue.may_drain.set()
            assert (await wire.reply())[0] == 11
            assert (await wire.reply())[0] == 1
            wire.sock.close()

    uvloop.run(go_on())


def test_a_ring_that_waits_can_be_stopped_again() -> None:
    """GET_VRING_BASE and a disconnect of a front-end whose turn has not come wait for nobody."""

    async def stop() -> None:
        async with house() as one:
            first = await left(one)
            for _ in range(3):
                new = one.connect()
                await new.start(base=7)
                assert await new.ask(11, vring(0, 0)) == vring(0, 7)
                new.sock.close()
            last = one.connect()
            await last.start()
            assert len(one.service.leaving) >= 1
            first.may_drain.set()
            await one.until(lambda: last.queue.running)
            assert [queue.running for queue in one.engine.queues] == [False] * 4 + [True]
            last.sock.close()

    uvloop.run(stop())


def test_a_second_front_end_waits_while_the_first_one_is_alive() -> None:
    """One at a time: its messages are kept in its socket, and answered when the first has left."""

    async def wait() -> None:
        async with house() as one:
            first, second = one.connect(), one.connect()
            await first.start()
            second.tell(1)
            await second.nothing_comes()
            first.sock.close()
            assert (await second.reply())[0] == 1
            second.sock.close()

    uvloop.run(wait())


def test_a_server_that_ends_waits_for_those_who_left() -> None:
    """SIGTERM in the middle of a reconnect drains what both front-ends have."""

    async def end() -> None:
        async with house() as one:
            first = await left(one)
            new = one.connect()
            await new.start()
            asyncio.get_running_loop().call_later(0.02, first.may_drain.set)
        new.sock.close()

    uvloop.run(end())
