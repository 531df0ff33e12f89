"""Statistics of turns, on numbers made up for it."""

import pytest

from bench.figures import Spread, best, contenders, noise, ratios, short, spread
from bench.sample import Sample


def runs(*rates: float) -> list[Sample]:
    return [Sample(iops=rate, latency_us={"50": 1.0, "99": 2.0}) for rate in rates]


def test_ratio_is_taken_turn_by_turn() -> None:
    """A machine that slows down between turns changes no ratio."""
    assert ratios(runs(100, 10), runs(50, 5)) == [2.0, 2.0]


def test_ratio_needs_both_in_every_turn() -> None:
    """A turn that one of them has not taken is an error, not a guess."""
    with pytest.raises(ValueError, match="shorter"):
        ratios(runs(1, 2), runs(1))


def test_spread_is_the_median_with_both_ends() -> None:
    """No turn is thrown away."""
    assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)


def test_noise_is_how_far_a_server_is_from_itself() -> None:
    """Whichever of the two was faster; half of the turns are within."""
    samples = {"a": runs(100, 100, 100), "a again": runs(110, 50, 102), "b": runs(1, 1, 1)}
    assert noise(samples) == pytest.approx(1.1)


def test_noise_without_a_second_process_is_none() -> None:
    """There is nothing to compare."""
    assert noise({"a": runs(1), "b": runs(2)}) == 1.0


def test_rivals_near_the_best_stay() -> None:
    """Only who is clearly behind takes no turns."""
    samples = {"a": runs(100, 90), "b": runs(89, 89), "c": runs(60, 60)}
    assert best(samples, ["a", "b", "c"]) == "a"
    assert contenders(samples, ["a", "b", "c"], within=0.9) == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012"), (-20.0, "-20.0")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    """No more than the spread allows."""
    assert short(value) == text
