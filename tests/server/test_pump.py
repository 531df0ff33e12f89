import asyncio
import errno
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import uvloop
from server_kit.disks import Failing, Keeper, Ram, Slow, Stuck
from server_kit.engine import FakeMailbox
from server_kit.jobs import job
from server_kit.left import threads
from server_kit.serving import names

from vhostblk.engine.api import Op
from vhostblk.errors import VhostBlkError
from vhostblk.server.log import Log
from vhostblk.server.pump import Pump

PATIENCE = 10.0
LOG = Log("vhostblk.test", "bench")


@asynccontextmanager
async def pumping(disk: object) -> AsyncIterator[tuple[Pump, FakeMailbox]]:
    """Open *disk* on a thread and serve one mailbox; close both."""
    pump, box = Pump(disk, log=LOG, name="bench"), FakeMailbox()
    await pump.open()
    pump.serve(box)
    try:
        yield pump, box
    finally:
        await pump.close(seconds=PATIENCE)
        box.close()


async def become(condition: Callable[[], bool]) -> None:
    """Wait until *condition* is true; another thread makes it so."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - an event of this loop is none of that thread's
            await asyncio.sleep(0.001)


async def ended(box: FakeMailbox, *tags: int) -> list[int | str]:
    """Return how these jobs ended, once all of them have."""
    await become(lambda: box.ended.keys() >= set(tags))
    return [box.ended[tag] for tag in tags]


def test_every_operation_reaches_its_method() -> None:
    """Op by op; what must be stable is followed by a flush where the disk has no fua."""

    async def each() -> None:
        disk = Ram()
        async with pumping(disk) as (_, box):
            box.post(job(1, Op.READ), job(2, Op.WRITE), job(3, Op.FLUSH))
            box.post(job(4, Op.DISCARD), job(5, Op.WRITE_ZEROES))
            box.post(job(6, Op.WRITE, fua=True), job(7, Op.DISCARD, fua=True))
            assert await ended(box, *range(1, 8)) == [0] * 7
            assert names(disk.calls) == [
                *("open", "read", "write", "flush", "discard", "write"),
                *("write", "flush", "discard", "flush"),
            ]

    uvloop.run(each())


def test_async_calls_run_together_and_a_cancel_ends_one() -> None:
    """Two reads wait at once; CANCEL of one ends it with ECANCELED, the other goes on."""

    async def together() -> None:
        disk = Slow()
        async with pumping(disk) as (_, box):
            disk.set(free=False)
            box.post(job(1, Op.READ), job(2, Op.READ, offset=512))
            await become(lambda: disk.waiting == 2)
            box.post(job(1, Op.CANCEL))
            assert await ended(box, 1) == [errno.ECANCELED]
            assert disk.waiting == 1
            disk.set(free=True)
            assert await ended(box, 2) == [0]

    uvloop.run(together())


class _Raises(Slow):
    """Raises from an ``async`` method, in a cycle with its own frame."""

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        part = views[0][offset:]
        try:
            int("none" * len(part))
        except ValueError as error:
            cycle = error
            raise OSError(errno.ENOSPC, "full") from cycle


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_raised_is_an_errno_and_holds_no_memory(
    *, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An OSError's own errno, EIO for the rest; tracebacks, logged or in cycles, keep no view."""

    async def raised() -> None:
        disk: Failing | _Raises
        if plain:
            disk = Failing()
            disk.error = ValueError("bug")
        else:
            disk = _Raises()
        async with pumping(disk) as (pump, box):
            box.post(job(1, Op.WRITE if plain else Op.READ))
            assert await ended(box, 1) == [errno.EIO if plain else errno.ENOSPC]
            assert pump.kept() == 0

    uvloop.run(raised())
    assert ("Traceback" in caplog.text) is plain


def test_memory_that_is_kept_is_noticed_until_it_is_let_go() -> None:
    """A slice that outlives its request breaks the queue and is counted while it lives."""

    async def keep() -> None:
        disk = Keeper()
        async with pumping(disk) as (pump, box):
            box.post(job(1, Op.READ), job(2, Op.WRITE))
            assert await ended(box, 1, 2) == ["kept", 0]
            assert pump.kept() == 1
            disk.kept.clear()
            gc.collect()
            assert pump.kept() == 0

    uvloop.run(keep())


