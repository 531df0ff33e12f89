"""Which worker serves a queue."""

import asyncio
import ctypes
import os
from collections.abc import Iterator

import pytest
from engine.driver import GPA, MEMORY, Lane
from engine.harness import Rig

from vhostblk.disk.null import Null
from vhostblk.engine.reference.engine import ReferenceEngine
from vhostblk.memory.dirty import DirtyLog, LogRegion, marked

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.engine.native.engine import NativeEngine
from vhostblk.engine.poll import Poll


def test_queues_of_all_devices_share_all_workers() -> None:
    """Many devices of one queue each are spread as one device of many queues is."""

    async def loads(*devices: int) -> list[int]:
        engine = NativeEngine(3, threaded=False)
        shares = [engine.device(Null(1 << 20)) for _ in devices]
        queues = [
            share.queue(index, on_broken=lambda: None)
            for share, count in zip(shares, devices, strict=True)
            for index in range(count)
        ]
        return [len(worker.queues) for worker in engine._workers] if queues else []

    for devices in ((1,) * 6, (6,), (2, 2, 2)):
        assert asyncio.run(loads(*devices)) == [2, 2, 2]
    assert asyncio.run(loads(1)) == [1], "none is made that nobody needs"


@pytest.mark.parametrize(("text", "window"), [("7us", 7), ("0", 0), ("always", None)])
def test_every_worker_polls_as_it_is_told(text: str, window: int | None) -> None:
    """What was asked is the window each begins with; of one without an end there is no number."""

    async def windows() -> list[int | None]:
        engine = NativeEngine(2, poll=Poll.parse(text), threaded=False)
        queues = [engine.device(Null(1 << 20)).queue(0, on_broken=lambda: None) for _ in range(2)]
        return [one.counters.window_us for one in engine.workers()] if queues else []

    assert asyncio.run(windows()) == [window, window]


def test_each_runs_on_its_cpu() -> None:
    """In the order of the list; the thread that made them runs where it did."""
    here = sorted(os.sched_getaffinity(0))
    cpus = here[::-1][:2]

    async def places() -> list[tuple[int | None, set[int]]]:
        engine = NativeEngine(cpus=cpus)
        device = engine.device(Null(1 << 20))
        queues = [device.queue(index, on_broken=lambda: None) for index in range(3)]
        assert sum(one.queue_count for one in engine.workers()) == 3
        for queue in queues:  # a thread that drains is past its beginning
            await queue.drained(seconds=5)
        threads = [(one.cpu, one.thread) for one in engine.workers()]
        found = [(cpu, os.sched_getaffinity(thread or 0)) for cpu, thread in threads]
        for queue in queues:
            await queue.close()
        await device.close()
        await engine.close()
        return found

    assert asyncio.run(places()) == [(cpu, {cpu}) for cpu in cpus]
    assert sorted(os.sched_getaffinity(0)) == here


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Return an engine of three workers that are stepped."""
    made = Rig(lambda: NativeEngine(3, threaded=False))
    yield made
    made.close()


def move(rig: Rig, lane: Lane, worker: int | None) -> int:
    """Move a running queue."""
    rig.drain(lane, seconds=1)
    number = rig.wait(rig.engine.move(lane.queue, worker))
    rig.call(lane.queue.run)
    return number


def test_dirty_log_comes_along(rig: Rig) -> None:
    """What is written behind a move is marked as what was written before."""
    bits = (ctypes.c_ubyte * 4096)()
    lane = rig.lane()
    region = LogRegion(rig.memory.host, MEMORY, GPA)
    log = DirtyLog(address=ctypes.addressof(bits), length=4096, regions=(region,))
    rig.set(lane, lambda queue: queue.set_log(log))
    for worker in (1, 2, 0):
        assert move(rig, lane, worker) == lane.queue.worker == worker
        asked = lane.read()
        rig.pump()
        assert marked(bytes(bits)) == log.pages([(asked.data_at, 512), (asked.status_at, 1)])
        ctypes.memset(bits, 0, 4096)


def test_queue_of_another_engine_is_none(rig: Rig) -> None:
    """It is a bug of ours."""
    other = ReferenceEngine(threaded=False)
    queue = rig.call(lambda: other.device(Null(1 << 20)).queue(0, on_broken=lambda: None))
    with pytest.raises(TypeError, match="of another engine"):
        rig.wait(rig.engine.move(queue, 1))
