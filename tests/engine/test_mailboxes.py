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
            lane.mailbox.complete(tag, 0)


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


def readable(fd: int) -> bool:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    os.eventfd_write(fd, 1)
    return True
