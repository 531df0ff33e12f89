"""How long requests took, and what is under way, on either engine."""

import time

from engine.harness import Rig

from vhostblk.engine.api import Op


def test_requests_are_counted_by_kind(rig: Rig) -> None:
    """Also when the queue is closed."""
    lane = rig.lane()
    for _ in range(3):
        lane.read()
    lane.write()
    rig.pump()
    for _ in range(2):
        took = lane.queue.latency()
        assert {op: one.count for op, one in took.items() if one.count} == {Op.READ: 3, Op.WRITE: 1}
        assert 0 < took[Op.READ].max_ns <= took[Op.READ].sum_ns
        rig.wait(lane.queue.close())
    rig.lanes.clear()


def test_slow_requests_are_listed(rig: Rig) -> None:
    """However many, by what they are and since when; none that is younger or done."""
    lane = rig.lane(size=256)
    before = time.monotonic_ns()
    for sector in range(80):
        lane.read(sector)
    rig.step()
    slow = sorted(lane.queue.slow(0), key=lambda one: one.offset)
    assert [(one.op, one.offset, one.length) for one in slow] == [
        (Op.READ, 512 * sector, 512) for sector in range(80)
    ]
    assert len({(one.tag, one.since_ns) for one in slow}) == 80
    assert all(before <= one.since_ns <= time.monotonic_ns() for one in slow)
    assert lane.queue.slow(60) == []
    rig.pump()
    assert lane.queue.slow(0) == []


def test_busy_is_told_once(rig: Rig) -> None:
    """Of the next request; until it is asked again nobody is woken."""
    lane = rig.lane()
    told: list[str] = []
    rig.call(lambda: lane.queue.watch_busy(lambda: told.append("busy")))
    rig.pump()
    assert told == []
    for _ in range(3):
        lane.read()
        rig.pump()
    assert told == ["busy"]
    rig.call(lambda: lane.queue.watch_busy(None))
    lane.read()
    rig.pump()
    assert told == ["busy"]
