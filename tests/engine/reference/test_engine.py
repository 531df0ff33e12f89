"""The reference engine with its thread: what only real waiting can show."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from engine.harness import Rig

from vhostblk.engine.reference.engine import ReferenceEngine
from vhostblk.engine.reference.ownership import Ask
from vhostblk.engine.reference.queue import ReferenceQueue
from vhostblk.engine.reference.service import Service
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_EVENT_IDX


class ThreadedEngine(ReferenceEngine):
    """With its thread; a step only lets it come to word."""

    def step(self) -> int:
        threading.Event().wait(0.0005)
        return 0


@pytest.fixture
def threaded() -> Iterator[Rig]:
    made = Rig(ThreadedEngine)
    yield made
    made.close()


def until(rig: Rig, done: Callable[[], bool]) -> None:
    for _ in range(2000):
        if done():
            return
        rig.serve()
        rig.turn()
    raise AssertionError("never")


def test_kicks_wake_the_worker(threaded: Rig) -> None:
    """Requests are served with nobody stepping, each after its own kick."""
    lane = threaded.lane()
    for _ in range(20):
        asked = lane.read()
        until(threaded, lambda asked=asked: asked.used == 513)  # type: ignore[misc]
    assert lane.queue.counters().kicks >= 1
    # One more where the ring of a new call fd came only after the rig had looked for it.
    assert lane.rings(lane.call) in {20, 21}


def test_polled_rings_need_no_kick(threaded: Rig) -> None:
    """Without a kick fd the worker looks by itself."""
    lane = threaded.lane(run=False)
    lane.queue.set_kick(None)
    threaded.call(lane.queue.run)
    asked = lane.read()
    until(threaded, lambda: asked.status == Status.OK)


def test_drain_and_run_while_requests_flow(threaded: Rig) -> None:
    """Handing the ring to and fro loses nothing."""
    lane = threaded.lane()
    for i in range(10):
        asked = lane.ask(RequestType.GET_ID, room=20)
        if i % 2:
            threaded.park(lane)
        else:
            threaded.drain(lane)
        threaded.call(lane.queue.run)
        until(threaded, lambda asked=asked: asked.status == Status.OK)  # type: ignore[misc]
    assert len(lane.used()) == 10


def test_a_kick_fd_that_hangs_up_harms_nobody(threaded: Rig) -> None:
    """A front-end may hand us anything as an eventfd; other queues go on."""
    bad, good = threaded.lane(), threaded.lane()
    reader, writer = os.pipe()
    threaded.set(bad, lambda queue: queue.set_kick(reader))
    os.close(writer)
    asked = good.read()
    until(threaded, lambda: asked.status == Status.OK)


def test_close_ends_the_thread() -> None:
    """No thread is left behind."""
    before = threading.active_count()

    async def use() -> None:
        engine = ReferenceEngine()
        device = engine.device(None)  # type: ignore[arg-type]
        queue = device.queue(0, on_broken=lambda: None)
        assert threading.active_count() == before + 1
        await queue.close()
        await device.close()
        await engine.close()

    asyncio.run(use())
    assert threading.active_count() == before


def test_event_idx_is_not_offered() -> None:
    """Without a full fence a notification could be lost for good."""
    assert not ReferenceEngine(threaded=False).ring_features & F_EVENT_IDX


def test_guard_promises_nothing() -> None:
    """A SIGBUS cannot be survived in Python; asking for it is no error."""
    ReferenceEngine(threaded=False).guard(0x1000, 4096, 4096)()


def test_an_error_of_ours_costs_one_queue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own bug gives up the queue that met it, with a traceback; the rest goes on."""
    rig = Rig(lambda: ReferenceEngine(threaded=False))
    bad, good = rig.lane(), rig.lane()
    assert isinstance(bad.queue, ReferenceQueue)
    broken, real = bad.queue._service, Service.serve

    def serve(self: Service, ask: Ask) -> int:
        if self is broken and self.fault is None:
            raise ZeroDivisionError
        return real(self, ask)

    monkeypatch.setattr(Service, "serve", serve)
    bad.read()
    asked = good.read()
    rig.pump()
    assert asked.status == Status.OK
    assert bad.queue.fault() is not None
    assert "ZeroDivisionError" in caplog.text
    rig.close()
