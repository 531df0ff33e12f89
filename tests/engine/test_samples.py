"""What drivers write in their descriptors is recorded; going outside has its outcome."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from engine.driver import GPA, INDIRECT, MEMORY, PENDING, WRITE, Asked, Lane
from engine.harness import Rig

from vhostblk.engine.api import Busy, Fault
from vhostblk.engine.reason import Reason
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.space import Access
from vhostblk.spec.virtio_blk import RequestType, Status

OUTSIDE = GPA + MEMORY - 65536
"""From here on memory is outside, where a test says so."""
ROOM = 8192
NOTED = Access.READ | Access.WRITE | Access.NOTED
DENIED = Access(0)


@dataclass
class Sampled:
    """A queue whose chains are sampled."""

    rig: Rig
    lane: Lane
    told: int = 0

    def begin(self, first: int = 0, every: int = 0) -> None:
        def tell() -> None:
            self.told += 1

        self.rig.set(
            self.lane,
            lambda queue: queue.set_sampling(first=first, every=every, on_samples=tell),
        )

    def fence(self, access: Access) -> None:
        """Give *access* to what is outside."""
        inside = self.rig.memory.segment(GPA, OUTSIDE - GPA)
        outside = self.rig.memory.segment(OUTSIDE, 65536, int(access))
        self.rig.set(self.lane, lambda queue: queue.set_space([inside, outside]))

    def ask(self, parts: Callable[[Lane], list[tuple[int, int, int]]]) -> Asked:
        """Make a write available whose parts behind the header are *parts*; let it be served."""
        lane = self.lane
        all_parts = [lane.header(RequestType.OUT), *parts(lane)]
        lane.memory.write(all_parts[-1][0], bytes([PENDING]))
        head = lane.chain(*all_parts)
        asked = Asked(lane, head, all_parts[-1][0], since=len(lane.used()))
        lane.offer(head)
        self.pump()
        return asked

    def ask_outside(self) -> Asked:
        return self.ask(lambda lane: [(OUTSIDE, 512, 0), lane.status()])

    def ask_inside(self, n: int = 1) -> None:
        for _ in range(n):
            self.lane.write()
            self.pump()

    def pump(self) -> None:
        self.rig.pump()

    def take(self) -> list[Sample]:
        return self.lane.queue.samples()


@pytest.fixture
def sampled(rig: Rig, lane: Lane) -> Sampled:
    return Sampled(rig, lane)


def _shape(samples: list[Sample]) -> list[tuple[int, int, Role, bool]]:
    return [(one.chain, one.length, one.role, one.outside) for one in samples]


def test_a_chain_is_sampled_as_the_driver_wrote_it(sampled: Sampled) -> None:
    """Every descriptor: its address, length and direction, and the number of its chain."""
    sampled.begin(first=2)
    asked = sampled.lane.read(length=1024)
    sampled.lane.write(out=b"w" * 512)
    sampled.pump()
    samples = sampled.take()
    assert _shape(samples) == [
        (0, 16, Role.READABLE, False),
        (0, 1024, Role.WRITABLE, False),
        (0, 1, Role.WRITABLE, False),
        (1, 16, Role.READABLE, False),
        (1, 512, Role.READABLE, False),
        (1, 1, Role.WRITABLE, False),
    ]
    assert (samples[1].iova, samples[2].iova) == (asked.data_at, asked.status_at)
    assert sampled.told == 1
    assert sampled.take() == []


def test_a_table_is_sampled_behind_what_is_in_it(sampled: Sampled) -> None:
    """An indirect table has a role of its own."""
    sampled.begin(first=1)
    lane = sampled.lane
    table = lane.table(lane.header(RequestType.FLUSH), lane.status())
    lane.offer(lane.chain(table))
    sampled.pump()
    samples = sampled.take()
    assert [one.role for one in samples] == [Role.READABLE, Role.WRITABLE, Role.TABLE]
    assert (samples[2].iova, samples[2].length) == table[:2]


def test_one_chain_in_so_many_is_sampled(sampled: Sampled) -> None:
    """All of the first, then the third of every three."""
    sampled.begin(first=2, every=3)
    sampled.ask_inside(9)
    assert sorted({one.chain for one in sampled.take()}) == [0, 1, 4, 7]


def test_without_sampling_nothing_is_recorded(sampled: Sampled) -> None:
    """A queue records what it was told to."""
    sampled.ask_inside()
    sampled.begin()
    sampled.ask_inside(3)
    assert (sampled.take(), sampled.told) == ([], 0)


def test_a_new_count_forgets_the_old_one(sampled: Sampled) -> None:
    """Chains are numbered from 0 again, and old samples are gone."""
    sampled.begin(first=5)
    sampled.ask_inside(3)
    sampled.begin(first=1)
    sampled.ask_inside()
    assert {one.chain for one in sampled.take()} == {0}
    assert sampled.told == 1


def test_the_first_chains_wait_for_room(sampled: Sampled) -> None:
    """None of the first is lost: the queue pops nothing until samples were taken."""
    sampled.begin(first=1000)
    lane = sampled.lane
    table = lane.table(lane.header(RequestType.FLUSH), *([lane.status()] * 511))
    for _ in range(9):  # of 513 samples; the ninth finds half of the room used
        lane.offer(lane.chain(table))
        sampled.pump()
    assert len(lane.used()) == 8
    assert sampled.told == 1
    assert len(sampled.take()) == 8 * 513
    sampled.pump()
    assert len(lane.used()) == 9
    assert {one.chain for one in sampled.take()} == {8}


def test_what_finds_no_room_is_dropped(sampled: Sampled) -> None:
    """Behind the first chains sampling stops nothing, and is told of at half of the room."""
    sampled.begin(every=1)
    lane = sampled.lane
    table = lane.table(lane.header(RequestType.FLUSH), *([lane.status()] * 1023))
    for n in range(10):
        lane.offer(lane.chain(table))
        sampled.pump()
        assert sampled.told == (n >= 3)
    assert len(lane.used()) == 10
    assert len(sampled.take()) == ROOM


def test_a_noted_request_is_served_counted_and_sampled(sampled: Sampled) -> None:
    """Of a chain that is not sampled only what is outside is."""
    sampled.fence(NOTED)
    sampled.begin()
    sampled.ask_inside()
    asked = sampled.ask_outside()
    assert asked.status == Status.OK
    assert _shape(sampled.take()) == [(1, 512, Role.READABLE, True)]
    assert sampled.lane.queue.counters().outside == 1


def test_a_denied_request_fails_counted_and_sampled(sampled: Sampled) -> None:
    """Its data are not looked at, its status says so."""
    sampled.fence(DENIED)
    sampled.begin(first=1)
    assert sampled.ask_outside().status == Status.IOERR
    assert [one.outside for one in sampled.take()] == [False, True, False]
    assert sampled.lane.queue.counters().outside == 1


def test_outside_is_told_once_until_taken(sampled: Sampled) -> None:
    """A guest that is outside all the time floods nobody."""
    sampled.fence(NOTED)
    sampled.begin()
    for _ in range(20):
        sampled.ask_outside()
    assert sampled.told == 1
    assert len(sampled.take()) == 20
    sampled.ask_outside()
    assert sampled.told == 2


def test_going_where_it_is_fatal_breaks_the_queue(sampled: Sampled) -> None:
    """Nothing is executed, and the fault names the chain and the first address."""
    sampled.fence(Access.FATAL)
    sampled.begin()
    sampled.ask_inside()
    asked = sampled.ask(lambda lane: [(OUTSIDE - 100, 512, 0), lane.status()])
    fault = Fault(Reason.OUTSIDE.text, sampled.lane.ring.begins(asked.head), OUTSIDE)
    assert sampled.lane.broken == [fault]
    assert asked.status == PENDING
    assert _shape(sampled.take()) == [(1, 512, Role.READABLE, True)]
    assert sampled.lane.queue.counters().outside == 1


def test_fatal_wins(sampled: Sampled) -> None:
    """Whatever else is allowed there, and whether or not the queue asks for what is missing."""
    sampled.fence(Access.FATAL | Access.READ)
    sampled.rig.set(sampled.lane, lambda queue: queue.set_ask(lambda _: None))
    sampled.ask_outside()
    fault = sampled.lane.queue.fault()
    assert fault is not None
    assert fault.reason == Reason.OUTSIDE.text


def test_a_noted_segment_is_asked_for_like_another(sampled: Sampled) -> None:
    """NOTED says nothing of what is missing: write access is still asked for."""
    missed: list[object] = []
    sampled.fence(Access.READ | Access.NOTED)
    sampled.rig.set(sampled.lane, lambda queue: queue.set_ask(missed.append))
    sampled.ask(lambda _: [(OUTSIDE, 512, WRITE), (OUTSIDE + 512, 1, WRITE)])
    assert len(missed) == 1
    assert sampled.lane.queue.fault() is None


@pytest.mark.parametrize(
    ("access", "reason"),
    [(Access.FATAL, Reason.OUTSIDE), (DENIED, Reason.TABLE_ADDRESS)],
)
def test_a_table_outside_breaks_the_queue(sampled: Sampled, access: Access, reason: Reason) -> None:
    """What cannot be read is no chain; the table is sampled all the same."""
    sampled.fence(access)
    sampled.begin()
    lane = sampled.lane
    lane.offer(lane.chain((OUTSIDE, 32, 4)))
    sampled.pump()
    assert [one.reason for one in lane.broken if one] == [reason.text]
    assert _shape(sampled.take()) == [(0, 32, Role.TABLE, True)]


@pytest.mark.parametrize(
    ("access", "reason"),
    [(Access.FATAL, Reason.OUTSIDE), (DENIED, Reason.STATUS_ADDRESS)],
)
def test_a_status_outside_breaks_the_queue(
    sampled: Sampled, access: Access, reason: Reason
) -> None:
    """Also of a chain that is no request, whose descriptors are not looked at."""
    sampled.fence(access)
    sampled.begin()
    sampled.ask(lambda lane: [(lane.memory.alloc(16), 0, 0), (OUTSIDE, 1, WRITE)])
    assert [one.reason for one in sampled.lane.broken if one] == [reason.text]
    assert _shape(sampled.take()) == [(0, 1, Role.WRITABLE, True)]


def test_a_status_that_is_noted_is_counted_once(sampled: Sampled) -> None:
    """The request is served; one chain is one in the count."""
    sampled.fence(NOTED)
    sampled.begin()
    asked = sampled.ask(lambda _: [(OUTSIDE, 512, 0), (OUTSIDE + 512, 1, WRITE)])
    assert asked.status == Status.OK
    assert sampled.lane.queue.counters().outside == 1
    assert [one.length for one in sampled.take()] == [512, 1]


def test_slots_are_held_until_the_head_is_given_back(sampled: Sampled) -> None:
    """Header, table, data and status each in slots of their own, as swiotlb gives them out."""
    lane, rig = sampled.lane, sampled.rig
    data = lane.data(b"d" * 4096)
    table = lane.table(lane.header(RequestType.OUT), data, lane.status())
    lane.offer(lane.chain(table))
    rig.step()
    counters = lane.queue.counters()
    assert (counters.slots, counters.slots_high) == (5, 5)
    assert (counters.descriptors, counters.segment_max) == (3, 4096)
    sampled.pump()
    counters = lane.queue.counters()
    assert (counters.slots, counters.slots_high) == (0, 5)


def test_a_cancelled_request_holds_its_slots_no_longer(sampled: Sampled) -> None:
    """The driver has its head back, though the disk is still at it."""
    lane, rig = sampled.lane, sampled.rig
    lane.write()
    rig.step()
    (job,) = rig.take(lane)
    assert lane.queue.counters().slots == 3
    assert rig.drain(lane, seconds=0) == 1
    assert lane.queue.counters().slots == 0
    rig.finish(lane, job)
    rig.step()
    assert lane.queue.counters().slots == 0


def test_a_broken_queue_holds_no_slots(sampled: Sampled) -> None:
    """What is under way when a ring breaks is never given back, and forgotten."""
    lane, rig = sampled.lane, sampled.rig
    lane.write()
    rig.step()
    lane.offer_nobody()
    sampled.pump()
    assert lane.queue.fault() is not None
    assert lane.queue.counters().slots == 0


def test_a_condemned_queue_is_broken_until_it_starts_anew(sampled: Sampled) -> None:
    """Err eventfd, fault and its reason are as of a ring that breaks; a new base ends it."""
    lane, rig = sampled.lane, sampled.rig
    sampled.ask_inside()
    rig.park(lane)
    rig.call(lambda: lane.queue.condemn("for a reason"))
    rig.call(lambda: lane.queue.condemn("for another"))
    rig.step()
    assert lane.broken == [Fault("for a reason", lane.ring.at(1), 0)]
    assert lane.rings(lane.err) == 1
    rig.call(lane.queue.run)
    lane.write()
    sampled.pump()
    assert len(lane.used()) == 1
    rig.set(lane, lambda queue: queue.set_base(lane.ring.base(1)))
    sampled.pump()
    assert lane.queue.fault() is None
    assert len(lane.used()) == 2


def test_a_running_queue_is_not_condemned(sampled: Sampled) -> None:
    """Nor is its sampling changed: the ring is its worker's."""
    queue = sampled.lane.queue
    with pytest.raises(Busy):
        queue.condemn("now")
    with pytest.raises(Busy):
        queue.set_sampling(first=1, every=0, on_samples=None)
    assert queue.fault() is None


def test_a_closed_queue_is_known_by_what_it_was(sampled: Sampled) -> None:
    """Nobody who asks late meets freed memory: its counters stay, samples there are none."""
    sampled.begin(first=1)
    sampled.ask_inside()
    sampled.take()
    sampled.rig.park(sampled.lane)
    queue = sampled.lane.queue
    sampled.rig.call(lambda: queue.condemn("for a reason"))
    before = queue.counters()
    sampled.rig.wait(queue.close())
    assert sampled.take() == []
    assert queue.counters() == before
    assert queue.fault() == Fault("for a reason", sampled.lane.ring.at(1), 0)


def test_what_told_of_nothing_does_not_stop_the_next(sampled: Sampled) -> None:
    """The first chains are complete, there is no sample to take: later ones are told of still."""
    lane = sampled.lane
    sampled.fence(NOTED)
    sampled.begin(first=1)
    lane.offer(lane.chain((GPA, 0, INDIRECT)))
    sampled.pump()
    assert sampled.told == 1
    assert sampled.take() == []
    sampled.rig.set(lane, lambda queue: queue.set_base(lane.ring.base(1)))
    sampled.ask_outside()
    assert sampled.told == 2
    assert sampled.take() != []
