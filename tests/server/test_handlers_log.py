import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.engine import FakeEngine
from server_kit.iommu import PARTS, PLATFORM, iommu
from server_kit.left import mappings, open_fds
from server_kit.wire import ALL_PROTOCOL_FEATURES, LINUX, REGION_SIZE, UVA, Wire, wired

from vhostblk.memory.dirty import LOG_USED_BY_HOST, PAGE

LOG_ALL = 1 << 26
LOG_SHMFD = 1 << 1
SIZE = 4096


@contextmanager
def log(size: int = SIZE, name: str = "log") -> Iterator[int]:
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


async def give(wire: Wire, fd: int, size: int = SIZE, offset: int = 0) -> int:
    """Send SET_LOG_BASE, which is answered though nobody asks for an ack."""
    wire.tell(6, struct.pack("=QQ", size, offset), [os.dup(fd)])
    number, answer = await wire.reply()
    assert (number, len(answer)) == (6, 8)
    return int.from_bytes(answer, "little")


def logged(index: int = 0, used: int | None = None) -> bytes:
    """Return SET_VRING_ADDR of the ring that runs, with VRING_F_LOG or without."""
    flags, at = (0, 0x5000) if used is None else (1, used)
    return struct.pack("=IIQQQQ", index, flags, UVA, UVA + 0x2000, UVA + 0x1000, at)


async def begin(wire: Wire, fd: int) -> None:
    """Have a ring that runs logged, as QEMU does when a migration begins."""
    assert await give(wire, fd) == 0
    assert await wire.acked(2, u64(LINUX | LOG_ALL)) == 0
    assert await wire.acked(9, logged(used=0x2000)) == 0


