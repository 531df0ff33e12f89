"""What a layer in Python calls where layers of the core are below it; the test is the disk."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine, Sequence

import pytest
import uvloop

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import run
from vhostblk.disk.layer import Layer
from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.engine.api import Job, Op
from vhostblk.engine.native.driven import SLOTS, Driven, drive

MIB = 1 << 20


class Nowhere(Disk):
    """Gives a disk its shape; the test does the jobs."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        raise AssertionError(offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        raise AssertionError(offset, views)


class Hand:
    """A `Driven` over a disk whose jobs the test does."""

    def __init__(self, disk: object | None = None) -> None:
        self.layer = Layer(Offset(disk or Nowhere(), start=4096, size=MIB - 4096))
        (self.driven,) = drive(self.layer)

    async def job(self) -> Job:
        """Return the next job."""
        assert self.driven.mailbox is not None
        while not (jobs := self.driven.mailbox.take()):  # noqa: ASYNC110 - what else would tell
            await asyncio.sleep(0)
        (job,) = jobs
        return job

    def end(self, job: Job, code: int = 0) -> None:
        """Do a job."""
        assert self.driven.mailbox is not None
        assert job.release()
        self.driven.mailbox.complete([(job.tag, code)])


def by_hand(test: Callable[[Hand], Coroutine[object, object, None]]) -> Callable[[], None]:
    """Open and close around *test*, on one loop."""

    async def whole() -> None:
        hand = Hand()
        await run(hand.driven.open)
        await test(hand)
        await run(hand.driven.close)

    def wrapped() -> None:
        uvloop.run(whole())

    wrapped.__doc__ = test.__doc__
    return wrapped


def asked(hand: Hand, view: memoryview) -> Awaitable[None]:
    pending = hand.driven.read(0, [view])
    assert pending is not None
    return pending


@by_hand
async def test_views_cannot_be_released_while_the_core_has_them(hand: Hand) -> None:
    """Who tries gets an error in place of a write into memory that is another's by then."""
    view = memoryview(bytearray(512))
    pending = asked(hand, view)
    job = await hand.job()
    assert (job.op, job.offset, job.length) == (Op.READ, 4096, 512)
    with pytest.raises(BufferError):
        view.release()
    job.views[0][:] = b"x" * 512
    hand.end(job)
    await pending
    assert bytes(view) == b"x" * 512
    view.release()


@by_hand
async def test_an_errno_comes_back(hand: Hand) -> None:
    """It is raised where the request is awaited, and nothing is held on to."""
    view = memoryview(bytearray(512))
    pending = asked(hand, view)
    hand.end(await hand.job(), errno.ENOSPC)
    with pytest.raises(OSError, match="No space") as caught:
        await pending
    assert caught.value.errno == errno.ENOSPC
    view.release()
    with pytest.raises(OSError, match="Input/output"):  # behind the end, by the core itself
        await run(hand.driven.read, MIB - 4096, [memoryview(bytearray(512))])


@by_hand
async def test_a_cancelled_call_ends_with_the_core(hand: Hand) -> None:
    """The disk hears of it; its task is not done before the disk is, whatever that says."""
    view = memoryview(bytearray(512))
    task = asyncio.ensure_future(asked(hand, view))
    job = await hand.job()
    task.cancel()
    told = await hand.job()
    assert (told.op, told.tag) == (Op.CANCEL, job.tag)
    assert not task.done()
    task.cancel()
    with pytest.raises(BufferError):
        view.release()
    hand.end(job)
    with pytest.raises(asyncio.CancelledError):
        await task
    view.release()


@by_hand
async def test_what_waits_for_its_turn(hand: Hand) -> None:
    """It begins in order when there is room; cancelled before, the disk never sees it."""
    view = memoryview(bytearray(512))
    assert hand.driven.mailbox is not None
    pending = [asyncio.ensure_future(asked(hand, view)) for _ in range(SLOTS + 3)]
    pending[SLOTS].cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending[SLOTS]
    done = 0
    while done < SLOTS + 2:
        for job in hand.driven.mailbox.take():
            hand.end(job)
            done += 1
        await asyncio.sleep(0)
    await asyncio.gather(*pending[:SLOTS], *pending[SLOTS + 1 :])


@by_hand
async def test_what_was_given_up_is_told_before_the_core_goes_on(hand: Hand) -> None:
    """A turn behind a revoke first asks whose memory was taken."""
    told: list[str] = []
    hand.driven.on_revoked(lambda: told.append("asked"))
    view = memoryview(bytearray(512))
    pending = asked(hand, view)
    job = await hand.job()
    assert told == []
    hand.driven.revoke()
    hand.end(job)
    await pending
    assert told == ["asked"]


def test_close_waits_for_what_is_under_way() -> None:
    """It is cancelled; then the disk below is closed, and what is asked later fails."""

    async def close() -> None:
        hand = Hand()
        await run(hand.driven.open)
        view = memoryview(bytearray(512))
        task = asyncio.ensure_future(asked(hand, view))
        job = await hand.job()
        closing = asyncio.ensure_future(hand.driven.close())
        assert (await hand.job()).op is Op.CANCEL
        assert not closing.done()
        hand.end(job)
        await closing
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(OSError, match="Input/output"):
            await run(hand.driven.read, 0, [view])

    uvloop.run(close())


def test_nothing_is_asked_for_nothing() -> None:
    """A request of no bytes is over; a disk of the core answers at once, in one piece or many."""

    async def ask() -> None:
        disk = Memory(MIB)
        hand = Hand(disk)
        await run(hand.driven.open)
        assert hand.driven.mailbox is None
        assert hand.driven.read(0, []) is None
        assert hand.driven.read(0, [memoryview(bytearray())]) is None
        words = [bytes([i]) * 512 for i in range(1, 40)]
        for n in (1, 2, 21, 22, 39):
            assert hand.driven.write(512, [memoryview(one) for one in words[:n]]) is None
            got = [bytearray(512) for _ in range(n)]
            assert hand.driven.read(512, [memoryview(one) for one in got]) is None
            assert got == words[:n]
        assert hand.driven.write_zeroes(512, 1024, unmap=True) is None
        assert hand.driven.discard(4096, 512) is None
        assert hand.driven.flush() is None
        with pytest.raises(BufferError):  # of a read: it cannot be written
            hand.driven.read(0, [memoryview(bytes(512))])
        await run(hand.driven.close)

    uvloop.run(ask())


def test_only_what_needs_it_is_driven() -> None:
    """Layers of the core in front, and disks of the core directly below Python, are not."""

    def part(below: object) -> Offset:
        return Offset(below, start=0, size=MIB)

    assert drive(Memory(MIB)) == []
    assert drive(part(part(Memory(MIB)))) == []
    assert drive(Layer(Memory(MIB))) == []
    middle = Layer(part(Layer(Memory(MIB))))
    outer = Layer(middle)
    (one,) = drive(part(outer))
    assert isinstance(one, Driven)
    assert middle.under.disk is one
    assert outer.under.disk is middle
    assert isinstance(one.below, Layer)
