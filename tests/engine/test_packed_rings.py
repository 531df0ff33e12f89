"""What only a packed ring does, whichever engine serves it."""

import struct

import pytest
from engine.driver import INDIRECT, NEXT, WRITE
from engine.driver_packed import JUNK, packed
from engine.harness import Rig

from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_blk import RequestType, Status

IN = RequestType.IN


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 1023])
def test_any_size_goes_round(packed_rig: Rig, size: int) -> None:
    """
    A packed ring need not be a power of two, and the wrap counters turn with it.

    Spec: virtio 1.3, 2.8.1, 2.8.10.1.
    """
    lane = packed_rig.lane(size=size)
    wraps = set()
    for i in range(7 if size < 10 else 2):
        parts = [lane.header(IN, i), lane.data(bytes(512), WRITE), lane.status()]
        head = lane.chain(*parts) if size >= 3 else lane.chain(lane.table(*parts))
        lane.offer(head)
        packed_rig.pump()
        assert lane.used()[i:] == [(head, 513)]
        assert lane.memory.read(parts[2][0], 1) == b"\0"
        wraps.add(packed(lane).used_wrap)
    assert len(wraps) == (2 if size < 10 else 1)


@pytest.mark.parametrize("at", [0, 5, 0x8002, 0x8000])
def test_a_packed_ring_begins_where_its_base_says(packed_rig: Rig, at: int) -> None:
    """
    Both indexes and both wrap counters come from the front-end, as it got them.

    Spec: vhost-user, "VHOST_USER_SET_VRING_BASE".
    """
    lane = packed_rig.lane(size=6, run=False)
    base = lane.ring.restart(6, at, at)
    packed_rig.call(lambda: lane.queue.set_base(base))
    assert lane.queue.base() == base
    packed_rig.call(lane.queue.run)
    for i in range(5):
        asked = lane.read()
        packed_rig.pump()
        assert asked.used == 513, i
    packed_rig.park(lane)
    assert lane.queue.base() == lane.ring.base(5)


@pytest.mark.parametrize("base", [0x8000_8006, 0x8006_8000, 0x0001_8002, 0x8002_8001])
def test_a_base_that_is_not_in_the_ring_is_refused(packed_rig: Rig, base: int) -> None:
    """An index is below the size, and the device is at most a round behind the driver."""
    lane = packed_rig.lane(size=6, run=False)
    packed_rig.call(lambda: lane.queue.set_base(base))
    with pytest.raises(VhostBlkError):
        packed_rig.call(lane.queue.run)


def test_a_used_descriptor_stands_where_the_next_is_expected(packed_rig: Rig) -> None:
    """
    It is written behind the one before, and moves on by the chain it names, not by itself.

    Spec: virtio 1.3, 2.8.6.
    """
    lane = packed_rig.lane(size=8)
    ring = packed(lane)
    first = lane.chain(lane.header(RequestType.OUT), lane.data(b"a" * 512), lane.status())
    lane.offer(first)
    second = lane.chain(lane.table(lane.header(RequestType.FLUSH), lane.status()))
    lane.offer(second)
    packed_rig.step()
    jobs = packed_rig.take(lane)
    for job in (jobs[1], jobs[0]):
        packed_rig.finish(lane, job)
        packed_rig.step()
    raw = [lane.memory.read(ring.desc + 16 * i + 8, 8) for i in range(8)]
    used = 1 << 7 | 1 << 15 | WRITE
    assert raw[0] == struct.pack("<IHH", 1, second, used)
    assert raw[1] == struct.pack("<IHH", 1, first, used)
    assert lane.used() == [(second, 1), (first, 1)]


def test_elements_of_a_batch_come_together(packed_rig: Rig) -> None:
    """What ends together is told together, each in its own descriptor."""
    lane = packed_rig.lane()
    asked = [lane.read() for _ in range(4)]
    packed_rig.step()
    packed_rig.finish_together(lane)
    packed_rig.pump()
    assert lane.used() == [(one.head, 513) for one in asked]
    assert lane.rings(lane.call) == 1


def test_the_id_is_that_of_the_last_descriptor(packed_rig: Rig) -> None:
    """
    In the others anything may stand, even no id at all.

    Spec: virtio 1.3, 2.8.6.
    """
    lane = packed_rig.lane(size=4)
    asked = lane.read()
    ids = lane.memory.read(packed(lane).desc + 12, 2)
    assert int.from_bytes(ids, "little") == JUNK
    packed_rig.pump()
    assert asked.used == 513


def test_a_table_is_read_in_order_whatever_its_flags(packed_rig: Rig) -> None:
    """
    Of a table's flags WRITE alone means anything; ids mean nothing.

    Spec: virtio 1.3, 2.8.7.
    """
    lane = packed_rig.lane()
    status = lane.status()
    table = lane.memory.alloc(48)
    for i, (address, length, flags) in enumerate(
        (lane.header(IN), lane.data(bytes(512), WRITE), status)
    ):
        odd = (NEXT, INDIRECT, NEXT | INDIRECT)[i]
        packed(lane).put(i, (address, length, flags | odd, 7), table=table)
    head = lane.chain((table, 48, INDIRECT))
    lane.offer(head)
    packed_rig.pump()
    assert lane.used() == [(head, 513)]
    assert lane.memory.read(status[0], 1) == bytes([Status.OK])


@pytest.mark.parametrize("flags", [2, 3])
def test_event_flags_that_are_not_negotiated_ask_for_calls(packed_rig: Rig, flags: int) -> None:
    """
    DESC without EVENT_IDX, and the reserved value, silence nobody.

    Spec: virtio 1.3, 2.8.10.
    """
    lane = packed_rig.lane()
    lane.memory.write16(packed(lane).driver_event + 2, flags)
    lane.read()
    packed_rig.pump()
    assert lane.rings(lane.call) >= 1
