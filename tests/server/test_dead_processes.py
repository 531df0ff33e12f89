"""
Requests of a process that was killed, which the kernel goes on with: nobody overtakes them.

Another open file of the image in this process stands for the dead one: to locks of open files it
is the same.
"""

import asyncio
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.serving import Serving
from server_kit.taking_over import taken_over
from server_kit.wire import Wire, wired

from vhostblk.disk.file import File, Locking
from vhostblk.disk.memory import Memory
from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest.blk import Request
from vhostblk.guest.errors import DeadlineError
from vhostblk.guest.guest import Guest
from vhostblk.memory.mapping import Mapping
from vhostblk.server import turn
from vhostblk.server.change import replace
from vhostblk.server.inflight import Area

AREA = struct.Struct("=QQHHI")
SIZE = 1 << 16
PATIENCE = 10.0


class Region:
    """An inflight region as the front-end has it, and what others have under way in it."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("region")
        os.ftruncate(self.fd, SIZE)

    async def give(self, wire: Wire) -> int:
        """Hand it to the device."""
        return await wire.acked(32, AREA.pack(SIZE, 0, 1, 128, 0), [os.dup(self.fd)])


@pytest.fixture
def region() -> Iterator[Region]:
    one = Region()
    yield one
    os.close(one.fd)


@contextmanager
def dead(image: Path, region: Region) -> Iterator[File]:
    """Have the image open as a process that was killed, with I/O under way."""
    file = reader(image)
    file.open()
    file.mark(number_of(region.fd))
    yield file
    file.close()


def number_of(fd: int, size: int = SIZE) -> int:
    """Return what the mark of a region is made of."""
    mapping = Mapping(os.dup(fd), offset=0, length=size)
    number = Area(mapping=mapping, num_queues=1, queue_size=128).number
    mapping.release()
    return number


def reader(image: Path) -> File:
    return File(image, read_only=True)


def lockless(image: Path) -> File:
    return File(image, locking=Locking.OFF)


async def go(wire: Wire, index: int = 0) -> None:
    """Start a ring of a connection that has its region."""
    await wire.plug()
    await wire.set_up(index)
    assert await wire.acked(18, vring(index, 1)) == 0


async def until(done: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE * 1000)):
        if done():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("make", [reader, lockless])
def test_a_ring_waits_for_what_a_dead_process_has_under_way(
    make: Callable[[Path], File],
    image: Path,
    region: Region,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Its start is acked and other messages are answered; it runs when the dead one's I/O has ended.

    QEMU's locks are no help: readers share theirs, and with locking=off there are none.
    """
    caplog.set_level("INFO")

    async def wait() -> None:
        async with wired(disk=make(image)) as wire:
            with dead(image, region):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                await asyncio.sleep(3 * turn.LOOK_SECONDS)
                assert not wire.queue.running
                await wire.done()
            await until(lambda: wire.queue.running)

    uvloop.run(wait())
    assert caplog.text.count("the queues wait: what another process had in flight") == 1
    assert caplog.text.count("nothing is under way elsewhere any more: the queues run") == 1


def test_a_region_nobody_else_uses_starts_at_once(
    image: Path, region: Region, caplog: pytest.LogCaptureFixture
) -> None:
    """Most processes leave nothing under way; other regions on the image are not waited for."""
    other = Region()

    async def start() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, other):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                assert wire.queue.running

    uvloop.run(start())
    os.close(other.fd)
    assert "the queues wait" not in caplog.text


def test_what_is_used_here_is_marked_while_it_is(image: Path) -> None:
    """From SET_INFLIGHT_FD to the end of the connection, and not between drivers."""

    async def use() -> None:
        other = reader(image)
        other.open()
        async with wired(disk=reader(image)) as wire:
            await wire.negotiate()
            answer, (fd,) = await wire.ask_for_fds(31, AREA.pack(0, 0, 2, 128, 0))
            wire.tell(32, answer, [fd])
            await go(wire)
            assert wire.queue.running
            first = current(wire)
            assert other.marked_by_others(first)
            wire.tell(34)
            await wire.done()
            await until(lambda: not other.marked_by_others(first))
            answer, (fd,) = await wire.ask_for_fds(31, AREA.pack(0, 0, 2, 128, 0))
            wire.tell(32, answer, [fd])
            await go(wire)
            second = current(wire)
            assert second != first
            assert other.marked_by_others(second)
            wire.sock.close()
            await wire.closed()
            await until(lambda: not other.marked_by_others(second))
        other.close()

    uvloop.run(use())


def current(wire: Wire) -> int:
    """Return the number of the region that is in use."""
    area = wire.attachment.inflight.area
    assert area is not None
    return area.number


def test_a_mark_stays_with_a_request_that_was_given_up(image: Path, region: Region) -> None:
    """The disk still has it: whoever is handed the region next must wait for it."""

    async def give_up() -> None:
        other = reader(image)
        other.open()
        async with wired(disk=reader(image), drain_seconds=0.01) as wire:
            await wire.negotiate()
            assert await region.give(wire) == 0
            await go(wire)
            wire.queue.may_drain.clear()
            number, queue = current(wire), wire.queue
            wire.sock.close()
            await wire.closed()
            await asyncio.sleep(0.01)
            assert wire.device.dead()
            assert other.marked_by_others(number)
            queue.dead = 0
            wire.device.bury([])
            await until(lambda: not other.marked_by_others(number))
        other.close()

    uvloop.run(give_up())