@pytest.mark.parametrize(("size", "warns"), [(REGION_SIZE // PAGE // 8, False), (1, True)])
def test_a_log_too_short_for_memory_is_told(
    size: int,
    warns: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is taken, as it is the front-end's; but that pages will be missing is not hidden."""

    async def short() -> None:
        async with wired() as wire:
            await wire.start()
            with log() as fd:
                assert await give(wire, fd, size=size) == 0

    uvloop.run(short())
    assert ("has no bits for all memory" in caplog.text) is warns


def test_a_migration_logs_what_rings_write_while_they_run() -> None:
    """
    LOG_BASE, LOG_ALL and VRING_F_LOG come to rings that run, which are parked for a moment each.

    Spec: vhost-user, "Migration".
    """

    async def migrate() -> None:
        async with wired() as wire:
            await wire.start()
            with log() as fd:
                wire.queue.calls.clear()
                assert await give(wire, fd) == 0
                assert wire.queue.log is None
                assert await wire.acked(2, u64(LINUX | LOG_ALL)) == 0
                seen = wire.queue.log
                assert seen is not None
                assert (seen.length, seen.used_gpa) == (SIZE, None)
                assert [(one.gpa, one.length) for one in seen.regions] == [(0, REGION_SIZE)]
                assert await wire.acked(9, logged(used=0x2000)) == 0
                assert wire.queue.log is not None
                assert wire.queue.log.used_gpa == 0x2000
                assert "drained" not in wire.queue.names()
                assert wire.queue.running
                assert mappings("log") == 1
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0)
            assert wire.queue.log is None
        assert mappings("log") == 0

    uvloop.run(migrate())


def test_a_migration_that_is_called_off_logs_no_more() -> None:
    """The flag and LOG_ALL go in reverse order, and the ring runs on."""

    async def off() -> None:
        async with wired() as wire:
            await wire.start()
            with log() as fd:
                await begin(wire, fd)
            assert await wire.acked(9, logged()) == 0
            assert wire.queue.log is not None
            assert wire.queue.log.used_gpa is None
            assert await wire.acked(2, u64(LINUX)) == 0
            assert wire.queue.log is None
            assert wire.queue.running

    uvloop.run(off())


def test_a_log_that_is_replaced_is_unmapped_when_nobody_marks_it() -> None:
    """
    QEMU sends a longer log before it plugs memory in: every ring marks that one at the answer.

    Spec: vhost-user, "VHOST_USER_SET_LOG_BASE".
    """

    async def grow() -> None:
        async with wired() as wire:
            await wire.start()
            await wire.set_up(1)
            assert await wire.acked(18, vring(1, 1)) == 0
            with log() as fd, log(2 * SIZE, "longer") as longer:
                await begin(wire, fd)
                assert await give(wire, longer, 2 * SIZE) == 0
            assert {one.log and one.log.length for one in wire.engine.queues} == {2 * SIZE}
            assert mappings("log") == 0
            assert mappings("longer") == 1
            assert await wire.plug(gpa=REGION_SIZE) == 0
            for queue in wire.engine.queues:
                assert queue.log is not None
                assert len(queue.log.regions) == 2
            assert wire.engine.guarded == 3

    uvloop.run(grow())


def test_a_ring_that_starts_under_a_log_marks_it() -> None:
    """A driver that begins, or goes on, in the middle of a migration is logged from its start."""

    async def start() -> None:
        async with wired() as wire:
            await wire.negotiate(LINUX | LOG_ALL)
            with log() as fd:
                assert await give(wire, fd) == 0
            await wire.plug()
            wire.tell(8, vring(0, 8))
            wire.tell(9, logged(used=0x7000))
            assert await wire.acked(12, u64(0), [os.eventfd(0)]) == 0
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.log is not None
            assert wire.queue.log.used_gpa == 0x7000

    uvloop.run(start())


def test_the_used_ring_behind_an_iommu_is_logged_where_it_is() -> None:
    """
    There log_guest_addr is an IOVA: the used ring is looked up as data is.

    Source: traces, 7: "mark what the IOVA maps to".
    """

    async def mark() -> None:
        async with iommu() as wire:
            queue = await wire.up()
            with log() as fd:
                assert await give(wire, fd) == 0
            assert await wire.acked(2, u64(LINUX | PLATFORM | LOG_ALL)) == 0
            at = struct.pack("=IIQQQQ", 0, 1, PARTS[0], PARTS[2], PARTS[1], PARTS[2])
            assert await wire.acked(9, at) == 0
            assert queue.log is not None
            assert queue.log.used_gpa == LOG_USED_BY_HOST
            assert queue.running

    uvloop.run(mark())


@pytest.mark.parametrize(
    ("size", "offset"),
    [(0, 0), (2 * SIZE, 0), (SIZE, SIZE), ((1 << 64) - 1, 0), (SIZE, (1 << 64) - SIZE)],
)
def test_a_log_that_is_not_all_there_is_refused(size: int, offset: int) -> None:
    """A file that is shorter than said is not marked; the log before it stays in use."""

    async def refuse() -> None:
        async with wired() as wire:
            await wire.start()
            with log() as fd, log(name="worse") as worse:
                await begin(wire, fd)
                before = wire.queue.log
                held = open_fds()
                assert await give(wire, worse, size, offset) == errno.EINVAL
                assert open_fds() == held
            assert wire.queue.log == before
            assert mappings("log") == 1
            assert mappings("worse") == 0

    uvloop.run(refuse())


def test_a_log_may_begin_inside_of_a_file() -> None:
    """mmap_offset is where it begins, on a page or not."""

    async def inside() -> None:
        async with wired() as wire:
            await wire.start()
            with log(4 * SIZE) as fd:
                assert await give(wire, fd, 100, SIZE + 8) == 0
                os.pwrite(fd, b"bits", SIZE + 8)
            assert await wire.acked(2, u64(LINUX | LOG_ALL)) == 0
            assert wire.queue.log is not None
            assert wire.queue.log.length == 100
            assert wire.queue.log.address % 4096 == 8

    uvloop.run(inside())


def test_a_log_descriptor_is_accepted_and_closed() -> None:
    """
    SET_LOG_FD gets its ack; nobody is told there.

    Spec: vhost-user, "VHOST_USER_SET_LOG_FD".
    """

    async def accept() -> None:
        async with wired() as wire:
            await wire.negotiate()
            before = open_fds()
            assert await wire.acked(7, b"", [os.eventfd(0)]) == 0
            assert open_fds() == before

    uvloop.run(accept())


def test_a_log_without_a_descriptor_ends_the_connection() -> None:
    """An address of the front-end's means nothing here, and without LOG_SHMFD nothing says so."""

    async def end() -> None:
        async with wired() as wire:
            wire.tell(16, u64(ALL_PROTOCOL_FEATURES & ~LOG_SHMFD))
            wire.tell(6, u64(UVA))
            assert await wire.gone()

    uvloop.run(end())


def test_a_data_plane_that_cannot_log_does_not_offer_it() -> None:
    """Without LOG_ALL and LOG_SHMFD QEMU refuses to migrate, which is what must happen."""

    async def ask() -> None:
        async with wired(FakeEngine(can_log=False)) as wire:
            assert not int.from_bytes(await wire.ask(1), "little") & LOG_ALL
            offered = int.from_bytes(await wire.ask(15), "little")
            assert offered == ALL_PROTOCOL_FEATURES & ~LOG_SHMFD

    uvloop.run(ask())


def test_a_reset_forgets_where_the_used_ring_is_logged() -> None:
    """The next driver's ring is logged where it says, or nowhere."""

    async def again() -> None:
        async with wired() as wire:
            await wire.start()
            with log() as fd:
                await begin(wire, fd)
            wire.tell(34)
            wire.tell(2, u64(LINUX | LOG_ALL))
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.log is not None
            assert wire.queue.log.used_gpa is None

    uvloop.run(again())
