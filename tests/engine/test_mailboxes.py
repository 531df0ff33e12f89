"""Where a queue leaves its jobs, whichever engine serves it."""

import os

import pytest
from engine.harness import Rig


def test_a_mailbox_ends_each_job_once(rig: Rig) -> None:
    """A tag that is unknown, or was ended before, is our pump's bug and says so."""
    lane = rig.lane()
    lane.read()
    rig.step()
    (job,) = rig.take(lane)
    rig.finish(lane, job)
    for tag in (job.tag, job.tag + 1000):
        with pytest.raises((ValueError, OSError)):
            lane.mailbox.complete([(tag, 0)])


def test_a_mailbox_says_when_jobs_wait(rig: Rig) -> None:
    """Its descriptor is readable while there are any, and not after a look that found none."""
    lane = rig.lane()
    lane.mailbox.take()
    assert not readable(lane.mailbox.fileno())
    lane.read()
    rig.step()
    assert readable(lane.mailbox.fileno())
    (job,) = rig.take(lane)
    assert lane.mailbox.take() == []
    assert not readable(lane.mailbox.fileno())
    rig.finish(lane, job)


def test_a_batch_wakes_each_side_once(rig: Rig) -> None:
    """Requests that are there together ring once; ends that are told together call once."""
    lane = rig.lane()
    for _ in range(3):
        lane.mailbox.take()
        for _ in range(4):
            lane.read()
        rig.step()
        assert os.eventfd_read(lane.mailbox.fileno()) == 1
        jobs = rig.take(lane)
        assert len(jobs) == 4
        assert all(job.release() for job in jobs)
        lane.mailbox.complete([(job.tag, 0) for job in jobs])
        rig.step()
        assert lane.rings(lane.call) == 1


def test_what_is_given_up_before_it_is_taken_is_not_shown(rig: Rig) -> None:
    """It was never the disk's, so nothing of it is left."""
    lane = rig.lane()
    lane.read()
    rig.step()
    rig.wait(lane.queue.drained(seconds=0))
    assert lane.queue.counters().dead == 1
    assert lane.mailbox.take() == []
    rig.step()
    assert lane.queue.counters().dead == 0


def readable(fd: int) -> bool:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    os.eventfd_write(fd, 1)
    return True
