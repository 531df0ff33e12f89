"""Who may use a device when: front-ends that follow each other, and the ends of a migration."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.disks import Ram
from server_kit.engine import FakeEngine, FakeQueue
from server_kit.left import mappings, open_fds
from server_kit.wire import LINUX, Wire

from vhostblk.errors import VhostBlkError
from vhostblk.server.device import open_device
from vhostblk.server.gate import Brake
from vhostblk.server.handover import SourceState
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.service import MOST_LEAVING, Service
from vhostblk.server.status import status

PATIENCE = 10.0


class Sockets:
    """Connections that a test makes."""

    path: Path | None = None

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[socket.socket | None] = asyncio.Queue()
        self.brake = Brake(lambda: None)

    async def accept(self) -> socket.socket | None:
        return await self._waiting.get()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._waiting.put_nowait(theirs)
        return ours

    def share(self) -> SourceState:
        return SourceState(kind="connected")

    def leave(self) -> None:
        self.close()

    def close(self) -> None:
        self._waiting.put_nowait(None)


class Caller(Wire):
    """A front-end whose side of the connection is the service's business."""

    def __init__(self, sock: socket.socket, engine: FakeEngine) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.engine = engine


class House:
    """A device being served, and the front-ends that come to it."""

    def __init__(self, engine: FakeEngine, service: Service, source: Sockets) -> None:
        self.engine = engine
        self.service = service
        self._source = source

    def connect(self) -> Caller:
        """Come to it; whether it answers is another question."""
        return Caller(self._source.connect(), self.engine)

    async def until(self, done: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE * 1000)):
            if done():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it never came true")


@asynccontextmanager
async def house(disk: object = None, **options: object) -> AsyncIterator[House]:
    """Serve a device, and leave nothing of it."""
    engine, source = FakeEngine(), Sockets()
    chosen = DeviceOptions(**{"drain_seconds": 5.0, **options})  # type: ignore[arg-type]
    device = await open_device(disk or Ram(), engine, chosen)
    service = Service(device, source)
    service.start()
    try:
        yield House(engine, service, source)
    finally:
        await asyncio.wait_for(service.end(), PATIENCE)
        assert all(queue.closed for queue in engine.queues)


def test_a_front_end_that_returns_is_answered_while_the_old_one_drains() -> None:
    """
    Its questions are answered at once and its rings started, but they run behind the old ones.

    Source: PROTOCOL.md, 16.
    """

    async def come_back() -> None:
        before = open_fds()
        async with house() as one:
            old = one.connect()
            await old.start()
            (first,) = one.engine.queues
            first.may_drain.clear()
            old.sock.close()
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
            old = one.connect()
            await old.start()
            (first,) = one.engine.queues
            first.may_drain.clear()
            old.sock.close()
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
            old = one.connect()
            await old.start()
            (first,) = one.engine.queues
            first.may_drain.clear()
            old.sock.close()
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
            old = one.connect()
            await old.start()
            (first,) = one.engine.queues
            first.may_drain.clear()
            old.sock.close()
            new = one.connect()
            await new.start()
            asyncio.get_running_loop().call_later(0.02, first.may_drain.set)
        new.sock.close()

    uvloop.run(end())


# ---- a disk that is locked while it is used ---------------------------------------------------


class Shared(Ram):
    """Locked while rings run; somebody else may have it."""

    lock_while_running = True

    def __init__(self) -> None:
        super().__init__()
        self.taken = False

    def lock(self) -> None:
        self._note("lock")
        if self.taken:
            raise VhostBlkError("in use: somebody writes to it")

    def unlock(self) -> None:
        self._note("unlock")

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]


async def runs(one: House, queue: FakeQueue) -> None:
    await one.until(lambda: queue.running)


def test_a_disk_is_locked_from_the_first_ring_to_the_last() -> None:
    """Nothing is locked at open; two rings lock once, and the last stop flushes and unlocks."""

    async def use() -> None:
        disk = Shared()
        async with house(disk, num_queues=2) as one:
            wire = one.connect()
            await wire.start()
            await runs(one, wire.queue)
            await wire.set_up(1)
            assert await wire.acked(18, vring(1, 1)) == 0
            await runs(one, wire.queue)
            assert disk.names() == ["open", "lock"]
            await wire.ask(11, vring(0, 0))
            assert disk.names() == ["open", "lock"]
            await wire.ask(11, vring(1, 0))
            assert disk.names() == ["open", "lock", "flush", "unlock"]
            wire.sock.close()

    uvloop.run(use())


def test_a_ring_does_not_run_while_somebody_has_the_disk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its start is acked, it waits with one line in the log, and runs when the disk is free."""

    async def wait() -> None:
        disk = Shared()
        disk.taken = True
        async with house(disk) as one:
            wire = one.connect()
            await wire.start()
            await one.until(lambda: disk.names().count("lock") > 1)
            assert not wire.queue.running
            assert not status(one.service.device)["queues"][0]["running"]
            disk.taken = False
            await runs(one, wire.queue)
            assert status(one.service.device)["queues"][0]["running"]
            wire.sock.close()

    uvloop.run(wait())
    assert caplog.text.count("the queues wait for the disk") == 1


def test_a_guest_that_goes_on_takes_the_disk_back() -> None:
    """After a migration that failed the source starts again: the lock is taken anew."""

    async def fail() -> None:
        disk = Shared()
        async with house(disk) as one:
            wire = one.connect()
            await wire.start()
            await runs(one, wire.queue)
            await wire.ask(11, vring(0, 0))
            disk.taken = True
            await wire.set_up()
            assert not wire.queue.running
            disk.taken = False
            await runs(one, wire.queue)
            assert disk.names().count("unlock") == 1
            wire.sock.close()
        assert disk.names()[-2:] == ["flush", "close"]
        assert disk.names().count("unlock") == 2

    uvloop.run(fail())


@pytest.mark.parametrize("end", [34, 39])
def test_a_reset_and_a_disconnect_unlock_too(end: int) -> None:
    """However the last ring ends, the disk is somebody else's before the answer."""

    async def leave() -> None:
        disk = Shared()
        async with house(disk) as one:
            for stop in (True, False):
                wire = one.connect()
                await wire.start()
                await runs(one, wire.queue)
                if stop:
                    wire.tell(end, u64(0) if end == 39 else b"")
                    await wire.done()
                    assert disk.names()[-2:] == ["flush", "unlock"]
                wire.sock.close()
                await one.until(lambda: disk.names()[-1] == "unlock")
        assert disk.names().count("lock") == disk.names().count("unlock") == 2

    uvloop.run(leave())


def test_firmware_that_never_starts_a_ring_locks_nothing() -> None:
    """Negotiation, a ring that is set up and one that is only enabled need no disk."""

    async def look() -> None:
        disk = Shared()
        async with house(disk) as one:
            wire = one.connect()
            await wire.negotiate(LINUX)
            await wire.plug()
            await wire.set_up()
            await wire.done()
            assert disk.names() == ["open"]
            wire.sock.close()

    uvloop.run(look())
