"""Inflight regions that no back-end has left, on either engine: the queue breaks, no more."""

from collections.abc import Iterator

import pytest
from engine.conftest import PACKED, SPLIT
from engine.driver import NEXT
from engine.region import Region
from engine.tracked import SIZE, Tracked
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason

HEADER = 0xFFFF
"""Where a fault is that is in no entry."""

BOTH = SPLIT + PACKED


@pytest.fixture
def tracked(request: pytest.FixtureRequest) -> Iterator[Tracked]:
    """Return a tracked lane with two requests under way."""
    engine, form = request.param.split("-")
    made = Tracked(engine, packed=form == "packed")
    made.lane.read(0)
    made.lane.read(8)
    made.rig.step()
    yield made
    made.close()


def spoil(tracked: Tracked, *pokes: tuple[int, int, int]) -> Fault | None:
    """Return what becomes of a successor that finds (offset, bytes, value) in the region."""
    engine = tracked.rig.engine.name
    tracked.die(engine, run=False)
    for offset, length, value in pokes:
        tracked.region.poke(offset, value.to_bytes(length, "little"))
    tracked.rig.call(tracked.lane.queue.run)
    tracked.rig.step()
    fault = tracked.lane.queue.fault()
    assert tracked.lane.broken == ([fault] if fault else [])
    if fault:
        assert tracked.rig.take(tracked.lane) == []
        assert tracked.lane.used() == []
    return fault


def malformed(index: int, value: int) -> Fault:
    return Fault(Reason.INFLIGHT.text, index, value)


@pytest.mark.parametrize("tracked", BOTH, indirect=True)
@pytest.mark.parametrize(
    ("offset", "length", "value"), [(0, 8, 1), (8, 2, 2), (10, 2, SIZE + 1), (10, 2, 0)]
)
def test_a_header_that_we_do_not_know_breaks(
    tracked: Tracked, offset: int, length: int, value: int
) -> None:
    """
    Features, version and size of a region are ours, or we do not touch it.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    assert spoil(tracked, (offset, length, value)) == malformed(HEADER, value)


@pytest.mark.parametrize("tracked", SPLIT, indirect=True)
def test_a_last_batch_out_of_the_ring_breaks(tracked: Tracked) -> None:
    """Its list says what the driver has; one that leads out of the ring says nothing."""
    used_idx = (14, 2, 0xFFFE)  # two were given back
    assert spoil(tracked, used_idx, (12, 2, SIZE)) == malformed(HEADER, SIZE)


@pytest.mark.parametrize("tracked", SPLIT, indirect=True)
def test_a_last_batch_that_comes_round_is_none(tracked: Tracked) -> None:
    """A region whose used index nobody set before has no last batch: all is taken again."""
    assert spoil(tracked, (14, 2, 0xFFFE), (12, 2, 3), (tracked.region.at(3) + 6, 2, 3)) is None
    assert tracked.region.names() == [0, 3]


@pytest.mark.parametrize("tracked", SPLIT, indirect=True)
def test_a_used_index_far_away_is_set(tracked: Tracked) -> None:
    """A ring that was reset has another one than its region, and nothing to walk."""
    assert spoil(tracked, (14, 2, 0x8000), (12, 2, 0xFFFF)) is None
    assert tracked.region.used() == 0


@pytest.mark.parametrize("tracked", SPLIT, indirect=True)
def test_more_in_flight_than_was_available_breaks(tracked: Tracked) -> None:
    """What the driver never made available cannot have been taken."""
    assert spoil(tracked, (tracked.region.at(5), 1, 1)) == malformed(HEADER, 3)


@pytest.mark.parametrize("tracked", PACKED, indirect=True)
@pytest.mark.parametrize("offset", [16, 18])
def test_a_used_index_out_of_the_ring_breaks(tracked: Tracked, offset: int) -> None:
    """The place of the next used descriptor is one."""
    assert spoil(tracked, (offset, 2, SIZE)) == malformed(HEADER, SIZE)


@pytest.mark.parametrize("tracked", PACKED, indirect=True)
@pytest.mark.parametrize(("entry", "value"), [(6, 6), (9, SIZE + 1), (SIZE - 1, 6), (9, 0)])
def test_free_entries_that_are_no_list_break(tracked: Tracked, entry: int, value: int) -> None:
    """Each is met once, and the last one leads behind the last."""
    fault = spoil(tracked, (tracked.region.at(entry) + 2, 2, value))
    assert fault is not None
    assert fault.reason == Reason.INFLIGHT.text


@pytest.mark.parametrize("tracked", PACKED, indirect=True)
@pytest.mark.parametrize(
    ("offset", "value", "fault"),
    [
        (6, 0, malformed(0, 2)),
        (6, 2, malformed(0, 2)),
        (6, 4, malformed(0, 2)),
        (6, SIZE + 1, malformed(5, 6)),
        (4, 1, malformed(0, 1)),
        (4, SIZE, malformed(0, SIZE)),
        (2, 7, malformed(0, 7)),
    ],
)
def test_a_chain_that_is_none_breaks(
    tracked: Tracked, offset: int, value: int, fault: Fault
) -> None:
    """Its entries are as many as it says, end where it says, and are nobody else's."""
    assert spoil(tracked, (tracked.region.at(0) + offset, 2, value)) == fault


