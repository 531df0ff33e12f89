"""What a split ring that is no ring gets, whichever engine serves it."""

from engine.driver import GPA, INDIRECT, NEXT, WRITE
from engine.driver_split import split
from engine.harness import Rig
from engine.verdicts import broken

from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.spec.virtio_blk import RequestType

IN = RequestType.IN


def test_break_on_an_avail_index_too_far_ahead(split_rig: Rig) -> None:
    """
    More available entries than the ring has slots are no ring.

    Spec: virtio 1.3, 2.7.13.
    """
    lane = split_rig.lane()
    split(lane).set_avail_idx(lane.size + 1)
    split_rig.pump()
    assert broken(lane) == (Reason.AVAIL_INDEX.text, lane.size + 1)


def test_break_on_a_next_out_of_range(split_rig: Rig) -> None:
    """A chain stays inside its table."""
    lane = split_rig.lane()
    split(lane).put(3, (GPA, 16, NEXT, 500))
    lane.offer(3)
    split_rig.pump()
    assert broken(lane) == (Reason.NEXT.text, 500)
    assert lane.queue.fault() == Fault(Reason.NEXT.text, 3, 500)


def test_break_on_a_looping_chain(split_rig: Rig) -> None:
    """
    A chain that never ends breaks the queue and executes nothing.

    Spec: virtio 1.3, 2.7.5.2.
    """
    lane = split_rig.lane()
    split(lane).put(0, (GPA, 16, NEXT, 1))
    split(lane).put(1, (GPA, 16, NEXT | WRITE, 0))
    lane.offer(0)
    split_rig.pump()
    assert broken(lane) == (Reason.LOOP.text, lane.size)
    assert split_rig.jobs == []


def test_break_on_a_looping_table(split_rig: Rig) -> None:
    """A chain in an indirect table is at most as long as the table."""
    lane = split_rig.lane()
    table = lane.memory.alloc(32)
    split(lane).put(0, (GPA, 16, NEXT, 1), table=table)
    split(lane).put(1, (GPA, 16, NEXT, 0), table=table)
    lane.offer(lane.chain((table, 32, INDIRECT)))
    split_rig.pump()
    assert broken(lane) == (Reason.LOOP.text, 2)


def test_break_on_a_next_out_of_a_table(split_rig: Rig) -> None:
    """A chain in an indirect table stays inside it."""
    lane = split_rig.lane()
    table = lane.memory.alloc(32)
    split(lane).put(0, (GPA, 16, NEXT, 2), table=table)
    lane.offer(lane.chain((table, 32, INDIRECT)))
    split_rig.pump()
    assert broken(lane) == (Reason.NEXT.text, 2)


def test_break_on_a_nested_table(split_rig: Rig) -> None:
    """A table holds no tables."""
    lane = split_rig.lane()
    inner = lane.table(lane.header(IN), lane.status(), lane.status())
    lane.offer(lane.chain(lane.table(inner)))
    split_rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, 48)


def test_a_head_offered_for_ever_does_not_fill_memory(split_rig: Rig) -> None:
    """A driver that offers one chain again and again has at most a ring of them under way."""
    lane = split_rig.lane(size=8)
    head = lane.read().head
    for _ in range(200):
        for _ in range(7):
            lane.offer(head)
        split_rig.turn()
        assert lane.queue.counters().in_flight <= lane.size
    split_rig.pump()
    assert broken(lane)[0] == Reason.AVAIL_INDEX.text
