from collections.abc import Iterator

import pytest

from vhostblk.guest import GuestMemory, Queue, QueueOptions, Region
from vhostblk.guest.blk import UNWRITTEN_STATUS
from vhostblk.guest.hostile import (
    INDIRECT_CASES,
    REQUEST_CASES,
    RING_CASES,
    Case,
    Outcome,
    Trap,
    attempt,
    flicker,
)
from vhostblk.guest.layout import PAGE

ALL = (*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES)


@pytest.fixture
def queue() -> Iterator[Queue]:
    with GuestMemory([Region(0, 64 * PAGE)]) as memory:
        made = Queue.create(0, memory, QueueOptions(size=8))
        yield made
        made.close()


def answering(case: Case, status: int) -> Case:
    """Add a device that gives the chain back at once, with this status if it has room."""

    def set_up(queue: Queue) -> Trap:
        trap = case.set_up(queue)
        assert trap.ticket is not None
        if trap.status_gpa is not None:
            queue.memory.write(trap.status_gpa, bytes([status]))
        element = trap.ticket.head.to_bytes(4, "little") + b"\1\0\0\0"
        queue.memory.write(queue.ring.addresses.used + 4, element)
        queue.memory.store_u16(queue.ring.addresses.used + 2, 1)
        return trap

    return Case(case.name, case.expected, set_up)


def named(name: str) -> Case:
    return next(case for case in ALL if case.name == name)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0, Outcome.OK),
        (1, Outcome.IOERR),
        (2, Outcome.UNSUPP),
        (3, Outcome.OTHER_STATUS),
        (UNWRITTEN_STATUS, Outcome.GIVEN_BACK),
    ],
)
def test_attempt_reads_the_status(queue: Queue, status: int, outcome: Outcome) -> None:
    """What came of a request is what its status byte says."""
    assert attempt(queue, answering(named("unknown request type"), status)) is outcome


def test_attempt_without_a_status(queue: Queue) -> None:
    """A chain without room for a status can only come back."""
    assert attempt(queue, answering(named("no writable descriptor"), 0)) is Outcome.GIVEN_BACK


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_attempt_tells_silence(queue: Queue, case: Case) -> None:
    """Every case can be set up, kicks, and is SILENT when nobody answers."""
    outcome = attempt(queue, case, timeout=0.001)
    assert outcome is Outcome.SILENT
    assert queue.counters.kicks == 1


def test_names_are_unique() -> None:
    """The names serve as ids of tests."""
    assert len({case.name for case in ALL}) == len(ALL)


def test_flicker_changes_memory_and_ends(queue: Queue) -> None:
    """Both values are seen while it runs, and the last one stays."""
    memory = queue.memory
    seen: set[bytes] = set()
    with flicker(memory, 0x8000, b"aaaa", b"bbbb"):
        while len(seen) < 2:
            seen.add(memory.read(0x8000, 1))
    assert seen >= {b"a", b"b"}
    assert memory.read(0x8000, 4) == b"bbbb"
