"""Chains that are given back in the order they were made available, whichever engine serves."""

import pytest
from engine.driver import SKIPPED, Asked, Lane
from engine.harness import FEATURES, Rig

from vhostblk.engine.api import Job
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_IN_ORDER


@pytest.fixture
def lane(rig: Rig) -> Lane:
    """Return a running queue of a driver that relies on the order."""
    return rig.lane(features=FEATURES | F_IN_ORDER)


def under_way(rig: Rig, asked: list[Asked]) -> list[Job]:
    """Return the jobs of *asked*, in their order."""
    rig.step()
    jobs = rig.take(asked[0].lane)
    assert len(jobs) == len(asked)
    return jobs


def test_who_ends_early_waits(rig: Rig, lane: Lane) -> None:
    """
    Whatever the disk does, chains come back as they were made available.

    Spec: virtio 1.3, 2.7.9, 2.8.9.
    """
    asked = [lane.read(8 * i) for i in range(3)]
    jobs = under_way(rig, asked)
    for n in (2, 1):
        rig.finish(lane, jobs[n])
        rig.step()
    assert lane.used() == []
    assert (asked[1].status, asked[2].status) == (Status.OK, Status.OK)
    assert lane.rings(lane.call) == 0
    rig.finish(lane, jobs[0])
    rig.step()
    assert [name for name, _ in lane.used()] == [one.head for one in asked]
    assert lane.rings(lane.call) == 1


def test_a_batch_is_one_used_element(rig: Rig, lane: Lane) -> None:
    """
    The last of it tells of all, and the index moves on by their number.

    Spec: virtio 1.3, 2.7.9, 2.8.9.
    """
    asked = [lane.read(8 * i) for i in range(4)]
    for job in under_way(rig, asked):
        rig.finish(lane, job)
    rig.step()
    assert lane.used() == [*((one.head, SKIPPED) for one in asked[:3]), (asked[3].head, 513)]
    rig.park(lane)
    assert lane.queue.base() == lane.ring.base(4)


@pytest.mark.parametrize("short", [0, 1, 2])
def test_what_was_not_used_completely_is_not_skipped(rig: Rig, lane: Lane, short: int) -> None:
    """
    A driver takes who is skipped for used completely; a failed read is not.

    Spec: virtio 1.3, 2.7.9.
    """
    rig.fail = lambda job: int(job.offset == 4096 * short)
    asked = [lane.read(8 * i) for i in range(3)]
    for job in under_way(rig, asked):
        rig.finish(lane, job)
    rig.step()
    told = dict(lane.used())
    assert told[asked[short].head] == 1
    assert [told[one.head] for one in asked[:short]] == [SKIPPED] * short
    assert told[asked[2].head] == (1 if short == 2 else 513)


def test_what_is_over_at_once_waits_too(rig: Rig, lane: Lane) -> None:
    """A request that never went to the disk, and a chain that is none, have their turn as well."""
    first = lane.write()
    second = lane.ask(RequestType.GET_ID, room=20)
    third = lane.chain(lane.header(RequestType.FLUSH))
    lane.offer(third)
    rig.step()
    assert (second.status, second.used) == (Status.OK, None)
    rig.pump()
    assert [name for name, _ in lane.used()] == [first.head, second.head, third]


def test_what_waits_is_bounded_by_the_ring(rig: Rig) -> None:
    """However fast the disk is behind the one that hangs, no more are taken than fit the ring."""
    lane = rig.lane(size=4, features=FEATURES | F_IN_ORDER)
    hangs = lane.chain(lane.table(lane.header(RequestType.FLUSH), lane.status()))
    lane.offer(hangs)
    rig.step()
    (job,) = rig.take(lane)
    parts = [lane.header(RequestType.FLUSH), lane.status()]
    names = [lane.chain(lane.table(*parts)) for _ in range(3)]
    for name in names:
        lane.offer(name)
    rig.pump()
    assert lane.used() == []
    assert lane.queue.fault() is None
    rig.finish(lane, job)
    rig.pump()
    assert [name for name, _ in lane.used()] == [hangs, *names]
    rig.park(lane)
    assert lane.queue.base() == lane.ring.base(4)


def test_cancelled_requests_come_back_in_order(rig: Rig, lane: Lane) -> None:
    """At the deadline of a drain nothing is left, and nothing is out of order."""
    asked = [lane.read(8 * i) for i in range(3)]
    jobs = under_way(rig, asked)
    rig.finish(lane, jobs[1])
    assert rig.drain(lane, seconds=0) == 2
    assert [name for name, _ in lane.used()] == [one.head for one in asked]
    assert [one.status for one in asked] == [Status.IOERR, Status.OK, Status.IOERR]
    rig.take(lane)
    for n in (0, 2):
        rig.finish(lane, jobs[n])


def test_nobody_passes_one_whose_memory_was_kept(rig: Rig, lane: Lane) -> None:
    """The used element of a later chain would tell of it, too, and its memory is in use."""
    asked = [lane.read(8 * i) for i in range(2)]
    first, second = under_way(rig, asked)
    lane.mailbox.break_queue(first.tag)
    rig.finish(lane, second)
    rig.step()
    assert lane.used() == []
    assert lane.queue.fault() is not None
    assert rig.drain(lane) == 0
    rig.call(lambda: lane.queue.set_base(lane.ring.restart(lane.size, 0, 0)))
    rig.call(lane.queue.run)
    again = lane.read()
    rig.pump()
    assert again.status == Status.OK
    assert len(lane.used()) == 1
