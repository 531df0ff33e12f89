"""Whose a ring is, and how it changes hands, whichever engine serves it."""

import errno
import os
from collections.abc import Callable

import pytest
from engine.driver import PENDING
from engine.harness import BLK, FEATURES, Rig

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import Busy, Job, Op, Queue
from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_blk import RequestType, Status


@pytest.mark.parametrize(
    "change",
    [
        lambda queue: queue.set_space([]),
        lambda queue: queue.set_base(0),
        lambda queue: queue.base(),
        lambda queue: queue.set_kick(None),
        lambda queue: queue.set_call(None),
        lambda queue: queue.set_err(None),
        lambda queue: queue.set_enabled(enabled=False),
        lambda queue: queue.set_features(FEATURES),
        lambda queue: queue.set_blk(BLK, writethrough=True),
        lambda queue: queue.run(),
    ],
)
def test_a_ring_of_the_workers_is_busy(rig: Rig, change: Callable[[Queue], object]) -> None:
    """While the worker owns the ring nothing of it may be changed or read."""
    lane = rig.lane()
    with pytest.raises(Busy):
        rig.call(lambda: change(lane.queue))


def test_run_needs_a_ring(rig: Rig) -> None:
    """A queue that was never told where its ring lives cannot run."""
    queue = rig.call(lambda: rig.device.queue(9, on_broken=lambda: None))
    with pytest.raises(VhostBlkError):
        rig.call(queue.run)
    rig.wait(queue.close())


@pytest.mark.parametrize("size", [0, 1025, 2048])
def test_impossible_sizes_are_refused(rig: Rig, size: int) -> None:
    """A ring has 1 to 1024 descriptors."""
    lane = rig.lane(run=False)

    def start() -> None:
        lane.queue.set_ring(size=size, **lane.place())
        lane.queue.run()

    with pytest.raises(VhostBlkError):
        rig.call(start)


@pytest.mark.parametrize("name", ["desc", "avail", "used"])
def test_a_part_that_is_too_short_is_refused(rig: Rig, name: str) -> None:
    """A ring part ends behind its last field, the event index, or the ring never runs."""
    lane = rig.lane(run=False)
    place = lane.place()
    ((host, length),) = place[name]
    place[name] = [(host, length - 2)]

    def start() -> None:
        lane.queue.set_ring(size=lane.size, **place)
        lane.queue.run()

    with pytest.raises(VhostBlkError):
        rig.call(start)


def test_park_stands_between_two_requests(rig: Rig) -> None:
    """A parked ring takes nothing and publishes nothing, though the disk goes on."""
    lane = rig.lane()
    before = lane.read()
    rig.step()
    rig.park(lane)
    after = lane.read()
    rig.pump()
    assert (before.used, after.status) == (None, PENDING)
    assert lane.queue.base() == lane.ring.base(1)
    rig.call(lane.queue.run)
    rig.pump()
    assert (before.used, after.used) == (513, 513)


def test_park_again_is_at_once(rig: Rig) -> None:
    """Asking for a ring one has changes nothing."""
    lane = rig.lane()
    rig.park(lane)
    rig.park(lane)
    assert lane.queue.base() == lane.ring.base(0)


def test_settings_changed_while_parked_hold_for_the_next_run(rig: Rig) -> None:
    """A disk that became read-only between two requests refuses the second write."""
    lane = rig.lane()
    first = lane.write()
    rig.pump()
    read_only = BlkDevice(capacity_sectors=8, read_only=True)
    rig.set(lane, lambda queue: queue.set_blk(read_only, writethrough=False))
    second = lane.write()
    rig.pump()
    assert (first.status, second.status) == (Status.OK, Status.IOERR)


def test_a_disabled_ring_completes_and_takes_nothing(rig: Rig) -> None:
    """
    ENABLE(0) is not a stop: what is in flight ends, what is available waits for ENABLE(1).

    Spec: vhost-user, "Ring states".
    """
    lane = rig.lane()
    before = lane.read()
    rig.step()
    rig.set(lane, lambda queue: queue.set_enabled(enabled=False))
    after = lane.read()
    rig.pump()
    assert (before.used, after.used) == (513, None)
    rig.set(lane, lambda queue: queue.set_enabled(enabled=True))
    rig.pump()
    assert after.used == 513