def test_a_forgotten_mailbox_is_left_alone() -> None:
    """After `forget` nothing is taken from it, and what ran for it was cancelled and ended."""

    async def forget() -> None:
        disk = Slow()
        async with pumping(disk) as (pump, box):
            disk.set(free=False)
            box.post(job(1, Op.READ))
            await become(lambda: disk.waiting == 1)
            await pump.forget(box, seconds=PATIENCE)
            assert await ended(box, 1) == [errno.ECANCELED]
            box.post(job(2, Op.READ))
            await pump.flush(seconds=PATIENCE)
            assert 2 not in box.ended

    uvloop.run(forget())


def test_a_stuck_disk_is_waited_for_no_longer_than_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Flush, forget and close give up in time and say so; what was asked happens afterwards."""

    async def stuck() -> None:
        disk = Stuck()
        pump, box = Pump(disk, log=LOG, name="bench"), FakeMailbox()
        await pump.open()
        pump.serve(box)
        box.post(job(1, Op.READ))
        await asyncio.to_thread(disk.stuck.wait)
        with pytest.raises(OSError, match=r"flush took more than 0.01 s"):
            await pump.flush(seconds=0.01)
        await pump.forget(box, seconds=0.01)
        assert not await pump.close(seconds=0.01)
        disk.let_go.set()
        assert await ended(box, 1) == [0]
        assert await pump.close(seconds=PATIENCE)
        box.close()

    uvloop.run(stuck())
    assert caplog.text.count("did not return within 0.01 s") == 2


def test_memory_of_a_call_that_does_not_return_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    """What was given up does nothing any more, what had not begun is not begun; others go on."""

    async def revoke() -> None:
        disk = Stuck()
        pump, box, other = Pump(disk, log=LOG, name="bench"), FakeMailbox(), FakeMailbox()
        await pump.open()
        pump.serve(box)
        pump.serve(other)
        box.post(job(1, Op.READ), job(2, Op.WRITE))
        await asyncio.to_thread(disk.stuck.wait)
        pump.revoke(box)
        pump.revoke(box)
        box.post(job(3, Op.WRITE), job(2, Op.CANCEL), job(3, Op.CANCEL))
        disk.let_go.set()
        assert await ended(box, 1, 2, 3) == [errno.ECANCELED] * 3
        assert not any(call[0] == "write" for call in disk.calls)
        box.ended.clear()
        box.post(job(2, Op.READ))  # a tag is used again once its job has ended
        other.post(job(1, Op.READ))
        assert await ended(box, 2) == await ended(other, 1) == [0]
        assert await pump.close(seconds=PATIENCE)
        box.close()
        other.close()

    uvloop.run(revoke())
    assert "the disk raised" not in caplog.text


def test_a_disk_that_cannot_be_opened_leaves_no_thread() -> None:
    """What open or info raise comes to who opened; the thread has ended."""

    class Missing(Ram):
        def open(self) -> None:
            raise VhostBlkError("no image")

    class Odd(Ram):
        def __init__(self) -> None:
            super().__init__(1000)

    async def cannot() -> None:
        before = threads()
        for disk in (Missing(), Odd()):
            with pytest.raises(VhostBlkError):
                await Pump(disk, log=LOG, name="bench").open()
            assert threads() == before

    uvloop.run(cannot())


def test_an_error_of_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Closing goes on, as there is nobody to tell."""

    class Bad(Ram):
        def close(self) -> None:
            raise ValueError("bad")

    async def close() -> None:
        pump = Pump(Bad(), log=LOG, name="bench")
        await pump.open()
        assert await pump.close(seconds=PATIENCE)
        assert await pump.close(seconds=PATIENCE)  # nothing is left to do

    uvloop.run(close())
    assert caplog.text.count("the disk raised when it was closed") == 1
