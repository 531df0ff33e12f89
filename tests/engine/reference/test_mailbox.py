import os
import select

import pytest

from vhostblk.engine.api import Job, Op
from vhostblk.engine.reference.mailbox import Bell, JobBox, Result


def job(tag: int, op: Op = Op.READ) -> Job:
    return Job(tag, op, 0, 0, ())


def rung(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_bell_is_closed_when_nobody_holds_it() -> None:
    """Its descriptor lives as long as whoever might still poll it."""
    bell = Bell()
    fd = bell.fileno()
    bell.ring()
    assert rung(fd)
    bell.clear()
    bell.clear()
    assert not rung(fd)
    del bell
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_jobs_go_round() -> None:
    """Jobs are taken in order, results come back in order, and each side is woken."""
    woken: list[int] = []
    box = JobBox(lambda: woken.append(1))
    box.post(job(1))
    box.post(job(2))
    assert rung(box.fileno())
    assert [taken.tag for taken in box.take()] == [1, 2]
    assert not rung(box.fileno())
    box.complete([(2, 5)])
    box.complete([(1, 0)])
    assert len(woken) == 2
    assert box.reap() == [Result(2, 5), Result(1, 0)]
    assert box.reap() == []


def test_a_job_that_was_not_taken_cannot_be_ended() -> None:
    """A tag nobody was given names no job."""
    box = JobBox(lambda: None)
    box.post(job(1))
    with pytest.raises(ValueError, match="tag 1"):
        box.complete([(1, 0)])
    assert box.reap() == []


def test_cancel_reaches_only_who_has_the_job() -> None:
    """A CANCEL that crosses the job's end is not delivered."""
    box = JobBox(lambda: None)
    box.post(job(1))
    box.post(job(2))
    box.take()
    box.complete([(1, 0)])
    box.post(job(1, Op.CANCEL))
    box.post(job(2, Op.CANCEL))
    assert [(taken.tag, taken.op) for taken in box.take()] == [(2, Op.CANCEL)]


def test_break_queue_ends_the_job_too() -> None:
    """A job whose views were kept failed, and says why."""
    box = JobBox(lambda: None)
    box.post(job(1))
    box.take()
    box.break_queue(1)
    assert box.reap() == [Result(1, 1, kept=True)]
    with pytest.raises(ValueError, match="tag 1"):
        box.complete([(1, 0)])
