"""A disk that fails, through the API: told of, or held until `Queue.resume`."""

from collections.abc import Iterator
from errno import EIO, ENOSPC

import pytest
from engine.driver import Lane
from engine.harness import Rig

from vhostblk.engine.api import Busy, OnError, Op, Stall

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.engine.native import NativeEngine

OUT = b"w" * 512


class Told:
    """What a queue tells of its errors."""

    def __init__(self) -> None:
        self.stalled: list[Stall] = []
        self.failed: list[Stall] = []


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(lambda: NativeEngine(threaded=False))
    yield made
    made.close()


@pytest.fixture
def told() -> Told:
    return Told()


def lane_with(rig: Rig, told: Told, policy: OnError) -> Lane:
    """Return a running queue of a policy."""
    lane = rig.lane()
    rig.set(
        lane,
        lambda queue: queue.set_on_error(
            policy, on_stalled=told.stalled.append, on_failed=told.failed.append
        ),
    )
    return lane


def test_reported_errors_are_told_of(rig: Rig, told: Told) -> None:
    """With number, place and length of the request; the driver has its IOERR."""
    lane = lane_with(rig, told, OnError.REPORT)
    rig.fail = lambda _: EIO
    asked = lane.write(8, OUT)
    rig.pump()
    assert asked.status == 1
    assert told.failed == [Stall(op=Op.WRITE, offset=4096, length=512, errno=EIO)]
    assert told.stalled == []
    assert lane.queue.stall() is None


@pytest.mark.parametrize("policy", [OnError.STOP, OnError.ENOSPC])
def test_held_request_is_done_in_the_end(rig: Rig, told: Told, policy: OnError) -> None:
    """Nothing is given back or taken before the resume; then the bytes are on the disk."""
    lane = lane_with(rig, told, policy)
    rig.fail = lambda _: ENOSPC
    first = lane.write(8, OUT)
    rig.pump()
    why = Stall(op=Op.WRITE, offset=4096, length=512, errno=ENOSPC)
    assert told.stalled == [why]
    assert lane.queue.stall() == why
    rig.fail = lambda _: 0
    second = lane.read(8)
    rig.pump()
    assert (first.used, second.used) == (None, None)
    assert lane.queue.counters().stalls == 1
    assert lane.queue.counters().in_flight == 1

    rig.call(lane.queue.resume)
    rig.pump()
    assert (first.status, second.status) == (0, 0)
    assert bytes(rig.disk[4096:4608]) == second.data == OUT
    assert lane.queue.stall() is None
    assert told.failed == []


def test_enospc_lets_other_errors_through(rig: Rig, told: Told) -> None:
    """Only want of space is something to wait for."""
    lane = lane_with(rig, told, OnError.ENOSPC)
    rig.fail = lambda _: EIO
    asked = lane.write()
    rig.pump()
    assert asked.status == 1
    assert told.stalled == []
    assert [one.errno for one in told.failed] == [EIO]


def test_drain_gives_up_at_its_deadline(rig: Rig, told: Told) -> None:
    """The driver is told then, and no request is dead: the disk has none."""
    lane = lane_with(rig, told, OnError.STOP)
    rig.fail = lambda _: EIO
    asked = lane.write()
    rig.pump()
    assert rig.drain(lane, seconds=0.01) == 0
    assert asked.status == 1
    assert lane.queue.stall() is None


def test_policy_needs_the_ring(rig: Rig, told: Told) -> None:
    """A setting like any other; a resume may come at any time, even after the end."""
    lane = rig.lane()
    with pytest.raises(Busy):
        rig.call(lambda: lane.queue.set_on_error(OnError.STOP, on_stalled=told.stalled.append))
    rig.call(lane.queue.resume)
    rig.wait(lane.queue.close())
    rig.call(lane.queue.resume)
    assert lane.queue.stall() is None