@pytest.mark.parametrize("tracked", PACKED, indirect=True)
def test_a_copy_that_does_not_lead_to_the_next_breaks(tracked: Tracked) -> None:
    """The flags of the copies make the chain that the entries make."""
    flags = tracked.region.entry(1).flags & ~NEXT
    fault = spoil(tracked, (tracked.region.at(1) + 18, 2, flags))
    assert fault == malformed(1, flags)


@pytest.mark.parametrize("tracked", PACKED, indirect=True)
@pytest.mark.parametrize(("name", "reason"), [(1, Reason.ID_IN_FLIGHT), (SIZE, Reason.ID)])
def test_a_copied_id_is_checked_like_another(tracked: Tracked, name: int, reason: Reason) -> None:
    """Twice the same, or none of the ring's."""
    tracked.die(tracked.rig.engine.name, run=False)
    at = tracked.region.at(5 if reason is Reason.ID else 2) + 16
    tracked.region.poke(at, name.to_bytes(2, "little"))
    tracked.rig.call(tracked.lane.queue.run)
    tracked.rig.step()
    fault = tracked.lane.queue.fault()
    assert fault == Fault(reason.text, 3, name)


@pytest.mark.parametrize("param", BOTH)
@settings(max_examples=25)
@given(
    pokes=st.lists(
        st.tuples(st.integers(0, 200), st.sampled_from((0, 1, 2, 5, 0x80, 0xFF))), max_size=6
    )
)
def test_any_region_is_survived(param: str, pokes: list[tuple[int, int]]) -> None:
    """Whatever bytes are there: the queue breaks, or goes on, and comes to an end."""
    engine, form = param.split("-")
    tracked = Tracked(engine, packed=form == "packed")
    tracked.lane.read()
    tracked.lane.read()
    tracked.rig.step()
    tracked.die(engine, run=False)
    for offset, value in pokes:
        tracked.region.poke(offset, bytes([value]))
    tracked.rig.call(tracked.lane.queue.run)
    tracked.rig.pump()
    assert tracked.lane.queue.counters().in_flight == 0
    tracked.rig.drain(tracked.lane)
    tracked.close()


def test_the_kit_reads_what_it_wrote() -> None:
    """Offsets of our own arithmetic, against bytes written by hand."""
    region = Region(2, packed=True)
    region.poke(32 + 2, b"\x01\x00\x01\x00\x02\x00" + b"\x07" + bytes(7))
    region.poke(32 + 16, b"\x05\x00\x80\x00" + b"\x10\x00\x00\x00" + b"\x00\x20" + bytes(6))
    entry = region.entry(0)
    assert (entry.next, entry.last, entry.num, entry.counter) == (1, 1, 2, 7)
    assert (entry.id, entry.flags, entry.length, entry.address) == (5, 0x80, 16, 0x2000)
