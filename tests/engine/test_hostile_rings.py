"""What a ring that is no ring gets, whichever engine serves it (ARCHITECTURE, the table)."""

import pytest
from engine.driver import GPA, INDIRECT, MEMORY, NEXT, PENDING, WRITE, Lane
from engine.harness import Rig

from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_VERSION_1

IN = RequestType.IN
OUTSIDE = GPA + MEMORY + 0x1000


def broken(lane: Lane) -> tuple[str, int]:
    """Return why a lane is broken, which it must be, and was told once."""
    fault = lane.queue.fault()
    assert fault is not None
    assert lane.broken == [fault]
    assert lane.rings(lane.err) == 1
    return fault.reason, fault.value


def test_break_on_an_avail_index_too_far_ahead(rig: Rig) -> None:
    """
    More available entries than the ring has slots are no ring.

    Spec: virtio 1.3, 2.7.13.
    """
    lane = rig.lane()
    lane.set_avail_idx(lane.size + 1)
    rig.pump()
    assert broken(lane) == (Reason.AVAIL_INDEX.text, lane.size + 1)


def test_break_on_a_head_out_of_range(rig: Rig) -> None:
    """A head names a descriptor of the table, and the head that does not is not consumed."""
    lane = rig.lane()
    good = lane.read()
    lane.offer(lane.size)
    rig.pump()
    assert broken(lane) == (Reason.HEAD.text, lane.size)
    assert good.used is None
    rig.drain(lane)
    assert lane.queue.base() == 1


def test_break_on_a_next_out_of_range(rig: Rig) -> None:
    """A chain stays inside its table."""
    lane = rig.lane()
    lane.put(3, (GPA, 16, NEXT, 500))
    lane.offer(3)
    rig.pump()
    assert broken(lane) == (Reason.NEXT.text, 500)
    assert lane.queue.fault() == Fault(Reason.NEXT.text, 3, 500)


def test_break_on_a_looping_chain(rig: Rig) -> None:
    """
    A chain that never ends breaks the queue and executes nothing.

    Spec: virtio 1.3, 2.7.5.2.
    """
    lane = rig.lane()
    lane.put(0, (GPA, 16, NEXT, 1))
    lane.put(1, (GPA, 16, NEXT | WRITE, 0))
    lane.offer(0)
    rig.pump()
    assert broken(lane) == (Reason.LOOP.text, lane.size)
    assert rig.jobs == []


