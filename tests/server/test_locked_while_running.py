"""A disk that is locked while rings run: the ends of a migration, one after the other."""

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.disks import Ram
from server_kit.engine import FakeQueue
from server_kit.house import House, house
from server_kit.wire import LINUX

from vhostblk.errors import VhostBlkError
from vhostblk.server.status import status

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
