"""What is noted of requests under way, and what a successor makes of it, on either engine."""

from collections.abc import Iterator

import pytest
from engine.conftest import PACKED, SPLIT
from engine.driver import GPA, MEMORY, PENDING
from engine.harness import FEATURES
from engine.region import Region
from engine.tracked import SIZE, Tracked

from vhostblk.engine.api import Busy, Miss
from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_blk import Status
from vhostblk.spec.virtio_ring import F_IN_ORDER

BOTH = SPLIT + PACKED


@pytest.fixture(params=BOTH)
def tracked(request: pytest.FixtureRequest) -> Iterator[Tracked]:
    """Return a tracked lane of an engine and a format."""
    engine, form = request.param.split("-")
    made = Tracked(engine, packed=form == "packed")
    yield made
    made.close()


RELAYS = [
    (first, second)
    for first in BOTH
    for second in BOTH
    if first.split("-")[1] == second.split("-")[1]
]


@pytest.fixture(params=RELAYS, ids="-".join)
def relay(request: pytest.FixtureRequest) -> Iterator[tuple[Tracked, str]]:
    """Return a tracked lane, and which engine comes after it."""
    first, second = request.param
    engine, form = first.split("-")
    made = Tracked(engine, packed=form == "packed")
    yield made, second.split("-")[0]
    made.close()


