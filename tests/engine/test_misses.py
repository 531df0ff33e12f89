"""Queues that ask for what no segment gives, on either engine."""

from engine.driver import GPA, MEMORY, Asked, Lane, linked
from engine.harness import Rig

from vhostblk.engine.api import Miss
from vhostblk.memory.space import Access, Segment
from vhostblk.spec.virtio_blk import RequestType, Status

PAGE = 4096


class Asking:
    """
    A lane whose queue asks; its memory is known but for a hole.

    Args:
        rig: Where.
        hole: Guest address of what is not known.
        length: Bytes of it.
    """

    def __init__(self, rig: Rig, hole: int, length: int = PAGE) -> None:
        self.rig = rig
        self.lane = rig.lane()
        self.missed: list[Miss] = []
        self.punch(hole, length)

    def punch(self, hole: int, length: int, access: int = 0) -> None:
        """Take the ring back, and give it with a hole; *access* of it is left."""
        memory = self.rig.memory
        rows = [memory.segment(GPA, hole - GPA)]
        if access:
            rows.append(memory.segment(hole, length, access))
        rows.append(memory.segment(hole + length, GPA + MEMORY - hole - length))

        def change() -> None:
            self.lane.queue.set_space(rows)
            self.lane.queue.set_ask(self.missed.append)

        self.rig.set(self.lane, lambda _: change())

    def answer(self) -> None:
        """Tell everything."""
        segments = [self.rig.memory.segment()]
        self.rig.set(self.lane, lambda queue: queue.set_space(segments))
        self.rig.pump()

    def deny(self, iova: int, length: int) -> None:
        self.rig.set(self.lane, lambda queue: queue.deny(iova, length))
        self.rig.pump()


def write_at(lane: Lane, address: int, length: int) -> Asked:
    """Make a write available whose data is at *address*."""
    status = lane.status()
    head = lane.chain(lane.header(RequestType.OUT), (address, length, 0), status)
    asked = Asked(lane, head, status[0], since=len(lane.used()))
    lane.offer(head)
    return asked


HOLE = GPA + MEMORY - 8 * PAGE
"""An address no allocation of these tests reaches."""


def test_miss_names_range_and_chain(rig: Rig) -> None:
    """The first address that is not known, the bytes needed from there, the avail index."""
    asking = Asking(rig, HOLE)
    first = asking.lane.read()
    asked = write_at(asking.lane, HOLE - PAGE, 3 * PAGE)
    rig.pump()
    assert first.status == Status.OK
    assert asked.used is None
    assert asking.missed == [Miss(HOLE, 2 * PAGE, Access.READ, asking.lane.ring.at(1))]
    asking.answer()
    assert asked.status == Status.OK
    assert asked.used == 1
    assert len(asking.missed) == 1


def test_waiting_chain_keeps_its_place(rig: Rig) -> None:
    """Its head is not consumed, what is behind it waits, what is in flight completes."""
    asking = Asking(rig, HOLE)
    lane = asking.lane
    before = lane.read()
    rig.step()
    asked = write_at(lane, HOLE, 512)
    behind = lane.read()
    rig.step()
    assert asking.missed
    assert rig.serve() == 1
    rig.step()
    assert before.status == Status.OK
    assert (asked.used, behind.used) == (None, None)
    rig.park(lane)
    assert lane.queue.base() == lane.ring.base(1)
    rig.call(lane.queue.run)
    rig.pump()
    assert len(asking.missed) == 1
    asking.answer()
    assert (asked.status, behind.status) == (Status.OK, Status.OK)


def test_drain_is_legal_while_a_chain_waits(rig: Rig) -> None:
    """A stop waits for no translation; the base is that of the chain that was not taken."""
    asking = Asking(rig, HOLE)
    write_at(asking.lane, HOLE, 512)
    rig.pump()
    assert rig.drain(asking.lane) == 0
    assert asking.lane.queue.base() == asking.lane.ring.base(0)


def test_miss_repeats_where_the_answer_does_not_help(rig: Rig) -> None:
    """Mapped without the right is asked for like what is not mapped."""
    asking = Asking(rig, HOLE)
    asked = write_at(asking.lane, HOLE, 512)
    rig.pump()
    asking.punch(HOLE, PAGE, Access.WRITE)
    rig.pump()
    assert asking.missed == 2 * [Miss(HOLE, 512, Access.READ, 0)]
    asking.answer()
    assert asked.status == Status.OK


def test_denied_request_fails_alone(rig: Rig) -> None:
    """IOERR for the chain that waited; the next one that needs the range asks again."""
    asking = Asking(rig, HOLE)
    asked = write_at(asking.lane, HOLE, 512)
    rig.pump()
    asking.deny(HOLE, PAGE)
    assert (asked.status, asked.used) == (Status.IOERR, 1)
    again = write_at(asking.lane, HOLE, 512)
    rig.pump()
    assert len(asking.missed) == 2
    asking.answer()
    assert again.status == Status.OK
    assert asking.lane.queue.counters().errors == 1


def test_denied_status_breaks(rig: Rig) -> None:
    """Completing it could read as success."""
    asking = Asking(rig, HOLE)
    lane = asking.lane
    lane.offer(lane.chain(lane.header(RequestType.FLUSH), (HOLE, 1, 2)))
    rig.pump()
    assert asking.missed == [Miss(HOLE, 1, Access.WRITE, 0)]
    asking.deny(HOLE, PAGE)
    fault = lane.queue.fault()
    assert fault is not None
    assert fault.reason == "status byte that may not be written"


def test_indirect_table_is_asked_for_before_its_data(rig: Rig) -> None:
    """First the table, then what it names."""
    asking = Asking(rig, HOLE)
    lane = asking.lane
    header, status = lane.header(RequestType.OUT), lane.status()
    lane.ring.lay_table(HOLE, linked([header, (HOLE + 1024, 512, 0), status]))
    asked = Asked(lane, lane.chain((HOLE, 48, 4)), status[0])
    lane.offer(asked.head)
    rig.pump()
    assert asking.missed == [Miss(HOLE, 48, Access.READ, 0)]
    asking.punch(HOLE + 1024, 512)
    rig.pump()
    assert asking.missed[1:] == [Miss(HOLE + 1024, 512, Access.READ, 0)]
    asking.answer()
    assert asked.status == Status.OK


def test_segment_without_access_is_not_asked_for(rig: Rig) -> None:
    """It is an answer already."""
    asking = Asking(rig, HOLE)
    memory = rig.memory
    rows = [memory.segment(GPA, HOLE - GPA), Segment(HOLE, PAGE, memory.at(HOLE), Access(0))]
    rig.set(asking.lane, lambda queue: queue.set_space(rows))
    asked = write_at(asking.lane, HOLE, 512)
    rig.pump()
    assert asked.status == Status.IOERR
    assert not asking.missed


def test_answer_before_the_news_is_told(rig: Rig) -> None:
    """A miss that was answered for another reason is not told any more."""
    asking = Asking(rig, HOLE)
    asked = write_at(asking.lane, HOLE, 512)
    rig.engine.step()
    asking.answer()
    assert asked.status == Status.OK
    assert len(asking.missed) <= 1


def test_queue_that_stops_asking_denies(rig: Rig) -> None:
    """Without a callback an unknown address is out of reach, as ever."""
    asking = Asking(rig, HOLE)
    rig.set(asking.lane, lambda queue: queue.set_ask(None))
    asked = write_at(asking.lane, HOLE, 512)
    rig.pump()
    assert asked.status == Status.IOERR
    assert not asking.missed
