"""What only a split ring does, whichever engine serves it."""

import pytest
from engine.driver import WRITE, pattern
from engine.driver_split import split
from engine.harness import Rig

from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_blk import RequestType, Status

IN = RequestType.IN


def test_pop_and_push_go_round_the_ring(split_rig: Rig) -> None:
    """
    Requests come back in order of completion, past the end of the ring and of the 16-bit index.

    Spec: virtio 1.3, 2.7.6, 2.7.8.
    """
    lane = split_rig.lane(size=4, run=False)
    lane.queue.set_base(0xFFFE)
    split(lane).restart(4, 0xFFFE, 0xFFFE)
    split_rig.call(lane.queue.run)
    for i in range(6):
        asked = lane.read(sector=i)
        split_rig.pump()
        assert asked.status == Status.OK
        assert split(lane).used_idx() == (0xFFFF + i) & 0xFFFF
    split_rig.park(lane)
    assert lane.queue.base() == lane.ring.base(6)


def test_run_goes_on_from_the_used_index_in_memory(split_rig: Rig) -> None:
    """
    The used index is the ring's own, whatever the base says.

    Spec: vhost-user, "VHOST_USER_SET_VRING_BASE".
    """
    lane = split_rig.lane(run=False)
    lane.queue.set_base(7)
    split(lane).restart(16, 7, 5)
    asked = lane.read()
    split_rig.call(lane.queue.run)
    split_rig.pump()
    assert lane.used() == [(asked.head, 513)]


@pytest.mark.parametrize("size", [3, 12, 1023])
def test_a_split_ring_is_a_power_of_two(split_rig: Rig, size: int) -> None:
    """
    Others never run.

    Spec: virtio 1.3, 2.7.
    """
    lane = split_rig.lane(size=1024, run=False)

    def start() -> None:
        lane.queue.set_ring(size=size, **lane.place())
        lane.queue.run()

    with pytest.raises(VhostBlkError):
        split_rig.call(start)


def test_direct_descriptors_may_come_before_a_table(split_rig: Rig) -> None:
    """
    A chain may be some direct descriptors and then a table.

    Spec: virtio 1.3, 2.7.5.3.2.
    """
    lane = split_rig.lane(size=4)
    status = lane.status()
    rooms = [lane.data(bytes(512), WRITE) for _ in range(200)]
    split_rig.disk[:] = pattern(len(split_rig.disk))
    head = lane.chain(lane.header(IN), lane.table(*rooms, status))
    lane.offer(head)
    split_rig.pump()
    assert lane.used() == [(head, 200 * 512 + 1)]
    got = b"".join(lane.memory.read(address, 512) for address, _, _ in rooms)
    assert got == split_rig.disk[: 200 * 512]
