"""A recording as a history: what is stable when, and which recordings are refused."""

from pathlib import Path

import pytest
from power_kit.recorder import recording, segment

from vhostblk.disk.loss import Lose, Losing
from vhostblk.disk.power import Kind
from vhostblk.errors import VhostBlkError
from vhostblk.sweep.history import END, walk
from vhostblk.sweep.plan import Plan
from vhostblk.sweep.sweep import Subject, build, listed, told
from vhostblk.trace.format import Op, Payload

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.trace"


def test_moments_are_submissions_and_the_end(path: Path) -> None:
    """Reads count; what a flush covered is stable at the first moment behind its end."""
    with recording(path, SIZE) as writer:
        first = writer.submit(Op.WRITE, offset=0, length=512, payload=b"a" * 512)
        writer.complete(first)
        flush = writer.submit(Op.FLUSH)
        late = writer.submit(Op.WRITE, offset=512, length=512, payload=b"b" * 512)
        writer.complete(late)
        writer.complete(flush)
        writer.complete(writer.submit(Op.READ, offset=0, length=512))
        writer.submit(Op.WRITE_ZEROES, offset=0, length=4096, unmap=True)
    told = [
        (m.number, m.op, [p.change.number for p in m.stable], [h.number for h in m.cache.held])
        for m in walk(segment(path))
    ]
    assert told == [
        (1, "write", [], [1]),
        (2, "flush", [], [1]),
        (3, "write", [], [1, 3]),
        (4, "read", [1], [3]),
        (5, "write-zeroes", [], [3, 5]),
        (6, END, [], [3, 5]),
    ]


def test_a_failed_flush_promises_nothing(path: Path) -> None:
    """And a failed write may be there or not, at any time later."""
    with recording(path, SIZE) as writer:
        writer.complete(writer.submit(Op.WRITE, length=512, payload=bytes(512)), error=5)
        writer.complete(writer.submit(Op.DISCARD, offset=512, length=512))
        writer.complete(writer.submit(Op.FLUSH), error=5)
    *_, end = walk(segment(path))
    assert [held.change.kind for held in end.cache.held] == [Kind.WRITE, Kind.DISCARD]
    assert end.stable == ()


@pytest.mark.parametrize("payload", [Payload.NONE, Payload.DIGEST])
def test_a_recording_without_payloads_is_refused(path: Path, payload: Payload) -> None:
    """It says how to record."""
    with recording(path, SIZE, payload) as writer:
        writer.complete(writer.submit(Op.WRITE, length=512))
    with pytest.raises(VhostBlkError, match="record again with payload=full"):
        list(walk(segment(path)))


def test_a_recording_with_gaps_is_refused(path: Path) -> None:
    """What the disk held behind a gap nobody knows."""
    with recording(path, SIZE) as writer:
        writer.complete(writer.submit(Op.WRITE, length=512, payload=bytes(512)))
        writer.lose(100)
        writer.complete(writer.submit(Op.FLUSH))
    with pytest.raises(VhostBlkError, match="requests are missing behind request 1"):
        list(walk(segment(path)))


def test_a_plan_takes_what_it_says(path: Path) -> None:
    """By number, range, one in so many, flushes; a request that is not there is refused."""
    with recording(path, SIZE) as writer:
        for number in range(9):
            op = Op.FLUSH if number % 3 == 2 else Op.WRITE
            data = {} if op is Op.FLUSH else {"length": 512, "payload": bytes(512)}
            writer.complete(writer.submit(op, **data))  # type: ignore[arg-type]
    subject = Subject(segment(path), None, SIZE)

    def numbers(**plan: object) -> list[int]:
        losing = Losing(Lose.ALL)
        made = Plan(seeds=1, losing=losing, **plan)  # type: ignore[arg-type]
        return [state.moment.number for state in listed(subject, made)]

    assert numbers() == [1, 4, 7, 10]  # others are the same states again
    assert numbers(at=frozenset({2, 0})) == [2, 10]
    assert numbers(first=2, every=4) == [2, 6, 10]
    assert numbers(flushes=True) == [3, 6, 9, 10]
    assert set(numbers(random=50)) <= set(range(1, 11))
    assert numbers(random=3) == numbers(random=3)
    with pytest.raises(VhostBlkError, match="no request 99: the recording has 9"):
        numbers(at=frozenset({99}))


def test_a_state_can_be_kept(path: Path, tmp_path: Path) -> None:
    """The image holds what was there first, what was flushed, and what the cut left."""
    with recording(path, SIZE) as writer:
        for at, byte in ((0, b"a"), (4096, b"b")):
            seq = writer.submit(Op.WRITE, offset=at, length=512, payload=byte * 512)
            writer.complete(seq)
            if byte == b"a":
                writer.complete(writer.submit(Op.FLUSH))
    start, kept = tmp_path / "start", tmp_path / "kept"
    start.write_bytes(b"s" * 8192)
    plan = Plan(at=frozenset({0}), seeds=1, losing=Losing(Lose.ALL))
    state = build(Subject(segment(path), start, SIZE), plan, kept)
    assert told(state) == "request 4 (end), seed 1: 0 kept, 1 lost, 0 torn"
    assert kept.read_bytes() == b"a" * 512 + b"s" * (8192 - 512) + bytes(SIZE - 8192)
    with pytest.raises(VhostBlkError, match="the disk that was recorded 4096"):
        build(Subject(segment(path), start, 4096), plan, kept)
