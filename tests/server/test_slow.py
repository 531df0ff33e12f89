"""Requests that take long have a line, and an idle device wakes nobody."""

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import ParamSpec

import pytest
from server_kit.disks import Slow as SlowDisk
from server_kit.engine import FakeQueue
from server_kit.serving import Serving, serving, until

from vhostblk.engine.api import Counters, Op, Slow, Stall
from vhostblk.errors import VhostBlkError
from vhostblk.guest.blk import Request
from vhostblk.guest.guest import Guest
from vhostblk.server.latency import latency_status
from vhostblk.server.log import Log, Told
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.slow import SlowWatch
from vhostblk.server.status import status

Connect = Callable[..., Guest]
P = ParamSpec("P")
SECONDS = 0.002


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


class Bench:
    """A watch over two queues, on the loop of a test."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.now = 0.0
        self.watch = SlowWatch(seconds, Log("vhostblk.test", "vm0"), lambda: self.now)
        self.queues = [FakeQueue(index, lambda: None, None) for index in range(2)]
        for index, queue in enumerate(self.queues):
            self.watch.watch(index, queue)

    def begin(self, n: int = 1) -> FakeQueue:
        """Let slow requests be under way on the first queue; it tells that it is busy."""
        queue = self.queues[0]
        queue.under_way = [
            Slow(op=Op.READ, offset=512 * i, length=512, age=11.0, tag=i, since_ns=7)
            for i in range(n)
        ]
        queue.done = Counters(in_flight=n)
        busy, queue.on_busy = queue.on_busy, None
        if busy is not None:
            busy()
        return queue

    def end(self) -> None:
        """Let all of them be over."""
        self.queues[0].under_way = []
        self.queues[0].done = Counters()

    async def looks(self, times: int = 3) -> None:
        """Let it look so often, at least."""
        for _ in range(times):
            await asyncio.sleep(SECONDS)


def looped(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Have a test run on a loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def timers() -> int:
    """Return how many timers the loop of a test has."""
    return len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]


# ---- by hand ----------------------------------------------------------------------------


@looped
async def test_each_has_a_line_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at meanwhile."""
    bench = Bench()
    bench.begin()
    await bench.looks(5)
    assert caplog.text.count("queue 0: READ of 512 bytes at 0 is not done after 11.0 s") == 1
    bench.end()
    await bench.looks()
    assert caplog.text.count("queue 0: READ of 512 bytes at 0 is over, after about 11 s") == 1
    assert caplog.text.count("queue") == 2


@looped
async def test_slot_that_is_used_again_is_another_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same tag, taken at another time: the first is over, the second has its own line."""
    bench = Bench()
    queue = bench.begin()
    await bench.looks()
    queue.under_way = [Slow(op=Op.FLUSH, offset=0, length=0, age=10.0, tag=0, since_ns=8)]
    await bench.looks()
    assert "READ of 512 bytes at 0 is over" in caplog.text
    assert "FLUSH of 0 bytes at 0 is not done" in caplog.text
    bench.end()
    await bench.looks()


@looped
async def test_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A storage that hangs has a ringful of slow requests, and not as many lines."""
    bench = Bench()
    bench.begin(5 * Told.BURST)
    await bench.looks(5)
    assert caplog.text.count("is not done") == Told.BURST
    bench.end()
    await bench.looks()
    assert caplog.text.count("is over") == Told.BURST


@looped
async def test_stalled_queue_has_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """What is held for an operator is not told of twice."""
    bench = Bench()
    bench.queues[0].stalled = Stall(op=Op.READ, offset=0, length=512, errno=errno.EIO)
    bench.begin()
    await bench.looks()
    assert "is not done" not in caplog.text
    bench.end()
    await bench.looks()


@looped
async def test_idle_device_has_no_timer() -> None:
    """It begins with the first request, and ends soon after the last; the next is told again."""
    bench = Bench()
    none = timers()
    for _ in range(2):
        await bench.looks()
        assert timers() == none
        bench.begin()
        assert timers() == none + 1
        bench.end()
        await bench.looks(20)
        assert timers() == none
        assert all(queue.on_busy is not None for queue in bench.queues)


@looped
async def test_dropped_queue_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a request that never ends in the log, nor a timer."""
    bench = Bench()
    none = timers()
    queue = bench.begin()
    await bench.looks()
    for one in bench.queues:
        bench.watch.forget(one)
    assert caplog.text.count("is over") == 1
    await asyncio.sleep(0)
    assert timers() == none
    assert queue.on_busy is None


@looped
async def test_nobody_looks_when_it_is_off() -> None:
    """0 asks for nothing; less makes no sense."""
    bench = Bench(0)
    assert [queue.on_busy for queue in bench.queues] == [None, None]
    with pytest.raises(VhostBlkError, match="slow_request"):
        DeviceOptions(slow_request=-1)


# ---- with a guest -----------------------------------------------------------------------


def test_slow_disk_is_told_of(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One line while it takes its time, one when it is done; and the status knows how long."""
    disk = SlowDisk()
    guest = vhost_user_guest(server.add(disk, slow_request=0.02))
    guest.read(0, 512)
    assert "is not done" not in caplog.text
    disk.set(free=False)
    ticket = guest.submit(Request.read(8, 1024))
    assert until(lambda: "queue 0: READ of 1024 bytes at 4096 is not done after" in caplog.text)
    disk.set(free=True)
    guest.wait(ticket)
    assert until(lambda: "queue 0: READ of 1024 bytes at 4096 is over" in caplog.text)
    took = server.ask(lambda: status(server.devices[0])["queues"][0]["latency"])
    assert took["read"]["count"] == 2
    assert took["read"]["max_us"] >= 20_000
    assert took["read"]["p50_us"] <= took["read"]["p99_us"] <= took["read"]["max_us"]
    assert "write" not in took


def test_status_of_nothing_is_empty() -> None:
    """Kinds of which there was none are left out."""
    assert latency_status({}) == {}
