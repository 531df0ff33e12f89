"""What a ring that is no ring gets, whichever engine serves it (ARCHITECTURE, the table)."""

import pytest
from engine.driver import GPA, INDIRECT, MEMORY, NEXT, PENDING, WRITE
from engine.harness import Rig
from engine.verdicts import broken

from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_VERSION_1

IN = RequestType.IN
OUTSIDE = GPA + MEMORY + 0x1000


def nobody(rig: Rig) -> str:
    """Return why a queue breaks on a chain whose name is out of range."""
    return (Reason.ID if rig.packed else Reason.HEAD).text


def test_break_on_a_head_out_of_range(rig: Rig) -> None:
    """A head names a descriptor of the table, and the head that does not is not consumed."""
    lane = rig.lane()
    good = lane.read()
    lane.offer_nobody()
    rig.pump()
    assert broken(lane) == (nobody(rig), lane.size)
    assert good.used is None
    rig.drain(lane)
    assert lane.queue.base() == lane.ring.base(1)


@pytest.mark.parametrize("length", [0, 1, 15, 17, 16 * 32768 + 16])
def test_break_on_a_table_of_an_impossible_length(rig: Rig, length: int) -> None:
    """
    A table is 1 to 32768 whole descriptors.

    Spec: virtio 1.3, 2.7.5.3.1, 2.8.7.
    """
    lane = rig.lane()
    lane.offer(lane.chain((GPA, length, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, length)


def test_break_on_a_table_with_a_next(rig: Rig) -> None:
    """INDIRECT and NEXT never stand together."""
    lane = rig.lane()
    table = lane.table(lane.header(IN), lane.status())
    lane.offer(lane.chain((table[0], table[1], INDIRECT | NEXT)))
    rig.pump()
    assert broken(lane) == (Reason.INDIRECT.text, 32)


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
    lane.ring.lay_table(GPA + MEMORY - 16, [(GPA, 16, NEXT, None)])
    lane.offer(lane.chain((address, 32, INDIRECT)))
    rig.pump()
    assert broken(lane) == (Reason.TABLE_ADDRESS.text, address)


def test_break_on_a_table_that_wraps(rig: Rig) -> None:
    """A table that ends behind the last address is refused whole, by the name of its descriptor."""
    lane = rig.lane()
    address = (1 << 64) - 16
    lane.write()
    rig.pump()
    lane.offer(lane.chain((address, 32, INDIRECT)))
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
    assert len(lane.used()) == 0


def test_break_on_a_status_that_is_not_mapped(rig: Rig) -> None:
    """An address nobody knows is as bad as one that is denied."""
    lane = rig.lane()
    lane.offer(lane.chain(lane.header(IN), (OUTSIDE, 8, WRITE)))
    rig.pump()
    assert broken(lane) == (Reason.STATUS_ADDRESS.text, OUTSIDE + 7)
    rig.drain(lane)
    assert lane.queue.base() == lane.ring.base(0)


def test_a_broken_ring_gets_nothing_more(rig: Rig) -> None:
    """What was with the disk when the ring broke is not published, and nothing new is taken."""
    lane = rig.lane()
    before = lane.read()
    rig.step()
    jobs = rig.take(lane)
    lane.offer_nobody()
    rig.step()
    lane.rings(lane.call)
    for job in jobs:
        rig.finish(lane, job)
    after = lane.read()
    rig.pump()
    assert before.used is None
    assert after.status == PENDING
    assert len(lane.used()) == 0
    assert lane.rings(lane.call) == 0
    assert lane.queue.counters().in_flight == 0


def test_a_broken_queue_leaves_others_alone(rig: Rig) -> None:
    """Other queues of the same worker go on."""
    bad, good = rig.lane(), rig.lane()
    bad.offer_nobody()
    asked = good.read()
    rig.pump()
    assert broken(bad)[0] == nobody(rig)
    assert good.queue.fault() is None
    assert asked.status == Status.OK


def test_a_broken_queue_drains_and_starts_again(rig: Rig) -> None:
    """Drained and given a new base, a broken queue is whole."""
    lane = rig.lane()
    lane.offer_nobody()
    rig.pump()
    rig.drain(lane)
    assert lane.queue.base() == lane.ring.base(0)
    assert lane.queue.fault() is not None
    lane.queue.set_base(lane.ring.restart(lane.size, 0, 0))
    assert lane.queue.fault() is None
    rig.call(lane.queue.run)
    asked = lane.read()
    rig.pump()
    assert asked.status == Status.OK


def test_parking_does_not_mend_a_broken_queue(rig: Rig) -> None:
    """Settings may change; the ring stays broken until it gets a base."""
    lane = rig.lane()
    lane.offer_nobody()
    rig.pump()
    rig.set(lane, lambda queue: queue.set_enabled(enabled=True))
    rig.pump()
    assert broken(lane)[0] == nobody(rig)
