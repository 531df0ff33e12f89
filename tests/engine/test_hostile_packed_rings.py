"""What a packed ring that is no ring gets, whichever engine serves it."""

import pytest
from engine.driver import GPA, INDIRECT, NEXT, WRITE
from engine.driver_packed import AVAIL, USED, packed
from engine.harness import Rig
from engine.verdicts import broken

from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.spec.virtio_blk import RequestType

IN = RequestType.IN


def test_break_on_an_id_in_flight_twice(packed_rig: Rig) -> None:
    """
    A buffer id names one chain until that comes back; the second is not executed.

    Spec: virtio 1.3, 2.8.6, 2.8.21.
    """
    lane = packed_rig.lane()
    first = lane.read()
    packed_rig.step()
    lane.offer(first.head)
    packed_rig.step()
    assert broken(lane) == (Reason.ID_IN_FLIGHT.text, first.head)
    assert lane.queue.fault() == Fault(Reason.ID_IN_FLIGHT.text, 5, first.head)
    assert packed_rig.serve() == 1
    packed_rig.step()
    assert first.used is None


def test_an_id_may_be_used_again(packed_rig: Rig) -> None:
    """When its chain came back it is free."""
    lane = packed_rig.lane()
    head = lane.read().head
    packed_rig.pump()
    lane.offer(head)
    packed_rig.pump()
    assert lane.used() == [(head, 513)] * 2


def test_break_on_a_chain_longer_than_the_ring(packed_rig: Rig) -> None:
    """
    A chain that goes round and round is none.

    Spec: virtio 1.3, 2.8.11.
    """
    lane = packed_rig.lane(size=4)
    ring = packed(lane)
    ring.offer(ring.lay([(GPA, 16, 0, None)]))
    packed_rig.pump()
    parts = [(GPA, 16, NEXT, None), (GPA, 16, NEXT, None), (GPA, 16, NEXT, None)]
    lane.offer(ring.lay([*parts, (GPA, 1, NEXT | WRITE, None)]))
    packed_rig.pump()
    assert lane.queue.fault() == Fault(Reason.LOOP.text, 1, 4)
    assert broken(lane) == (Reason.LOOP.text, 4)
    assert packed_rig.jobs == []


def test_break_on_a_chain_that_goes_into_what_is_taken(packed_rig: Rig) -> None:
    """A chain ends before the descriptors that were not given back yet."""
    lane = packed_rig.lane(size=5)
    lane.read()
    packed_rig.step()
    lane.offer(lane.chain(lane.header(IN), (GPA, 16, WRITE), lane.status()))
    packed_rig.step()
    assert lane.queue.fault() == Fault(Reason.AVAIL_INDEX.text, 3, 0)
    packed_rig.serve()


def test_break_on_what_is_available_in_a_full_ring(packed_rig: Rig) -> None:
    """A driver has no descriptor to make available while all are taken."""
    lane = packed_rig.lane(size=3)
    lane.read()
    packed_rig.step()
    lane.memory.write16(packed(lane).desc + 14, USED)
    packed_rig.step()
    assert broken(lane) == (Reason.AVAIL_INDEX.text, 0)
    packed_rig.serve()


@pytest.mark.parametrize("flags", [0, USED | AVAIL, USED])
def test_break_on_a_chain_that_is_available_in_part(packed_rig: Rig, flags: int) -> None:
    """
    The first descriptor is made available last, so all of them are.

    Spec: virtio 1.3, 2.8.6.
    """
    lane = packed_rig.lane()
    ring = packed(lane)
    name = lane.chain(lane.header(IN), lane.data(bytes(512), WRITE), lane.status())
    lane.memory.write16(ring.desc + 16 + 14, WRITE | NEXT | flags)
    lane.offer(name)
    packed_rig.pump()
    assert lane.queue.fault() == Fault(Reason.PARTIAL.text, 1, WRITE | NEXT | flags)
    assert packed_rig.jobs == []


def test_break_on_a_table_behind_a_direct_descriptor(packed_rig: Rig) -> None:
    """
    A list is direct or indirect, never both.

    Spec: virtio 1.3, 2.8.4.
    """
    lane = packed_rig.lane()
    lane.offer(lane.chain(lane.header(IN), lane.table(lane.status(), lane.status())))
    packed_rig.pump()
    assert lane.queue.fault() == Fault(Reason.INDIRECT.text, 1, 32)


def test_an_available_descriptor_of_the_other_round_is_none(packed_rig: Rig) -> None:
    """
    Flags that were available a round ago are not looked at twice.

    Spec: virtio 1.3, 2.8.1.
    """
    lane = packed_rig.lane(size=4)
    ring = packed(lane)
    name = lane.chain(lane.table(lane.header(IN), lane.status()))
    lane.memory.write16(ring.desc + 14, INDIRECT | USED)
    packed_rig.pump()
    assert lane.used() == []
    assert lane.queue.fault() is None
    lane.offer(name)
    packed_rig.pump()
    assert lane.used() == [(name, 1)]


@pytest.mark.parametrize("flags", range(0, 0x10000, 0x1357))
def test_a_ring_of_garbage_executes_nothing(packed_rig: Rig, flags: int) -> None:
    """Flags of all kinds with nothing behind them are no chain, an empty one, or break the ring."""
    lane = packed_rig.lane(size=2)
    lane.memory.write16(packed(lane).desc + 14, flags)
    packed_rig.pump()
    assert packed_rig.jobs == []
    available = flags & (AVAIL | USED) == AVAIL
    fault, counters = lane.queue.fault(), lane.queue.counters()
    assert (counters.malformed + (fault is not None)) == available
