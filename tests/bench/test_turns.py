"""Who takes turns, in which order, and what becomes of a disturbed run."""

import io
from collections.abc import Callable, Iterator

import pytest

from bench.machine import watched
from bench.progress import Progress
from bench.sample import Load, Sample, Unable
from bench.servers import Work
from bench.turns import PILOT_TURNS, Entry, Line, alternate


def sample(iops: float, *, other: float = 0.0, stolen: float = 0.0) -> Sample:
    return Sample(iops=iops, latency_us={}, other=other, stolen=stolen)


def taker(samples: Iterator[Sample], calls: list[str], name: str) -> Callable[[], Sample]:
    def run() -> Sample:
        calls.append(name)
        return next(samples)

    return run


def test_turns_alternate() -> None:
    """A B, A B: never all of one behind all of the other."""
    calls: list[str] = []
    a, b = iter([sample(1), sample(2)]), iter([sample(3), sample(4)])
    got, repeats = alternate(
        {"a": taker(a, calls, "a"), "b": taker(b, calls, "b")}, 2, Progress(4, io.StringIO())
    )
    assert calls == ["a", "b", "a", "b"]
    assert [[s.iops for s in runs] for runs in got.values()] == [[1, 2], [3, 4]]
    assert repeats == 0


def test_a_disturbed_run_is_taken_again() -> None:
    """By other processes, or by the host; the quiet one counts."""
    samples = iter([sample(1, other=0.5), sample(2), sample(3, stolen=0.5), sample(4)])
    got, repeats = alternate({"a": taker(samples, [], "a")}, 2, Progress(2, io.StringIO()))
    assert [s.iops for s in got["a"]] == [2, 4]
    assert repeats == 2


def test_repeats_are_bounded() -> None:
    """Where it is never quiet the least disturbed runs count, and say that they were."""
    endless = iter([sample(n, other=1 - n / 100) for n in range(50)])
    got, repeats = alternate({"a": taker(endless, [], "a")}, 3, Progress(3, io.StringIO()))
    assert repeats == 3
    assert [s.iops for s in got["a"]] == [3, 4, 5]
    assert all(s.disturbed for s in got["a"])


def test_a_run_without_a_request_ends_its_line() -> None:
    """There is no ratio to nothing."""
    with pytest.raises(Unable, match="no request came back"):
        watched(lambda: sample(0), ())


def test_rivals_cost_a_pilot_and_one_winner() -> None:
    """What progress counts with."""
    work, load = Work(name="null", size=512), Load()
    ways = [("a", ""), ("q 1", "q"), ("q 2", "q"), ("f", "f")]
    entries = [Entry(name=name, load=load, work=work, rival=rival) for name, rival in ways]
    line = Line("x", entries)
    assert line.rivals == {"q": ["q 1", "q 2"]}
    assert line.runs(10) == 3 * 10 + 2 * PILOT_TURNS


def test_progress_changes_no_line_where_there_is_no_terminal() -> None:
    """A log gets a line for each line of the bench, none for each run."""
    stream = io.StringIO()
    progress = Progress(2, stream)
    progress.line("first")
    progress.run("a", "turn 1 of 1")
    progress.done()
    progress.line("second")
    progress.clear()
    first, second = stream.getvalue().splitlines()
    assert first == "[  0%] first"
    assert second.startswith("[ 50%, ")
    assert second.endswith(" left] second")
