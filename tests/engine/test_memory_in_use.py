"""Memory that is to go, and the requests that still use it, on either engine."""

import pytest
from engine.driver import WRITE, Asked, Lane
from engine.harness import Rig

from vhostblk.engine.api import Busy, Job, Piece
from vhostblk.spec.virtio_blk import RequestType, Status


class Wish:
    """
    One `watch_use` of a lane, which it parks.

    Args:
        rig: Where.
        lane: Whose requests may be there.
        memory: Guest addresses and bytes.
    """

    def __init__(self, rig: Rig, lane: Lane, *memory: Piece) -> None:
        self._rig = rig
        rig.park(lane)
        named = [(lane.memory.at(gpa), length) for gpa, length in sorted(memory)]
        rig.call(lambda: lane.queue.watch_use(named))
        self._wait = rig.start(lane.queue.unused())

    @property
    def true(self) -> bool:
        """Whether it has come true, with all that the engine can do now."""
        for _ in range(6):
            self._rig.turn()
        return self._wait.done()

    def drop(self) -> None:
        """Wait no longer."""
        self._wait.cancel()


def data(asked: Asked) -> Piece:
    return asked.data_at, asked.length


def begin(rig: Rig, lane: Lane, *sectors: int) -> list[tuple[Asked, Job]]:
    """Have reads under way."""
    asked = [lane.read(sector) for sector in sectors]
    rig.step()
    return list(zip(asked, rig.take(lane), strict=True))


def test_who_is_elsewhere_is_not_waited_for(rig: Rig) -> None:
    """Nor is the byte before its data, or behind its status."""
    lane = rig.lane()
    ((asked, job),) = begin(rig, lane, 0)
    at = asked.data_at
    assert Wish(rig, lane, (at - 8, 8), (asked.status_at + 1, 8)).true
    assert Wish(rig, lane).true
    wish = Wish(rig, lane, (at - 8, 9))
    assert not wish.true
    rig.finish(lane, job)
    assert wish.true


def test_who_is_there_is_waited_for_while_the_ring_is_parked(rig: Rig) -> None:
    """It comes true before the used element is there; a parked ring gets none."""
    lane = rig.lane()
    (first, job), (second, other) = begin(rig, lane, 0, 8)
    wish = Wish(rig, lane, data(first))
    rig.finish(lane, other)
    assert not wish.true
    rig.finish(lane, job)
    assert wish.true
    assert (first.used, second.used) == (None, None)
    rig.call(lane.queue.run)
    rig.step()
    assert (first.used, second.used) == (513, 513)


def test_ring_runs_on_meanwhile(rig: Rig) -> None:
    """What it takes then is served, and not waited for, wherever it is."""
    lane = rig.lane()
    ((asked, job),) = begin(rig, lane, 0)
    wish = Wish(rig, lane, data(asked))
    rig.call(lane.queue.run)
    there = [(asked.data_at, asked.length, WRITE), (asked.status_at, 1, WRITE)]
    again = Asked(lane, lane.chain(lane.header(RequestType.IN), *there), asked.status_at)
    lane.offer(again.head)
    rig.step()
    (later,) = rig.take(lane)
    rig.finish(lane, job)
    assert wish.true
    rig.finish(lane, later)
    rig.step()
    assert again.status == Status.OK


def test_status_byte_is_in_use(rig: Rig) -> None:
    """It is written last of all."""
    lane = rig.lane()
    ((asked, job),) = begin(rig, lane, 0)
    wish = Wish(rig, lane, (asked.status_at, 1))
    assert not wish.true
    rig.finish(lane, job)
    assert wish.true
    assert asked.status == Status.OK


@pytest.mark.parametrize("when", ["before", "after"])
def test_dead_request_is_waited_for(rig: Rig, when: str) -> None:
    """The guest was told that it failed; the disk may write into its data all the same."""
    lane = rig.lane()
    ((asked, job),) = begin(rig, lane, 0)
    wish = Wish(rig, lane, data(asked))
    assert rig.drain(lane, seconds=0) == 1
    if when == "after":
        wish.drop()
        assert Wish(rig, lane, (asked.status_at, 1)).true  # but not its status byte
        wish = Wish(rig, lane, data(asked))
    assert asked.status == Status.IOERR
    assert not wish.true
    rig.take(lane)
    rig.finish(lane, job)
    assert wish.true


def test_cancelled_before_its_disk_saw_it(rig: Rig) -> None:
    """What is held back for a dead write is in flight, and over when it is cancelled."""
    lane = rig.lane()
    lane.write(0)
    rig.step()
    (dead,) = rig.take(lane)
    rig.drain(lane, seconds=0)
    rig.call(lane.queue.run)
    held = lane.write(0)
    rig.step()
    wish = Wish(rig, lane, (held.status_at, 1))
    assert not wish.true
    rig.drain(lane, seconds=0)
    assert wish.true
    rig.take(lane)
    rig.finish(lane, dead)


def test_last_wish_counts(rig: Rig) -> None:
    """Who waits for an older one is told when the newer comes true."""
    lane = rig.lane()
    (first, job), (second, other) = begin(rig, lane, 0, 8)
    older, newer = Wish(rig, lane, data(first)), Wish(rig, lane, data(second))
    rig.finish(lane, job)
    assert not newer.true
    assert not older.true
    rig.finish(lane, other)
    assert newer.true
    assert older.true


def test_kept_view_is_not_waited_for(rig: Rig) -> None:
    """Its queue breaks; nobody knows when the disk lets go."""
    lane = rig.lane()
    ((asked, job),) = begin(rig, lane, 0)
    wish = Wish(rig, lane, data(asked))
    lane.mailbox.break_queue(job.tag)
    assert wish.true


def test_worker_does_not_take_wishes(rig: Rig) -> None:
    """A setter like the others: what is taken later would be between two chairs."""
    lane = rig.lane()
    with pytest.raises(Busy):
        rig.call(lambda: lane.queue.watch_use([]))