def test_a_region_nobody_wrote_is_made(tracked: Tracked) -> None:
    """
    Version, size, and the ring's own used index, before anything is taken.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    features, version, desc_num, *rest = tracked.region.header()
    assert (features, version, desc_num) == (0, 1, SIZE)
    if tracked.packed:
        assert rest == [0, 0, 0, 0, 1, 1]
        assert [tracked.region.entry(i).next for i in range(SIZE)] == list(range(1, SIZE + 1))
    else:
        assert rest == [0, 0]
    assert tracked.region.in_flight() == []


def test_what_is_taken_is_noted_until_it_is_given_back(tracked: Tracked) -> None:
    """Names in the order they were taken; the used index is that of what was given back."""
    rig, lane, region = tracked.rig, tracked.lane, tracked.region
    asked = [lane.read(8 * i) for i in range(3)]
    rig.step()
    jobs = rig.take(lane)
    assert region.names() == [one.head for one in asked]
    assert region.used() == (0x8000 if tracked.packed else 0)
    rig.finish(lane, jobs[1])
    rig.step()
    assert region.names() == [asked[0].head, asked[2].head]
    assert region.used() == (0x8003 if tracked.packed else 1)
    rig.finish(lane, jobs[0])
    rig.finish(lane, jobs[2])
    rig.step()
    assert region.names() == []
    assert region.used() == (0x8009 if tracked.packed else 3)


def test_a_successor_takes_them_again_before_what_is_new(relay: tuple[Tracked, str]) -> None:
    """
    In their order, whatever the disk had done with them; then what came meanwhile.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    tracked, successor = relay
    lane = tracked.lane
    asked = [lane.read(8 * i) for i in range(4)]
    tracked.rig.step()
    jobs = tracked.rig.take(lane)
    tracked.rig.finish(lane, jobs[1])
    tracked.rig.step()
    late = lane.write(64)
    tracked.die(successor)
    tracked.rig.step()
    offsets = [job.offset // 4096 for job in tracked.rig.take(tracked.lane)]
    assert offsets == [0, 2, 3, 8]
    assert tracked.region.names() == [asked[i].head for i in (0, 2, 3)] + [late.head]
    for job in list(tracked.rig.jobs):
        tracked.rig.finish(tracked.lane, job)
    tracked.rig.step()
    followed = [tracked.follow(one) for one in (*asked, late)]
    assert [one.status for one in followed] == [Status.OK] * 5
    assert [one.used for one in followed] == [513, 513, 513, 513, 1]
    tracked.rig.park(tracked.lane)
    assert tracked.lane.queue.base() == tracked.lane.ring.base(5)


def test_a_successor_dies_too(relay: tuple[Tracked, str]) -> None:
    """What was taken again and not given back is taken a third time, in the same order."""
    tracked, successor = relay
    asked = [tracked.lane.read(8 * i) for i in range(3)]
    tracked.rig.step()
    tracked.die(successor)
    tracked.rig.step()
    jobs = tracked.rig.take(tracked.lane)
    tracked.rig.finish(tracked.lane, jobs[0])
    tracked.rig.step()
    tracked.die(successor)
    tracked.rig.step()
    assert tracked.region.names() == [one.head for one in asked[1:]]
    tracked.rig.pump()
    assert [tracked.follow(one).used for one in asked] == [513] * 3
    new = tracked.lane.read()
    tracked.rig.pump()
    assert new.used == 513


def test_nothing_is_lost_on_the_way_round(relay: tuple[Tracked, str]) -> None:
    """A ring goes round and round, with deaths at odd places."""
    tracked, successor = relay
    for i in range(4 * SIZE):
        asked = tracked.lane.write(i, i.to_bytes(2, "little") * 256)
        if i % 5 == 0:
            tracked.rig.step()
            tracked.die(successor)
            asked = tracked.follow(asked)
        tracked.rig.pump()
        assert (asked.status, asked.used) == (Status.OK, 1)
        tracked.rig.memory.reset()
    assert tracked.rig.disk[: 4 * SIZE * 512 : 512] == bytes(range(4 * SIZE))


def test_a_drain_takes_what_a_predecessor_left(tracked: Tracked) -> None:
    """
    Of a queue that is disabled, too; what is new stays where it is.

    PROTOCOL, "GET_VRING_BASE": all are disabled before it, and the region is not migrated.
    """
    asked = tracked.lane.read()
    tracked.rig.step()
    new = tracked.lane.read(8)
    tracked.die("reference", run=False)
    queue = tracked.lane.queue
    tracked.rig.call(lambda: queue.set_enabled(enabled=False))
    tracked.rig.call(queue.run)
    drain = tracked.rig.start(queue.drained(seconds=60))
    tracked.rig.pump()
    assert tracked.rig.wait(drain) == 0
    assert tracked.follow(asked).used == 513
    assert tracked.follow(new).status == PENDING
    assert queue.base() == tracked.lane.ring.base(1)


def test_what_is_asked_for_is_asked_for_again(tracked: Tracked) -> None:
    """A chain of a predecessor's whose memory is not known waits, and all behind it."""
    first, second = tracked.lane.read(), tracked.lane.read(8)
    tracked.rig.step()
    tracked.die("reference", run=False)
    missed: list[Miss] = []
    hole = first.data_at // 4096 * 4096
    rows = [
        tracked.rig.memory.segment(GPA, hole - GPA),
        tracked.rig.memory.segment(hole + 4096, GPA + MEMORY - hole - 4096),
    ]
    queue = tracked.lane.queue
    tracked.rig.call(lambda: queue.set_space(rows))
    tracked.rig.call(lambda: queue.set_ask(missed.append))
    tracked.rig.call(queue.run)
    tracked.rig.pump()
    assert len(missed) == 1
    assert tracked.rig.jobs == []
    assert tracked.region.names() == [first.head, second.head]
    tracked.rig.set(tracked.lane, lambda queue: queue.set_space([tracked.rig.memory.segment()]))
    tracked.rig.pump()
    assert [tracked.follow(one).used for one in (first, second)] == [513, 513]


@pytest.mark.parametrize("packed", [False, True])
def test_what_waits_for_its_turn_is_in_flight(*, packed: bool) -> None:
    """With IN_ORDER a request that has ended is taken again, until the one before it has."""
    tracked = Tracked("reference", packed=packed, features=FEATURES | F_IN_ORDER)
    asked = [tracked.lane.write(8 * i) for i in range(2)]
    tracked.rig.step()
    jobs = tracked.rig.take(tracked.lane)
    tracked.rig.finish(tracked.lane, jobs[1])
    tracked.rig.step()
    assert tracked.region.names() == [one.head for one in asked]
    tracked.die("reference")
    tracked.rig.pump()
    assert [name for name, _ in tracked.lane.used()] == [one.head for one in asked]
    assert tracked.region.names() == []
    tracked.close()


def test_what_is_noted_is_not_begun_anew(tracked: Tracked) -> None:
    """A base that is set while requests are under way would have them taken twice."""
    tracked.lane.read()
    tracked.rig.step()
    tracked.rig.park(tracked.lane)
    with pytest.raises(Busy):
        tracked.rig.call(lambda: tracked.lane.queue.set_base(0))
    tracked.rig.serve()
    tracked.rig.drain(tracked.lane)
    base = tracked.lane.queue.base()
    tracked.rig.call(lambda: tracked.lane.queue.set_base(base))
    tracked.rig.call(tracked.lane.queue.run)
    asked = tracked.lane.read()
    tracked.rig.pump()
    assert asked.used == 513


def test_a_ring_that_was_reset_has_a_new_region(tracked: Tracked) -> None:
    """
    When all was given back a base may be another ring's: what was noted of the old one is over.

    Spec: virtio 1.3, 2.6.1.
    """
    for _ in range(3):
        tracked.lane.read()
        tracked.rig.pump()
    tracked.rig.drain(tracked.lane)
    base = tracked.lane.ring.restart(8, 0, 0)
    queue = tracked.lane.queue

    def reset() -> None:
        queue.set_base(base)
        queue.set_ring(size=8, **tracked.lane.place())
        queue.set_inflight(tracked.region.piece, size=SIZE)
        queue.run()

    tracked.rig.call(reset)
    asked = tracked.lane.read()
    tracked.rig.step()
    assert tracked.region.names() == [asked.head]
    tracked.rig.pump()
    assert asked.used == 513


def test_without_a_region_nothing_is_noted(tracked: Tracked) -> None:
    """A region that is taken away is not written any more, and requests go on."""
    tracked.rig.set(tracked.lane, lambda queue: queue.set_inflight(None, size=0))
    before = bytes(tracked.region.bytes)
    asked = tracked.lane.read()
    tracked.rig.pump()
    assert asked.used == 513
    assert bytes(tracked.region.bytes) == before


@pytest.mark.parametrize("entries", [0, SIZE - 1, 32769])
def test_a_region_for_another_size_is_refused(tracked: Tracked, entries: int) -> None:
    """It is for as many descriptors as the ring has, or more, but no more than there can be."""
    lane = tracked.rig.lane(run=False)

    def start() -> None:
        lane.queue.set_inflight(tracked.region.piece, size=entries)
        lane.queue.run()

    with pytest.raises(VhostBlkError):
        tracked.rig.call(start)


def test_a_region_that_is_too_short_is_refused(tracked: Tracked) -> None:
    """One byte less than header and entries take is no region."""
    lane = tracked.rig.lane(run=False)
    host, length = tracked.region.piece

    def start() -> None:
        lane.queue.set_inflight((host, length - 1), size=SIZE)
        lane.queue.run()

    with pytest.raises(VhostBlkError):
        tracked.rig.call(start)


def test_a_region_may_be_longer_than_the_ring(tracked: Tracked) -> None:
    """A driver may take a smaller ring than the front-end has room for."""
    region = Region(3 * SIZE, packed=tracked.packed)
    lane = tracked.rig.lane(region=region)
    for _ in range(SIZE):
        asked = lane.read()
        tracked.rig.step()
        assert region.names() == [asked.head]
        tracked.rig.pump()
        assert asked.used == 513
    tracked.rig.wait(lane.queue.close())
    tracked.rig.lanes.remove(lane)
