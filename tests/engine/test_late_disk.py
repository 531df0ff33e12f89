"""What a disk may still do to a queue that did not wait for it, whichever engine serves it."""

import errno

import pytest
from engine.driver import PENDING, Lane
from engine.harness import Rig

from vhostblk.engine.api import Fault, Job
from vhostblk.engine.reason import Reason
from vhostblk.spec.virtio_blk import Status


def under_way(rig: Rig, lane: Lane) -> list[Job]:
    """Return the jobs that the disk was given just now."""
    rig.step()
    return rig.take(lane)


def test_a_kept_view_breaks_the_queue_when_it_runs(rig: Rig) -> None:
    """While the ring is the control plane's nothing of it changes, the err eventfd neither."""
    lane = rig.lane()
    lane.read(4)
    (job,) = under_way(rig, lane)
    rig.park(lane)
    lane.mailbox.break_queue(job.tag)
    rig.step()
    assert lane.queue.fault() is None
    assert lane.rings(lane.err) == 0
    rig.call(lane.queue.run)
    rig.step()
    assert lane.queue.fault() == Fault(Reason.DISK_KEPT_VIEW.text, 0, 4 * 512)
    assert lane.rings(lane.err) == 1


def test_the_first_kept_view_is_told(rig: Rig) -> None:
    """Of several requests whose memory a disk kept the one that came back first is named."""
    lane = rig.lane()
    lane.read(8)
    told = lane.read(16)
    first, second = under_way(rig, lane)
    lane.mailbox.break_queue(second.tag)
    lane.mailbox.break_queue(first.tag)
    rig.step()
    assert lane.queue.fault() == Fault(Reason.DISK_KEPT_VIEW.text, told.head, 16 * 512)


def test_a_request_whose_memory_was_kept_never_comes_back(rig: Rig) -> None:
    """Given back, its memory would be used again; what ended with it is given back."""
    lane = rig.lane()
    kept, other = lane.read(), lane.read()
    first, second = under_way(rig, lane)
    lane.mailbox.break_queue(first.tag)
    rig.finish(lane, second)
    rig.step()
    assert (kept.used, kept.status) == (None, PENDING)
    assert (other.used, other.status) == (513, Status.OK)
    assert lane.queue.counters().in_flight == 0


def test_dead_requests_leave_room_for_new_ones(rig: Rig) -> None:
    """A ring that was cancelled many times over is served as if it had not been."""
    lane = rig.lane(size=4)
    dead = []
    for _ in range(8):
        lane.read()
        dead += under_way(rig, lane)
        rig.drain(lane, seconds=0)
        rig.take(lane)
        rig.call(lane.queue.run)
    assert lane.queue.counters().dead == 8
    asked = lane.read()
    rig.pump()
    assert asked.status == Status.OK
    for job in dead:
        lane.mailbox.complete([(job.tag, errno.EIO)])
    rig.step()
    assert lane.queue.counters().dead == 0


def test_held_writes_go_to_the_disk_in_their_order(rig: Rig) -> None:
    """What waited for a dead write goes on as it came."""
    lane = rig.lane()
    lane.write(0, bytes(4096))
    (dead,) = under_way(rig, lane)
    rig.drain(lane, seconds=0)
    rig.take(lane)
    rig.call(lane.queue.run)
    for sector in (3, 1, 2):
        lane.write(sector)
    assert under_way(rig, lane) == []
    rig.finish(lane, dead)
    rig.step()
    assert [job.offset // 512 for job in rig.take(lane)] == [3, 1, 2]
    assert lane.queue.counters().in_flight == 3
    rig.drain(lane, seconds=0)
    rig.serve()


@pytest.mark.parametrize("error", [0, errno.EIO])
def test_a_parked_queue_counts_what_is_under_way(rig: Rig, error: int) -> None:
    """What the disk returns is counted at once, though it is pushed later."""
    lane = rig.lane()
    asked = lane.read()
    (job,) = under_way(rig, lane)
    rig.park(lane)
    assert lane.queue.counters().in_flight == 1
    lane.mailbox.complete([(job.tag, error)])
    rig.step()
    assert lane.queue.counters().in_flight == 0
    assert asked.used is None