def test_a_ring_that_moved_goes_on(rig: Rig) -> None:
    """The same ring at another address of ours keeps its place, with requests in flight."""
    lane = rig.lane()
    before = lane.read()
    rig.step()
    rig.set(lane, lambda queue: queue.set_ring(size=lane.size, **lane.place()))
    after = lane.read()
    rig.pump()
    assert (before.used, after.used) == (513, 513)
    assert len(lane.used()) == 2


def test_drain_waits_for_the_disk(rig: Rig) -> None:
    """Drained is: nothing in flight, all published, and the base counts what was taken."""
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    (job,) = rig.take(lane)
    drain = rig.start(lane.queue.drained(seconds=60))
    rig.step()
    assert not drain.done()
    late = lane.read()
    rig.finish(lane, job)
    assert rig.wait(drain) == 0
    assert (asked.used, late.used) == (513, None)
    assert lane.queue.base() == lane.ring.base(1)


def test_drain_publishes_what_completed_while_parked(rig: Rig) -> None:
    """A request that ended while the ring was the control plane's is not lost."""
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    rig.park(lane)
    rig.pump()
    assert asked.used is None
    assert rig.drain(lane) == 0
    assert asked.used == 513


def test_drain_publishes_into_a_ring_that_moved(rig: Rig) -> None:
    """What was in flight when the ring got another address of ours ends there."""
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    rig.park(lane)
    lane.queue.set_ring(size=lane.size, **lane.place())
    rig.pump()
    rig.drain(lane)
    assert asked.used == 513


def test_drain_of_a_queue_that_never_ran(rig: Rig) -> None:
    """There is nothing to wait for, and the base is what was set."""
    queue = rig.call(lambda: rig.device.queue(9, on_broken=lambda: None))
    queue.set_base(33)
    assert rig.wait(queue.drained(seconds=60)) == 0
    assert queue.base() == 33
    rig.wait(queue.close())


def test_base_is_the_same_twice(rig: Rig) -> None:
    """
    A second GET_VRING_BASE gets the same answer.

    PROTOCOL, "GET_VRING_BASE".
    """
    lane = rig.lane()
    lane.read()
    rig.pump()
    rig.drain(lane)
    assert lane.queue.base() == lane.ring.base(1)
    rig.drain(lane)
    assert lane.queue.base() == lane.ring.base(1)


def test_drain_has_an_end(rig: Rig) -> None:
    """
    At the deadline what is left completes with IOERR and is dead; the disk is told to stop.

    ARCHITECTURE, "Every drain is bounded".
    """
    lane = rig.lane()
    asked = lane.read()
    rig.step()
    (job,) = rig.take(lane)
    assert rig.drain(lane, seconds=0) == 1
    assert (asked.status, asked.used) == (Status.IOERR, 1)
    assert rig.device.dead() == 1
    (cancel,) = rig.take(lane)
    assert (cancel.op, cancel.tag) == (Op.CANCEL, job.tag)
    counters = lane.queue.counters()
    assert (counters.in_flight, counters.dead) == (0, 1)
    rig.finish(lane, job)
    rig.step()
    assert rig.device.dead() == 0
    assert lane.queue.counters().dead == 0
    assert lane.used() == [(asked.head, 1)]


def test_a_late_result_is_dropped(rig: Rig) -> None:
    """A dead request that succeeds after all changes neither status nor ring."""
    lane = rig.lane()
    asked = lane.write()
    rig.step()
    (job,) = rig.take(lane)
    rig.drain(lane, seconds=0)
    rig.call(lane.queue.run)
    rig.finish(lane, job)
    rig.step()
    assert asked.status == Status.IOERR
    assert len(lane.used()) == 1
    assert lane.queue.counters().writes == 0


def dead_write(rig: Rig) -> tuple[Queue, Job]:
    """Leave a write of sectors 8 to 15 dead, on a queue that runs again."""
    lane = rig.lane()
    lane.write(8, b"old" * 1024 + bytes(1024))
    rig.step()
    (job,) = rig.take(lane)
    assert rig.drain(lane, seconds=0) == 1
    rig.take(lane)
    rig.call(lane.queue.run)
    return lane.queue, job


