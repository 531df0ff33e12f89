import os
import struct

import uvloop
from frontend_bytes import vring
from server_kit.left import mappings
from server_kit.wire import REGION_SIZE, memfd, region, wired


def test_memory_that_is_added_needs_a_park() -> None:
    """ADD_MEM_REG while the ring runs: parked, the new table, run; nothing waits for I/O."""

    async def add() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.plug(gpa=REGION_SIZE) == 0
            assert wire.queue.calls[:2] == [
                ("parked",),
                ("space", [(0, REGION_SIZE), (REGION_SIZE, REGION_SIZE)]),
            ]
            assert wire.queue.names()[-1] == "run"
            assert wire.engine.guarded == 2

    uvloop.run(add())


def test_memory_that_is_removed_needs_a_drain() -> None:
    """REM_MEM_REG waits for what is in flight; then the mapping and its guard are gone."""

    async def remove() -> None:
        async with wired() as wire:
            await wire.start()
            await wire.plug(gpa=REGION_SIZE)
            assert mappings() == 2
            wire.queue.calls.clear()
            assert await wire.acked(38, region(REGION_SIZE)) == 0
            assert wire.queue.calls[:2] == [("drained",), ("space", [(0, REGION_SIZE)])]
            assert wire.queue.running
            assert mappings() == 1
            assert wire.engine.guarded == 1

    uvloop.run(remove())


def test_memory_under_a_running_ring_is_not_removed() -> None:
    """REM_MEM_REG of the region a ring lies in is refused and leaves the ring running."""

    async def keep() -> None:
        async with wired() as wire:
            await wire.start()
            assert await wire.acked(38, region()) != 0
            assert wire.queue.running
            assert mappings() == 1

    uvloop.run(keep())


def test_an_unchanged_table_changes_nothing() -> None:
    """
    SET_MEM_TABLE sent again unchanged does not disturb a ring.

    Spec: vhost-user, "VHOST_USER_SET_MEM_TABLE".
    """

    async def again(fd: int) -> None:
        table = struct.pack("=II", 1, 0) + region()[8:]
        async with wired() as wire:
            await wire.negotiate()
            assert await wire.acked(5, table, [os.dup(fd)]) == 0
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            wire.queue.calls.clear()
            assert await wire.acked(5, table, [os.dup(fd)]) == 0
            assert wire.queue.calls == []
            assert mappings() == 1

    with memfd(REGION_SIZE) as fd:
        uvloop.run(again(fd))


def test_a_table_may_lose_what_no_ring_lies_in() -> None:
    """SET_MEM_TABLE without a region drains and unmaps it; without the ring's, it is refused."""

    async def lose(fd: int) -> None:
        first, second = region()[8:], region(REGION_SIZE)[8:]
        both = struct.pack("=II", 2, 0) + first + second
        async with wired() as wire:
            await wire.negotiate()
            assert await wire.acked(5, both, [os.dup(fd), os.dup(fd)]) == 0
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            wire.queue.calls.clear()
            assert await wire.acked(5, struct.pack("=II", 1, 0) + second, [os.dup(fd)]) != 0
            assert wire.queue.calls == []
            assert await wire.acked(5, struct.pack("=II", 1, 0) + first, [os.dup(fd)]) == 0
            assert wire.queue.names() == ["drained", "space", "ring", "run"]
            assert mappings() == 1

    with memfd(REGION_SIZE) as fd:
        uvloop.run(lose(fd))


def test_bad_memory_is_refused() -> None:
    """A region larger than its file, an overlapping and an unknown one leave the table alone."""

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate()
            with memfd(4096) as fd:
                assert await wire.acked(37, region(), [os.dup(fd)]) != 0
            assert await wire.plug() == 0
            assert await wire.plug(gpa=4096) != 0
            assert await wire.acked(38, region(gpa=4096)) != 0
            assert mappings() == 1

    uvloop.run(refuse())


def test_a_mapping_outlives_the_requests_that_were_given_up() -> None:
    """While a cancelled request is with the disk, its memory stays mapped."""

    async def outlive() -> None:
        async with wired(drain_seconds=0.01) as wire:
            await wire.start()
            await wire.plug(gpa=REGION_SIZE)
            wire.queue.may_drain.clear()
            assert await wire.acked(38, region(REGION_SIZE)) == 0
            assert mappings() == 2
            wire.queue.dead = 0
            wire.queue.may_drain.set()
            wire.device.bury([])
            assert mappings() == 1

    uvloop.run(outlive())
