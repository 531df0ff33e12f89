"""Targets are held against figures that were made up for it."""

import pytest

from bench import verdicts
from bench.sample import Sample
from bench.verdicts import Target


def runs(*rates: float, cpu: float = 1.0, p50: float = 10.0) -> list[Sample]:
    return [Sample(iops=r, latency_us={"50": p50}, server_cpu_us=cpu) for r in rates]


def target(**changed: object) -> Target:
    said: dict[str, object] = {
        "work": "w",
        "against": "qsd",
        "line": "l",
        "values": verdicts.ratio("vhostblk", "qsd"),
        "bound": 2.0,
        **changed,
    }
    return Target(**said)  # type: ignore[arg-type]


def test_the_best_way_of_a_peer_is_what_counts() -> None:
    """Its ways are not mixed from turn to turn."""
    samples = {"vhostblk": runs(300, 200), "qsd a": runs(100, 100), "qsd b": runs(10, 190)}
    assert verdicts.ratio("vhostblk", "qsd")(samples) == [3.0, 2.0]


def test_a_responder_is_not_mistaken_for_its_like() -> None:
    """Names are compared as words."""
    samples = {"vhostblk": runs(90), "responder": runs(100), "responder+status": runs(80)}
    assert verdicts.ratio("vhostblk", "responder")(samples) == [0.9]


def test_a_verdict_says_met_or_not_with_its_spread() -> None:
    """The median decides."""
    samples = {"vhostblk": runs(100, 300, 500), "qsd": runs(100, 100, 100)}
    got = verdicts.verdict(target(), samples)
    assert (got.met, got.close) == (True, False)
    assert "3.00 (1.00 to 5.00)" in str(got)
    assert str(got).endswith(" met")
    assert verdicts.verdict(target(bound=3.5), samples).met is False


def test_a_verdict_within_the_noise_is_marked() -> None:
    """Where a server differs from itself by more, chance has decided."""
    samples = {"vhostblk": runs(210), "vhostblk again": runs(300), "qsd": runs(100)}
    got = verdicts.verdict(target(), samples)
    assert (got.met, got.close) == (True, True)
    assert str(got).endswith("~ met")


def test_a_line_that_failed_is_no_success() -> None:
    """It says that it was not measured."""
    got = verdicts.verdict(target(), None)
    assert got.met is False
    assert str(got).endswith("NOT MEASURED")


def test_cpu_time_is_compared_the_other_way_round() -> None:
    """Less is better."""
    samples = {"vhostblk": runs(1, cpu=1.0), "qsd": runs(1, cpu=4.0)}
    less = target(values=verdicts.cpu_ratio("vhostblk", "qsd"), bound=1 / 3, least=False)
    got = verdicts.verdict(less, samples)
    assert got.met is True
    assert got.goal == "IOPS <= 0.33x"


def test_a_sleeping_client_is_granted_one_wake_up() -> None:
    """Half of a round trip."""
    samples = {
        "vhostblk": runs(1, p50=100.0),
        "fio io_uring": runs(1, p50=80.0),
        "wake": runs(1e6 / 40),
    }
    assert verdicts.longer("vhostblk", "fio")(samples) == [20.0]
    assert verdicts.longer("vhostblk", "fio", "wake")(samples) == pytest.approx([0.0])


def test_memory_is_granted_what_nothing_and_a_copy_cost() -> None:
    """Times between requests, added up."""
    samples = {"vhostblk": runs(1e6 / 3.2), "null": runs(1e6), "memcpy": runs(1e6 / 2)}
    assert verdicts.copies("null", "vhostblk", "memcpy")(samples) == pytest.approx([1.0])


@pytest.mark.parametrize(("raw", "got"), [(1000.0, 240 / 120), (100.0, 240 / 95)])
def test_sequential_has_the_easier_of_two_bounds(raw: float, got: float) -> None:
    """No back-end is faster than the file itself."""
    samples = {"vhostblk": runs(240), "qsd": runs(100), "fio psync": runs(raw)}
    assert verdicts.either("vhostblk")(samples) == pytest.approx([got])