@pytest.mark.parametrize("same_queue", [True, False])
def test_a_write_waits_for_a_dead_one_it_overlaps(rig: Rig, *, same_queue: bool) -> None:
    """A late write must not overtake the one the guest sent after it failed, on any queue."""
    _, dead = dead_write(rig)
    lane = rig.lanes[0] if same_queue else rig.lane()
    new = lane.write(15, b"new!" * 128)
    rig.step()
    assert rig.take(lane) == []
    assert new.status == PENDING
    rig.finish(rig.lanes[0], dead)
    rig.pump()
    assert new.status == Status.OK
    assert rig.disk[15 * 512 : 16 * 512] == b"new!" * 128


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room"),
    [
        (RequestType.OUT, 7, b"x" * 512, 0),
        (RequestType.OUT, 16, b"x" * 512, 0),
        (RequestType.IN, 8, b"", 512),
        (RequestType.FLUSH, 0, b"", 0),
    ],
)
def test_others_do_not_wait_for_a_dead_write(
    rig: Rig, *, kind: int, sector: int, out: bytes, room: int
) -> None:
    """What does not change the same bytes goes on."""
    _, dead = dead_write(rig)
    asked = rig.lanes[0].ask(kind, sector, out=out, room=room)
    rig.pump()
    assert asked.status == Status.OK
    rig.finish(rig.lanes[0], dead)


def test_a_held_request_is_cancelled_without_being_dead(rig: Rig) -> None:
    """The disk never saw it, so nothing can come late."""
    _, dead = dead_write(rig)
    lane = rig.lane()
    new = lane.write(8)
    rig.step()
    assert rig.drain(lane, seconds=0) == 0
    assert new.status == Status.IOERR
    rig.finish(rig.lanes[0], dead)


def test_drain_of_a_broken_queue_waits_for_the_disk(rig: Rig) -> None:
    """Mappings may go only when no view of them is left, broken or not."""
    lane = rig.lane()
    lane.read()
    rig.step()
    (job,) = rig.take(lane)
    lane.offer_nobody()
    rig.step()
    assert lane.queue.fault() is not None
    drain = rig.start(lane.queue.drained(seconds=60))
    rig.step()
    assert not drain.done()
    rig.finish(lane, job)
    assert rig.wait(drain) == 0
    assert len(lane.used()) == 0


def test_a_disk_that_keeps_a_view_breaks_its_queue(rig: Rig) -> None:
    """
    A late write through the view could corrupt the guest.

    ARCHITECTURE, "Views die with their request".
    """
    lane = rig.lane()
    asked = lane.read(4)
    rig.step()
    (job,) = rig.take(lane)
    kept = job.views[0][:4]
    assert not job.release()
    lane.mailbox.break_queue(job.tag)
    rig.step()
    fault = lane.queue.fault()
    assert fault is not None
    assert fault.value == 4 * 512
    assert lane.broken == [fault]
    assert asked.used is None
    kept.release()


def test_fds_are_taken_over_and_closed(rig: Rig) -> None:
    """A replaced eventfd is closed, and the last one with the queue."""
    lane = rig.lane()
    first, second = os.dup(lane.call), os.dup(lane.call)
    rig.set(lane, lambda queue: queue.set_call(first))
    rig.set(lane, lambda queue: queue.set_call(second))
    rig.pump()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(first)
    rig.wait(lane.queue.close())
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(second)


def test_close_forgets_a_queue_with_dead_requests(rig: Rig) -> None:
    """Other queues go on; the dead one's result is still taken when it comes."""
    queue, dead = dead_write(rig)
    box = queue.mailbox
    assert box is not None
    rig.wait(queue.close())
    other = rig.lane()
    new = other.write(8)
    rig.step()
    assert rig.take(other) == []
    box.complete([(dead.tag, errno.EIO)])
    rig.step()
    assert rig.device.dead() == 0
    rig.pump()
    assert new.status == Status.OK
