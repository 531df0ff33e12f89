"""What a ring does, of either format and whichever engine serves it."""

import os

from engine.driver import INDIRECT, WRITE, pattern
from engine.harness import Rig

from vhostblk.spec.virtio_blk import RequestType, Status

IN = RequestType.IN


def test_a_ring_goes_round(rig: Rig) -> None:
    """Requests of three descriptors in a ring of eight come back again and again."""
    lane = rig.lane(size=8)
    for i in range(12):
        asked = lane.read(sector=i)
        rig.pump()
        assert (asked.status, asked.used) == (Status.OK, 513)
    rig.park(lane)
    assert lane.queue.base() == lane.ring.base(12)


def test_chains_come_back_as_they_end(rig: Rig) -> None:
    """
    Who ends first comes back first, whoever was first in the ring.

    Spec: virtio 1.3, 2.7.8, 2.8.
    """
    lane = rig.lane()
    asked = [lane.read(0), lane.write(8), lane.read(16)]
    rig.step()
    jobs = rig.take(lane)
    for n in (2, 0, 1):
        rig.finish(lane, jobs[n])
        rig.step()
    assert lane.used() == [(asked[2].head, 513), (asked[0].head, 513), (asked[1].head, 1)]


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


def test_one_descriptor_rings_work(rig: Rig) -> None:
    """A ring of size 1 serves requests through an indirect table."""
    lane = rig.lane(size=1)
    for i in range(3):
        status = lane.status()
        head = lane.chain(lane.table(lane.header(IN), lane.data(bytes(512), WRITE), status))
        lane.offer(head)
        rig.pump()
        assert lane.memory.read(status[0], 1) == b"\0"
        assert lane.used()[i:] == [(head, 513)]


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
    cuts = {"desc": 48} if rig.packed else {"desc": 48, "avail": 10, "used": 20}
    for name, cut in cuts.items():
        ((host, length),) = place[name]
        place[name] = [(host, cut), (host + cut, length - cut)]
    lane.queue.set_ring(size=lane.size, **place)
    rig.call(lane.queue.run)
    for _ in range(12):
        asked = lane.read()
        rig.pump()
        assert asked.status == Status.OK


def test_indirect_tables_may_be_longer_than_the_queue(rig: Rig) -> None:
    """
    A table has its own length.

    Spec: virtio 1.3, 2.7.5.3, 2.8.7.
    """
    lane = rig.lane(size=4)
    status = lane.status()
    rooms = [lane.data(bytes(512), WRITE) for _ in range(200)]
    rig.disk[:] = pattern(len(rig.disk))
    head = lane.chain(lane.table(lane.header(IN), *rooms, status))
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

    Spec: virtio 1.3, 2.7.5.3.2, 2.8.7.
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
        lane.read()
    rig.step()
    rig.finish_together(lane)
    rig.pump()
    assert len(lane.used()) == 4
    assert lane.rings(lane.call) == 1


def test_no_call_when_the_driver_wants_none(rig: Rig) -> None:
    """
    The driver's flag is looked at after the index is published.

    Spec: virtio 1.3, 2.7.7, 2.8.10.
    """
    lane = rig.lane()
    lane.ring.no_interrupt(quiet=True)
    lane.read()
    rig.pump()
    assert len(lane.used()) == 1
    assert lane.rings(lane.call) == 0
    lane.ring.no_interrupt(quiet=False)
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

    Spec: virtio 1.3, 2.7.10, 2.8.10.
    """
    lane = rig.lane(run=False)
    lane.ring.silence()
    rig.call(lane.queue.run)
    rig.pump()
    assert lane.ring.wants_kicks()
    lane.read()
    rig.pump()
    assert lane.ring.wants_kicks()