def test_a_ring_that_waits_can_be_stopped_and_started(image: Path, region: Region) -> None:
    """GET_VRING_BASE is answered at once, and the next start waits like the one before."""

    async def stop() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, region):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                assert await wire.ask(11, vring(0, 0)) == vring(0, 0)
                await wire.set_up()
                await asyncio.sleep(2 * turn.LOOK_SECONDS)
                assert not wire.queue.running
            await until(lambda: wire.queue.running)

    uvloop.run(stop())


def test_a_driver_that_begins_anew_waits_too(image: Path, region: Region) -> None:
    """A reset and a new region do not end the I/O of the dead, which goes to the same memory."""

    async def reset() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, region):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                wire.tell(34)
                answer, (fd,) = await wire.ask_for_fds(31, AREA.pack(0, 0, 2, 128, 0))
                wire.tell(32, answer, [fd])
                wire.tell(2, u64(0x170001E46))
                await wire.set_up()
                assert await wire.acked(18, vring(0, 1)) == 0
                await asyncio.sleep(2 * turn.LOOK_SECONDS)
                assert not wire.queue.running
            await until(lambda: wire.queue.running)

    uvloop.run(reset())


def test_a_front_end_that_leaves_is_not_waited_for(image: Path, region: Region) -> None:
    """A disconnect in the middle of the wait is the end of it, and leaves no mark of ours."""

    async def leave() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, region) as file:
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                number = current(wire)
                assert file.marked_by_others(number)
                wire.sock.close()
                await wire.closed()
                await until(lambda: not file.marked_by_others(number))
            assert not wire.queue.running

    uvloop.run(leave())


def test_one_that_never_ends_is_an_error_in_the_log(
    image: Path,
    region: Region,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After long an operator is told, once; the ring still does not run, for the guest's sake."""
    monkeypatch.setattr(turn, "PATIENCE", 0)
    monkeypatch.setattr(turn, "SLOW_LOOK_SECONDS", 0.001)

    async def wait() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, region):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                await until(lambda: "`lslocks` names a living one" in caplog.text)
                await asyncio.sleep(0.01)
                assert not wire.queue.running
            await until(lambda: wire.queue.running)

    uvloop.run(wait())
    assert [one.levelname for one in caplog.records].count("ERROR") == 1


def test_a_disk_is_not_replaced_while_the_old_one_is_waited_for(
    image: Path, region: Region
) -> None:
    """What is waited for is on the disk there is; behind another one nobody would see its end."""

    async def change() -> None:
        async with wired(disk=reader(image)) as wire:
            with dead(image, region):
                await wire.negotiate()
                assert await region.give(wire) == 0
                await go(wire)
                with pytest.raises(VhostBlkError, match="still under way on the disk"):
                    await replace(wire.device, reader(image), None)
            await until(lambda: wire.queue.running)

    uvloop.run(change())


def test_a_disk_in_place_of_another_has_its_marks(image: Path, region: Region) -> None:
    """From then on the requests noted in the region are under way there."""

    async def change() -> None:
        async with wired(disk=reader(image)) as wire:
            await wire.negotiate()
            assert await region.give(wire) == 0
            await go(wire)
            await replace(wire.device, reader(image), None)
            other = reader(image)
            other.open()
            assert other.marked_by_others(current(wire))
            wire.sock.close()
            await wire.closed()
            await until(lambda: not other.marked_by_others(number_of(region.fd)))
            other.close()

    uvloop.run(change())


def test_a_process_that_takes_over_waits_on(
    server: Serving, engine: EngineName, vhost_user_guest: Callable[..., Guest], image: Path
) -> None:
    """An upgrade in the middle of the wait ends neither the wait nor our own marks."""
    path = server.add(reader(image))
    guest = vhost_user_guest(path)
    other = reader(image)
    other.open()
    assert guest.inflight is not None
    number = number_of(guest.inflight.fd, guest.inflight.mmap_size)
    assert other.marked_by_others(number)
    other.mark(number)
    read = guest.submit(Request.read(0, 4096))
    guest.wait(read)
    server.ask(server.devices[0].hang_up)
    guest.reconnect()
    read = guest.submit(Request.read(0, 4096))
    with taken_over(server, engine, f"s1=file:{image},read-only=on"):
        server.stop()
        with pytest.raises(DeadlineError):
            guest.wait(read, timeout=0.1)
        other.unmark(number)
        guest.wait(read)
        assert other.marked_by_others(number)
        guest.close()
    assert not other.marked_by_others(number)
    other.close()


def test_a_process_that_takes_over_does_not_wait_for_the_one_before(
    server: Serving, engine: EngineName, vhost_user_guest: Callable[..., Guest], image: Path
) -> None:
    """Both have the same open file, and with it the mark, whichever of them goes first."""
    guest = vhost_user_guest(server.add(reader(image)))
    server.ask(server.devices[0].hang_up)
    guest.reconnect()
    with taken_over(server, engine, f"s1=file:{image},read-only=on"):
        server.stop()
        guest.read(0, 4096)
        guest.close()


def test_other_disks_wait_for_nobody(region: Region) -> None:
    """Memory and disks in Python have no open file on which a dead process could be seen."""

    async def start() -> None:
        async with wired(disk=Memory(1 << 20)) as wire:
            await wire.negotiate()
            assert await region.give(wire) == 0
            await go(wire)
            assert wire.queue.running

    uvloop.run(start())
