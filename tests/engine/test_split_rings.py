"""What a split ring does, whichever engine serves it."""

import os

from engine.driver import INDIRECT, WRITE, pattern
from engine.harness import Rig

from vhostblk.spec.virtio_blk import RequestType, Status

IN = RequestType.IN


def test_pop_and_push_go_round_the_ring(rig: Rig) -> None:
    """
    Requests come back in order of completion, past the end of the ring and of the 16-bit index.

    Spec: virtio 1.3, 2.7.6, 2.7.8.
    """
    lane = rig.lane(size=4, run=False)
    lane.queue.set_base(0xFFFE)
    lane.set_avail_idx(0xFFFE)
    lane.set_used_idx(0xFFFE)
    rig.call(lane.queue.run)
    for i in range(6):
        asked = lane.read(sector=i)
        rig.pump()
        assert asked.status == Status.OK
        assert lane.used_idx() == (0xFFFF + i) & 0xFFFF
    rig.park(lane)
    assert lane.queue.base() == 4


def test_run_looks_at_once(rig: Rig) -> None:
    """What was made available before the ring was handed over needs no kick."""
    lane = rig.lane(run=False)
    asked = lane.read()
    assert lane.rings(lane.kick) == 1
    rig.pump()
    assert asked.used is None
    rig.call(lane.queue.run)
    rig.pump()
    assert asked.used == 513


def test_run_goes_on_from_the_used_index_in_memory(rig: Rig) -> None:
    """
    The used index is the ring's own, whatever the base says.

    Spec: vhost-user, "VHOST_USER_SET_VRING_BASE".
    """
    lane = rig.lane(run=False)
    lane.queue.set_base(7)
    lane.set_avail_idx(7)
    lane.set_used_idx(5)
    asked = lane.read()
    rig.call(lane.queue.run)
    rig.pump()
    assert lane.used(since=5) == [(asked.head, 513)]


def test_one_descriptor_rings_work(rig: Rig) -> None:
    """A ring of size 1 serves requests through an indirect table."""
    lane = rig.lane(size=1)
    for _ in range(3):
        status = lane.status()
        lane.next_desc = 0
        head = lane.chain(lane.table(lane.header(IN), lane.data(bytes(512), WRITE), status))
        lane.offer(head)
        rig.pump()
        assert lane.memory.read(status[0], 1) == b"\0"
    assert lane.used_idx() == 3


def test_largest_rings_work(rig: Rig) -> None:
    """A ring of 1024 full of requests is served whole."""
    lane = rig.lane(size=1024)
    asked = [lane.ask(RequestType.GET_ID, room=20) for _ in range(1024 // 3)]
    rig.pump()
    assert all(one.status == Status.OK for one in asked)


def test_rings_may_lie_in_pieces(rig: Rig) -> None:
    """A ring that crosses memory regions is one ring."""
    lane = rig.lane(run=False)
    place = lane.place()
    split = {
        name: [(pieces[0][0], cut), (pieces[0][0] + cut, pieces[0][1] - cut)]
        for (name, pieces), cut in zip(place.items(), (48, 10, 20), strict=True)
    }
    lane.queue.set_ring(size=lane.size, **split)
    rig.call(lane.queue.run)
    for _ in range(12):
        asked = lane.read()
        rig.pump()
        assert asked.status == Status.OK


def test_indirect_tables_may_be_longer_than_the_queue(rig: Rig) -> None:
    """
    A table has its own length, and direct descriptors may come before it.

    Spec: virtio 1.3, 2.7.5.3.
    """
    lane = rig.lane(size=4)
    status = lane.status()
    rooms = [lane.data(bytes(512), WRITE) for _ in range(200)]
    rig.disk[:] = pattern(len(rig.disk))
    head = lane.chain(lane.header(IN), lane.table(*rooms, status))
    lane.offer(head)
    rig.pump()
    assert lane.used() == [(head, 200 * 512 + 1)]
    got = b"".join(lane.memory.read(address, 512) for address, _, _ in rooms)
    assert got == rig.disk[: 200 * 512]


def test_a_table_may_stand_at_any_address(rig: Rig) -> None:
    """Indirect tables need no alignment."""
    lane = rig.lane()
    status = lane.status()
    address, length, _ = lane.table(lane.header(IN), lane.data(bytes(512), WRITE), status)
    odd = lane.memory.alloc(length + 1) + 1
    lane.memory.write(odd, lane.memory.read(address, length))
    lane.offer(lane.chain((odd, length, INDIRECT)))
    rig.pump()
    assert lane.memory.read(status[0], 1) == b"\0"


def test_a_table_flag_of_writing_means_nothing(rig: Rig) -> None:
    """
    The write flag of a descriptor that names a table is ignored.

    Spec: virtio 1.3, 2.7.5.3.2.
    """
    lane = rig.lane()
    status = lane.status()
    address, length, _ = lane.table(lane.header(IN), lane.data(bytes(512), WRITE), status)
    lane.offer(lane.chain((address, length, INDIRECT | WRITE)))
    rig.pump()
    assert lane.memory.read(status[0], 1) == b"\0"


def test_call_once_for_a_batch(rig: Rig) -> None:
    """Requests published together are one interrupt."""
    lane = rig.lane()
    for _ in range(4):
        lane.ask(RequestType.GET_ID, room=20)
    rig.pump()
    assert lane.used_idx() == 4
    assert lane.rings(lane.call) == 1


def test_no_call_when_the_driver_wants_none(rig: Rig) -> None:
    """
    The driver's flag is looked at after the index is published.

    Spec: virtio 1.3, 2.7.7.
    """
    lane = rig.lane()
    lane.no_interrupt(quiet=True)
    lane.read()
    rig.pump()
    assert lane.used_idx() == 1
    assert lane.rings(lane.call) == 0
    lane.no_interrupt(quiet=False)
    lane.read()
    rig.pump()
    assert lane.rings(lane.call) >= 1


def test_a_new_call_fd_is_written_once(rig: Rig) -> None:
    """
    Whoever hands us a new call fd may have missed a call on the old one.

    PROTOCOL, "Kick/call/err fds".
    """
    lane = rig.lane()
    call = os.eventfd(0, os.EFD_NONBLOCK)
    rig.set(lane, lambda queue: queue.set_call(os.dup(call)))
    rig.pump()
    assert os.eventfd_read(call) == 1
    rig.set(lane, lambda queue: queue.set_enabled(enabled=True))
    rig.pump()
    assert lane.rings(call) == 0
    os.close(call)


def test_rings_without_eventfds_work(rig: Rig) -> None:
    """Without a kick fd the ring is polled; without a call fd nobody is called."""
    lane = rig.lane(run=False)
    for set_fd in (lane.queue.set_kick, lane.queue.set_call, lane.queue.set_err):
        set_fd(None)
    rig.call(lane.queue.run)
    asked = lane.read()
    rig.pump()
    assert asked.status == Status.OK
    assert lane.queue.counters().calls == 0


def test_kicks_are_wanted_while_the_ring_rests(rig: Rig) -> None:
    """
    A ring left silenced by another back-end is armed again, and after every look.

    Spec: virtio 1.3, 2.7.10.
    """
    lane = rig.lane(run=False)
    lane.memory.write(lane.used_ring, b"\1\0")
    rig.call(lane.queue.run)
    rig.pump()
    assert lane.used_flags() == 0
    lane.read()
    rig.pump()
    assert lane.used_flags() == 0