def test_break_on_a_looping_table(rig: Rig) -> None:
    """A chain in an indirect table is at most as long as the table."""
    lane = rig.lane()
    table = lane.memory.alloc(32)
    lane.put(0, (GPA, 16, NEXT, 1), table=table)
    lane.put(1, (GPA, 16, NEXT, 0), table=table)
    lane.offer(lane.chain((table, 32, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.LOOP.text, 2)


def test_break_on_a_next_out_of_a_table(rig: Rig) -> None:
    """A chain in an indirect table stays inside it."""
    lane = rig.lane()
    table = lane.memory.alloc(32)
    lane.put(0, (GPA, 16, NEXT, 2), table=table)
    lane.offer(lane.chain((table, 32, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.NEXT.text, 2)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 16 * 32768 + 16])
def test_break_on_a_table_of_an_impossible_length(rig: Rig, length: int) -> None:
    """
    A table is 1 to 32768 whole descriptors.

    Spec: virtio 1.3, 2.7.5.3.1.
    """
    lane = rig.lane()
    lane.offer(lane.chain((GPA, length, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, length)


def test_break_on_a_table_with_a_next(rig: Rig) -> None:
    """INDIRECT and NEXT never stand together."""
    lane = rig.lane()
    table = lane.table(lane.header(IN), lane.status())
    lane.put(0, (table[0], table[1], INDIRECT | NEXT, 1))
    lane.offer(0)
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, 32)


def test_break_on_a_nested_table(rig: Rig) -> None:
    """A table holds no tables."""
    lane = rig.lane()
    inner = lane.table(lane.header(IN), lane.status(), lane.status())
    lane.offer(lane.chain(lane.table(inner)))
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, 48)


def test_break_on_a_table_that_was_not_negotiated(rig: Rig) -> None:
    """Without INDIRECT_DESC there are no tables."""
    lane = rig.lane(features=F_VERSION_1)
    lane.offer(lane.chain(lane.table(lane.header(IN), lane.status())))
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, 32)


@pytest.mark.parametrize("address", [OUTSIDE, (1 << 64) - 16, GPA + MEMORY - 16])
def test_break_on_a_table_out_of_reach(rig: Rig, address: int) -> None:
    """A table, or the part of it the chain goes through, that is not mapped breaks the queue."""
    lane = rig.lane()
    lane.put((MEMORY - 16) // 16, (GPA, 16, NEXT, 1), table=GPA)
    lane.offer(lane.chain((address, 32, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.TABLE_ADDRESS.text, address)


def test_break_on_a_table_that_wraps(rig: Rig) -> None:
    """A table that ends behind the last address is refused whole, by the name of its descriptor."""
    lane = rig.lane()
    address = (1 << 64) - 16
    lane.put(3, (address, 32, INDIRECT, 0))
    lane.offer(3)
    rig.pump()
    assert lane.queue.fault() == Fault(Reason.TABLE_ADDRESS.text, 3, address)


@pytest.mark.parametrize("access", [0, 1])
def test_break_on_a_status_that_may_not_be_written(rig: Rig, access: int) -> None:
    """
    Completing such a request would leave an old byte that may read as success.

    CONFIDENTIAL finding: "a request whose status byte cannot be written reads as success".
    """
    lane = rig.lane(run=False)
    denied = GPA + MEMORY - 4096
    lane.queue.set_space(
        [
            rig.memory.segment(length=MEMORY - 4096),
            rig.memory.segment(denied, 4096, access),
        ]
    )
    rig.call(lane.queue.run)
    lane.offer(lane.chain(lane.header(IN), lane.data(bytes(512), WRITE), (denied + 9, 1, WRITE)))
    rig.pump()
    assert broken(lane) == (Reason.STATUS_ADDRESS.text, denied + 9)
    assert lane.used_idx() == 0


def test_break_on_a_status_that_is_not_mapped(rig: Rig) -> None:
    """An address nobody knows is as bad as one that is denied."""
    lane = rig.lane()
    lane.offer(lane.chain(lane.header(IN), (OUTSIDE, 8, WRITE)))
    rig.pump()
    assert broken(lane) == (Reason.STATUS_ADDRESS.text, OUTSIDE + 7)
    rig.drain(lane)
    assert lane.queue.base() == 0


def test_a_broken_ring_gets_nothing_more(rig: Rig) -> None:
    """What was with the disk when the ring broke is not published, and nothing new is taken."""
    lane = rig.lane()
    before = lane.read()
    rig.step()
    jobs = rig.take(lane)
    lane.offer(lane.size)
    rig.step()
    lane.rings(lane.call)
    for job in jobs:
        rig.finish(lane, job)
    after = lane.read()
    rig.pump()
    assert before.used is None
    assert after.status == PENDING
    assert lane.used_idx() == 0
    assert lane.rings(lane.call) == 0
    assert lane.queue.counters().in_flight == 0


def test_a_broken_queue_leaves_others_alone(rig: Rig) -> None:
    """Other queues of the same worker go on."""
    bad, good = rig.lane(), rig.lane()
    bad.offer(bad.size)
    asked = good.read()
    rig.pump()
    assert broken(bad)[0] == Reason.HEAD.text
    assert good.queue.fault() is None
    assert asked.status == Status.OK


def test_a_broken_queue_drains_and_starts_again(rig: Rig) -> None:
    """Drained and given a new base, a broken queue is whole."""
    lane = rig.lane()
    lane.offer(lane.size)
    rig.pump()
    rig.drain(lane)
    assert lane.queue.base() == 0
    assert lane.queue.fault() is not None
    lane.set_avail_idx(0)
    lane.queue.set_base(0)
    assert lane.queue.fault() is None
    rig.call(lane.queue.run)
    asked = lane.read()
    rig.pump()
    assert asked.status == Status.OK


def test_parking_does_not_mend_a_broken_queue(rig: Rig) -> None:
    """Settings may change; the ring stays broken until it gets a base."""
    lane = rig.lane()
    lane.offer(lane.size)
    rig.pump()
    rig.set(lane, lambda queue: queue.set_enabled(enabled=True))
    rig.pump()
    assert broken(lane)[0] == Reason.HEAD.text


def test_a_head_offered_for_ever_does_not_fill_memory(rig: Rig) -> None:
    """A driver that offers one chain again and again has at most a ring of them under way."""
    lane = rig.lane(size=8)
    head = lane.read().head
    for _ in range(200):
        for _ in range(7):
            lane.offer(head)
        rig.turn()
        assert lane.queue.counters().in_flight <= lane.size
    rig.pump()
    assert broken(lane)[0] == Reason.AVAIL_INDEX.text
