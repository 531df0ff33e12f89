"""A disk that fails, on either engine: told of, or held until `Queue.resume`."""

import struct
from errno import EFAULT, EIO, ENOSPC

import pytest
from engine.driver import Lane
from engine.harness import Rig

from vhostblk.engine.api import Busy, OnError, Op, Stall
from vhostblk.spec.virtio_blk import RequestType

OUT = b"w" * 512


class Told:
    """What a queue tells of its errors."""

    def __init__(self) -> None:
        self.stalled: list[Stall] = []
        self.failed: list[Stall] = []


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
    assert rig.drain(lane, seconds=0) == 0
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


def test_what_fails_behind_the_first_is_held_too(rig: Rig, told: Told) -> None:
    """All of it is tried again in the order in which it failed; the stall is told of once."""
    lane = lane_with(rig, told, OnError.STOP)
    asked = [lane.write(8 * i, OUT) for i in range(3)]
    rig.step()
    jobs = rig.take(lane)
    rig.fail = lambda _: EIO
    for n in (2, 0, 1):
        rig.finish(lane, jobs[n])
        rig.step()
    assert [one.offset for one in told.stalled] == [2 * 4096]
    rig.fail = lambda _: 0
    rig.call(lane.queue.resume)
    rig.step()
    again = rig.take(lane)
    assert [job.offset for job in again] == [2 * 4096, 0, 4096]
    for job in again:
        rig.finish(lane, job)
    rig.step()
    assert [one.status for one in asked] == [0, 0, 0]


def test_a_range_that_failed_is_tried_again_alone(rig: Rig, told: Told) -> None:
    """What was discarded before it is not discarded twice."""
    lane = lane_with(rig, told, OnError.STOP)
    ranges = struct.pack("<QIIQII", 8, 8, 0, 100, 4, 0)
    rig.fail = lambda job: EIO if job.offset == 51200 else 0
    asked = lane.ask(RequestType.DISCARD, out=ranges)
    rig.pump()
    assert told.stalled == [Stall(op=Op.DISCARD, offset=51200, length=2048, errno=EIO)]
    rig.fail = lambda _: 0
    rig.jobs.clear()
    rig.call(lane.queue.resume)
    rig.pump()
    assert [job.offset for job in rig.jobs] == [51200]
    assert asked.status == 0


def test_a_broken_ring_holds_nothing(rig: Rig, told: Told) -> None:
    """Nobody can resume it; what was held ends, and a drain does not wait."""
    lane = lane_with(rig, told, OnError.STOP)
    first, second = lane.write(), lane.read(8)
    rig.step()
    jobs = rig.take(lane)
    rig.fail = lambda _: EIO
    rig.finish(lane, jobs[0])
    rig.step()
    assert lane.queue.stall() is not None
    rig.fail = lambda _: 0
    lane.mailbox.break_queue(jobs[1].tag)
    rig.step()
    assert lane.queue.fault() is not None
    assert rig.drain(lane) == 0
    assert (first.used, second.used) == (None, None)
    assert lane.queue.stall() is None
    assert lane.queue.counters().in_flight == 0


def test_lost_memory_is_not_held(rig: Rig, told: Told) -> None:
    """An address that has nothing behind it will not have anything later."""
    lane = lane_with(rig, told, OnError.STOP)
    rig.fail = lambda _: EFAULT
    asked = lane.read()
    rig.pump()
    assert asked.status == 1
    assert told.stalled == []


@pytest.mark.parametrize("number", [4096, 1 << 20, -EIO])
def test_number_that_is_no_errno_is_eio(rig: Rig, told: Told, number: int) -> None:
    """Whatever a disk makes up: it is held like any other error, and told of as one."""
    lane = lane_with(rig, told, OnError.STOP)
    rig.fail = lambda _: number
    asked = lane.write(8, OUT)
    rig.pump()
    assert asked.used is None
    assert lane.queue.stall() == Stall(op=Op.WRITE, offset=4096, length=512, errno=EIO)
    rig.fail = lambda _: 0
    rig.call(lane.queue.resume)
    rig.pump()
    assert asked.status == 0
