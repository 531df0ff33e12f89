"""Asking for a ring back, at the worst moments, whichever engine serves it."""

import gc
import os
import time

import pytest
from engine.harness import Rig

from vhostblk.spec.virtio_blk import Status


def open_fds() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths


def test_a_drain_may_end_at_its_deadline(rig: Rig) -> None:
    """An answer and the deadline in the same turn of the loop: the answer counts."""
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    (job,) = rig.take(lane)
    drain = rig.start(lane.queue.drained(seconds=0.005))
    rig.finish(lane, job)
    for _ in range(4):
        rig.engine.step()  # the loop does not turn: both wait for it
    time.sleep(0.01)
    assert rig.wait(drain) == 0
    assert asked.status == Status.OK


def test_everybody_who_asks_is_answered(rig: Rig) -> None:
    """Two who park, and one who drains behind them, all get the ring."""
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    (job,) = rig.take(lane)
    parks = [rig.start(lane.queue.parked()) for _ in range(2)]
    drain = rig.start(lane.queue.drained(seconds=60))
    late = rig.start(lane.queue.parked())
    rig.step()
    assert not drain.done()
    rig.finish(lane, job)
    for task in (*parks, drain, late):
        rig.wait(task)
    assert asked.used == 513


def test_who_gave_up_asking_is_no_obstacle(rig: Rig) -> None:
    """A park that was cancelled is a park all the same; the next one finds it."""
    lane = rig.lane()
    asked = lane.read()
    park = rig.start(lane.queue.parked())
    park.cancel()
    rig.wait(lane.queue.parked())
    rig.call(lane.queue.run)
    rig.pump()
    rig.wait(lane.queue.parked())
    assert asked.used == 513


def test_a_parked_queue_is_drained_when_it_closes(rig: Rig) -> None:
    """What is with the disk when a parked queue closes is dead, not forgotten."""
    lane = rig.lane()
    asked = lane.write()
    rig.step()
    (job,) = rig.take(lane)
    rig.park(lane)
    close = rig.start(lane.queue.close())
    for _ in range(1000):
        if close.done():
            break
        rig.turn()
        time.sleep(0.001)
    assert close.done()
    assert rig.device.dead() == 1
    assert asked.status == Status.IOERR
    rig.take(lane)
    rig.finish(lane, job)
    rig.step()
    assert rig.device.dead() == 0


def test_replaced_descriptors_do_not_pile_up(rig: Rig) -> None:
    """A front-end may send a new eventfd as often as it likes, to a ring that never starts."""
    lane = rig.lane(run=False)
    before = open_fds()
    for setter in (lane.queue.set_kick, lane.queue.set_call, lane.queue.set_err):
        for _ in range(10):
            rig.call(lambda setter=setter: setter(os.eventfd(0, os.EFD_NONBLOCK)))  # type: ignore[misc]
    assert open_fds() == before


def test_a_mailbox_outlives_its_queue(rig: Rig) -> None:
    """The disk's thread may look into its mailbox after the queue is gone; nothing is there."""
    lane = rig.lane()
    lane.write()
    rig.step()
    (job,) = rig.take(lane)
    box, before = lane.mailbox, open_fds()
    rig.wait(lane.queue.drained(seconds=0))
    rig.wait(lane.queue.close())
    rig.finish(lane, job)
    rig.step()
    assert rig.device.dead() == 0
    assert box.take() == []
    with pytest.raises(ValueError, match="no job"):
        box.complete([(job.tag, 0)])
    assert os.fstat(box.fileno())
    rig.lanes.remove(lane)
    del lane, box
    gc.collect()
    assert open_fds() < before
