import asyncio
import errno
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
import uvloop
from server_kit.disks import Ram, Slow
from server_kit.engine import FakeMailbox
from server_kit.jobs import job
from server_kit.serving import names

from vhostblk.disk.call import Calls
from vhostblk.engine.api import Op
from vhostblk.server.log import Log, Told
from vhostblk.server.served import LONG_JOBS, LONG_SECONDS, Served

LOG = Log("vhostblk.test", "bench")


class Counting(FakeMailbox):
    """Notes which jobs were told of together."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []

    def complete(self, ended: Sequence[tuple[int, int]]) -> None:
        super().complete(ended)
        self.told.append([tag for tag, _ in ended])


class Timed(Ram):
    """Takes some time of a clock of its own for each request."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.takes: dict[int, float] = {}

    def clock(self) -> float:
        return self.now

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        super().read(offset, views)
        self.now += self.takes.get(offset, 0.0)


@pytest.fixture
def box() -> Iterator[Counting]:
    box = Counting()
    yield box
    box.close()


def serve(disk: object, box: Counting, *, loop: asyncio.AbstractEventLoop | None = None) -> Served:
    """Without a loop: only plain methods."""
    clock = disk.clock if isinstance(disk, Timed) else lambda: 0.0
    loop = cast("asyncio.AbstractEventLoop", loop)
    return Served(box, Calls(disk), loop, log=LOG, told=Told(LOG), keep=lambda _: None, clock=clock)


def test_a_batch_is_told_of_once(box: Counting) -> None:
    """Whatever was taken together ends together, errors among it."""
    served = serve(Timed(), box)
    box.post(job(1, Op.READ), job(2, Op.WRITE), job(3, Op.WRITE, offset=1 << 30), job(4, Op.FLUSH))
    assert not served.work(1.0)
    assert box.told == [[1, 2, 3, 4]]


def test_work_ends_with_its_slice(box: Counting) -> None:
    """When time is up what is done is told of, and the rest waits for the next slice."""
    disk = Timed()
    disk.takes = dict.fromkeys(range(0, 5120, 512), LONG_SECONDS / 2)
    served = serve(disk, box)
    box.post(*(job(i, Op.READ, offset=512 * i) for i in range(10)))
    assert served.work(disk.now + 2 * LONG_SECONDS)
    assert box.told == [[0, 1, 2, 3]]
    assert served.work(disk.now + 2 * LONG_SECONDS)
    assert box.told[1:] == [[4, 5, 6, 7]]
    assert not served.work(disk.now + 2 * LONG_SECONDS)
    assert box.told[2:] == [[8, 9]]


def test_a_slow_disk_is_told_of_one_by_one(box: Counting) -> None:
    """Behind a call that took long none waits for another: some are quick, and the next may not."""
    disk = Timed()
    disk.takes = {512: LONG_SECONDS}
    served = serve(disk, box)
    box.post(*(job(i, Op.READ, offset=512 * i) for i in range(4)))
    assert not served.work(1.0)
    assert box.told == [[0, 1], [2], [3]]
    box.told.clear()
    box.post(*(job(4 + i, Op.FLUSH) for i in range(LONG_JOBS)))
    assert not served.work(1.0)
    assert box.told[-1] == [LONG_JOBS + 3, LONG_JOBS + 2, LONG_JOBS + 1][::-1]
    assert all(len(told) == 1 for told in box.told[:-1])


def test_what_is_given_up_in_time_is_not_begun(box: Counting) -> None:
    """A CANCEL that comes between two slices meets what waits for the next."""
    disk = Timed()
    disk.takes = {0: 1.0}
    served = serve(disk, box)
    box.post(job(1, Op.READ), job(2, Op.WRITE), job(3, Op.WRITE, offset=512))
    assert served.work(0.5)
    box.post(job(2, Op.CANCEL), job(1, Op.CANCEL))
    assert not served.work(2.0)
    assert box.ended == {1: 0, 2: errno.ECANCELED, 3: 0}
    assert disk.calls == [("read", 0), ("write", 512)]


def test_what_has_not_begun_ends_when_it_is_stopped(box: Counting) -> None:
    """None is left with a disk that will not do it."""
    disk = Timed()
    disk.takes = {0: 1.0}
    served = serve(disk, box)
    box.post(job(1, Op.READ), job(2, Op.WRITE), job(3, Op.WRITE))
    assert served.work(0.5)
    served.stop()
    assert box.told == [[1], [2, 3]]
    assert not served.work(9.0)
    assert names(disk.calls) == ["read"]


def test_a_number_that_is_no_errno_is_eio(box: Counting) -> None:
    """An OSError may have anything in the place of one."""

    class Odd(Timed):
        def read(self, offset: int, views: Sequence[memoryview]) -> None:
            raise OSError("seven", "of nine", offset, views and None)

    served = serve(Odd(), box)
    box.post(job(1, Op.READ))
    assert not served.work(1.0)
    assert box.ended == {1: errno.EIO}


def test_async_calls_that_end_together_are_told_of_together(box: Counting) -> None:
    """One round of the loop, one batch."""

    async def together() -> None:
        disk = Slow()
        await disk.open()
        served = serve(disk, box, loop=asyncio.get_running_loop())
        disk.set(free=False)
        await asyncio.sleep(0)
        box.post(*(job(i, Op.READ) for i in range(5)))
        assert not served.work(1.0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert disk.waiting == 5
        disk.set(free=True)
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(box.told[0]) == list(range(5))

    uvloop.run(together())


class Mixed(Slow):
    """Its flush is plain, and meets a request that is given up just then."""

    def __init__(self, box: FakeMailbox) -> None:
        super().__init__()
        self._box = box

    def flush(self) -> None:
        self._box.post(job(1, Op.CANCEL))


@pytest.mark.parametrize("how", ["given up", "stopped"])
def test_a_call_that_has_not_begun_ends_when_it_is(box: Counting, how: str) -> None:
    """A task that is cancelled before its first step never runs: its job must end all the same."""

    async def given_up() -> None:
        disk = Mixed(box)
        await disk.open()
        disk.set(free=False)
        await asyncio.sleep(0)
        served = serve(disk, box, loop=asyncio.get_running_loop())
        box.post(job(1, Op.READ), *([job(2, Op.FLUSH)] if how == "given up" else []))
        assert not served.work(1.0)
        if how == "stopped":
            served.stop()
        for _ in range(5):
            await asyncio.sleep(0)
        assert box.ended[1] == errno.ECANCELED
        assert disk.cancelled == 1

    uvloop.run(given_up())


def test_an_error_that_is_its_own_cause_ends_its_request(box: Counting) -> None:
    """A chain of errors may be a circle."""

    class Circular(Timed):
        def read(self, offset: int, views: Sequence[memoryview]) -> None:
            error = OSError(errno.ENOSPC, f"{len(views)} at {offset}")
            raise error from error

    served = serve(Circular(), box)
    box.post(job(1, Op.READ))
    assert not served.work(1.0)
    assert box.ended == {1: errno.ENOSPC}
