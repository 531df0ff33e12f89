"""Traces that are whole, torn, or were made by somebody who means ill."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import (
    HEAD_SIZE,
    BlockKind,
    Header,
    Op,
    Payload,
    block,
    data,
    segment_block,
    submit,
)
from vhostblk.trace.reader import Segment, Trace, read
from vhostblk.trace.records import Completed, Lost, Submitted
from vhostblk.trace.writer import Writer


def header(payload: Payload = Payload.NONE, started: int = 1000) -> Header:
    """Describe a segment of a disk of 1 MiB."""
    return Header(size=1 << 20, payload=payload, started=started, clock=50)


def recorded(path: Path, payload: Payload = Payload.FULL) -> bytes:
    """Write two requests that overlap in time, and one that never ends; return the bytes."""
    with path.open("wb") as file, Writer(file, header(payload)) as trace:
        first = trace.submit(Op.WRITE, offset=512, length=512, time=1, payload=b"a" * 512)
        second = trace.submit(Op.READ, length=1024, time=2, queue=1)
        trace.complete(second, time=3, digest=7)
        trace.flush()
        trace.submit(Op.FLUSH, time=4)
        trace.complete(first, time=9, error=5)
    return path.read_bytes()


def only(trace: Trace) -> Segment:
    """Return the one segment of a trace that is whole."""
    assert trace.damage is None
    (segment,) = trace.segments
    return segment


def test_steps_come_in_the_order_in_which_they_happened(tmp_path: Path) -> None:
    """Submissions and completions of all queues, a write with what it writes."""
    recorded(tmp_path / "t")
    segment = only(read(tmp_path / "t"))
    assert segment.header == header(Payload.FULL)
    assert segment.ended
    write = Submitted(
        seq=0, time=1, queue=0, op=Op.WRITE, offset=512, length=512, payload=b"a" * 512
    )
    flush = Submitted(seq=72, time=4, queue=0, op=Op.FLUSH, offset=0, length=0)
    assert list(segment.steps()) == [
        write,
        Submitted(seq=68, time=2, queue=1, op=Op.READ, offset=0, length=1024),
        Completed(seq=70, time=3, submit=68, error=0, digest=7),
        flush,
        Completed(seq=74, time=9, submit=0, error=5),
    ]


def test_requests_come_as_they_end(tmp_path: Path) -> None:
    """Each with its latency; the one that never ended comes last and has none."""
    recorded(tmp_path / "t")
    requests = list(only(read(tmp_path / "t")).requests())
    assert [(one.submitted.op, one.latency) for one in requests] == [
        (Op.READ, 1),
        (Op.WRITE, 8),
        (Op.FLUSH, None),
    ]
    assert requests[1].completed is not None
    assert requests[1].completed.error == 5


def test_parts_of_a_payload_may_come_between_what_others_do(tmp_path: Path) -> None:
    """A write waits for the last part of its payload, what comes behind it waits with it."""

    def write(sector: int) -> bytes:
        return submit(Op.WRITE, queue=0, sector=sector, sectors=1, time=50)

    body = write(0) + write(1)
    body += data(2, b"B" * 256) + data(0, b"A" * 512) + data(2, b"b" * 256)
    raw = segment_block(header(Payload.FULL))
    raw += block(BlockKind.RECORDS, body, segment=1000)
    (tmp_path / "t").write_bytes(raw)
    steps = list(only(read(tmp_path / "t")).steps())
    assert [step.payload for step in steps if isinstance(step, Submitted)] == [
        b"A" * 512,
        b"B" * 256 + b"b" * 256,
    ]


def test_a_trace_cut_anywhere_gives_what_is_before(tmp_path: Path) -> None:
    """An error only inside the first block, and never a step that did not happen."""
    whole = recorded(tmp_path / "whole")
    steps = list(only(read(tmp_path / "whole")).steps())
    first = len(segment_block(header(Payload.FULL)))
    path = tmp_path / "cut"
    for length in range(3, len(whole), 31):
        path.write_bytes(whole[:length])
        if length < first:
            with pytest.raises(VhostBlkError, match="is no trace"):
                read(path)
            continue
        trace = read(path)
        got = list(trace.segments[0].steps())
        assert got == steps[: len(got)]
        assert not trace.segments[0].ended
        assert trace.end <= length
        assert (trace.damage is None) == (trace.end == length)


@settings(max_examples=25)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1))
def test_a_trace_with_other_bytes_is_never_taken_for_whole(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    """What is read is a prefix of what was recorded, or the error is one line."""
    path = tmp_path_factory.getbasetemp() / "flipped"
    whole = recorded(path)
    steps = list(only(read(path)).steps())
    raw = bytearray(whole)
    for at, mask in flips:
        raw[at % len(raw)] ^= mask
    path.write_bytes(raw)
    try:
        trace = read(path)
    except VhostBlkError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may do either
        return
    got = list(trace.segments[0].steps())
    assert got == steps[: len(got)]


@settings(max_examples=25)
@given(st.binary(max_size=400))
def test_bytes_behind_a_whole_trace_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
) -> None:
    """A torn tail is said, and where it begins."""
    path = tmp_path_factory.getbasetemp() / "tail"
    whole = recorded(path)
    path.write_bytes(whole + tail)
    trace = read(path)
    assert trace.end == len(whole)
    assert (trace.damage is None) == (not tail)


def test_sessions_are_segments(tmp_path: Path) -> None:
    """What is appended begins at 0 again, with a header of its own."""
    path = tmp_path / "t"
    for started in (1, 2):
        with path.open("ab") as file, Writer(file, header(started=started)) as trace:
            trace.submit(Op.FLUSH)
    trace_ = read(path)
    assert [one.header.started for one in trace_.segments] == [1, 2]
    assert [[step.seq for step in one.steps()] for one in trace_.segments] == [[0], [0]]


def test_a_gap_is_said_where_it_is(tmp_path: Path) -> None:
    """Requests that were under way have no end; what they end with is no request."""
    path = tmp_path / "t"
    with path.open("wb") as file, Writer(file, header()) as trace:
        trace.submit(Op.FLUSH)
        trace.lose(30)
        lost = trace.submit(Op.READ, length=512)
        trace.complete(lost)
        trace.complete(20)
    segment = only(read(path))
    assert (segment.gaps, segment.lost) == (1, 30)
    assert [type(step) for step in segment.steps()] == [
        Submitted,
        Lost,
        Submitted,
        Completed,
        Completed,
    ]
    assert [one.completed is None for one in segment.requests()] == [False, True]


def test_a_block_of_another_segment_is_not_taken(tmp_path: Path) -> None:
    """Blocks left in the file by an older recording are not part of the newer one."""
    raw = [io.BytesIO(), io.BytesIO()]
    for i, file in enumerate(raw):
        with Writer(file, header(started=i)) as trace:
            trace.submit(Op.FLUSH)
    old, new = (file.getvalue() for file in raw)
    first = len(segment_block(header(started=0)))
    path = tmp_path / "t"
    path.write_bytes(new[:first] + old[first:])
    trace_ = read(path)
    assert trace_.damage == f"the block at byte {first} belongs to no segment"
    assert list(trace_.segments[0].steps()) == []


def test_what_is_no_trace_says_so(tmp_path: Path) -> None:
    """An empty file, a picture, half a head."""
    for raw in (b"", b"\x89PNG" * 40, segment_block(header())[: HEAD_SIZE - 1]):
        (tmp_path / "t").write_bytes(raw)
        with pytest.raises(VhostBlkError, match="is no trace"):
            read(tmp_path / "t")


def test_blocks_of_two_sessions_may_be_mixed(tmp_path: Path) -> None:
    """As they are where one server takes over from another: each goes to its own segment."""
    path = tmp_path / "t"
    with path.open("wb") as file:
        with Writer(file, header(started=1)) as old:
            old.submit(Op.FLUSH)
            old.flush()
            new = Writer(file, header(started=2))
            new.submit(Op.READ, length=512)
            new.flush()
            old.submit(Op.FLUSH)
        new.submit(Op.READ, length=1024)
        new.close()
    trace = read(path)
    assert trace.damage is None
    lengths = [
        [step.length for step in one.steps() if isinstance(step, Submitted)]
        for one in trace.segments
    ]
    assert lengths == [[0, 0], [512, 1024]]
    assert [one.ended for one in trace.segments] == [True, True]
