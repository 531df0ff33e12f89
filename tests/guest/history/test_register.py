from collections.abc import Sequence

import pytest
from guest_history.brute import possible
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vhostblk.guest.history.register import FOREVER, Step, find_clash


def step(begin: float, end: float, value: bytes, *, sure: bool = True) -> Step:
    return Step(f"{value!r} from {begin} to {end}", begin, end, value, sure=sure)


@st.composite
def histories(draw: st.DrawFn, values: Sequence[bytes]) -> tuple[list[Step], list[Step]]:
    """Return writes and reads at distinct times; what is read was written by one of them."""
    writes, reads = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    times = draw(st.permutations(range(2 * (writes + reads))))
    pairs = [sorted(times[2 * i : 2 * i + 2]) for i in range(writes + reads)]
    written = [draw(st.sampled_from(values)) for _ in range(writes)] if values else []
    written = written or [bytes([i]) for i in range(writes)]
    first = [
        step(begin, end, value)
        if (sure := draw(st.booleans()))
        else step(begin, FOREVER, value, sure=sure)
        for (begin, end), value in zip(pairs, written, strict=False)
    ]
    seen = st.sampled_from(written)
    return first, [step(begin, end, draw(seen)) for begin, end in pairs[writes:]]


@given(histories(values=()))
def test_values_written_once_are_judged_exactly(history: tuple[list[Step], list[Step]]) -> None:
    """A clash is found if and only if no order of the requests explains the reads."""
    writes, reads = history
    assert (find_clash(writes, reads) is None) == possible(writes, reads)


@given(histories(values=(b"a", b"b", b"c")))
@example(([step(0, 1, b"a"), step(2, 3, b"a"), step(4, 5, b"b")], [step(6, 7, b"a")]))
def test_values_written_often_raise_no_false_alarm(
    history: tuple[list[Step], list[Step]],
) -> None:
    """Where an order explains the reads, there is no clash."""
    writes, reads = history
    assume(possible(writes, reads))
    assert find_clash(writes, reads) is None


@pytest.mark.parametrize(
    ("writes", "reads", "words"),
    [
        ([step(0, 1, b"a"), step(2, 3, b"b")], [step(4, 5, b"a")], "had been overwritten"),
        ([step(0, 1, b"a"), step(4, 5, b"b")], [step(2, 3, b"b")], "written only later"),
        (
            [step(0, 1, b"a"), step(2, 9, b"b")],
            [step(3, 4, b"b"), step(5, 6, b"a")],
            "had been overwritten",
        ),
        (
            [step(0, 3, b"a"), step(1, 2, b"b")],
            [step(4, 5, b"a"), step(6, 7, b"b"), step(8, 9, b"a")],
            "came back",
        ),
        (
            [step(0, 1, b"0"), step(2, 3, b"b"), step(6, 7, b"0")],
            [step(4, 5, b"0")],
            "had been overwritten",
        ),
        ([step(0, 1, b"b"), step(6, 7, b"0"), step(8, 9, b"0")], [step(4, 5, b"0")], "not there"),
        (
            [step(0, 1, b"0"), step(2, 3, b"0"), step(4, 5, b"b")],
            [step(6, 7, b"b"), step(8, 9, b"0"), step(10, 11, b"b")],
            "something else",
        ),
    ],
)
def test_clash_is_explained(writes: list[Step], reads: list[Step], words: str) -> None:
    """What is wrong is said, and shown at a read."""
    assert not possible(writes, reads)
    clash = find_clash(writes, reads)
    assert clash is not None
    assert words in clash.why
    assert clash.culprit in reads


def test_long_history_is_quick() -> None:
    """Twenty thousand steps of one sector take no quadratic time."""
    count = 10_000
    writes = [step(4 * i, 4 * i + 1, b"%d" % (i - i % 3 % 2)) for i in range(count)]
    reads = [step(4 * i + 2, 4 * i + 3, writes[i].value) for i in range(count)]
    assert find_clash(writes, reads) is None
