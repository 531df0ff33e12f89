"""Statistics of alternating turns: nothing but numbers in, numbers out."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.sample import Sample, Samples

AGAIN = " again"
"""Behind the name of the second process of the same server: the A/A run."""


@dataclass(frozen=True, slots=True)
class Spread:
    """
    A figure over the turns.

    Args:
        median: Of all turns.
        low: The smallest.
        high: The largest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it with three digits."""
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """Write a figure with three digits at least, and no exponent."""
    for digits, above in ((0, 100), (1, 10), (2, 0.1)):
        if abs(value) >= above:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def spread(values: Sequence[float]) -> Spread:
    """Return median and ends of one value for each turn."""
    return Spread(statistics.median(values), min(values), max(values))


def over(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> Spread:
    """Return median and ends of a figure of one who took turns."""
    return spread([figure(sample) for sample in samples])


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """Return for each turn our rate by theirs."""
    return [a.iops / b.iops for a, b in zip(ours, theirs, strict=True)]


def noise(samples: Samples) -> float:
    """
    Return how far from 1 the ratio of a server to itself was (A/A), as a factor of 1 or more.

    Half of the turns are within it: ratios of medians over turns are no further apart by chance.
    1 where no server took two turns in each.
    """
    pairs = [(name, name + AGAIN) for name in samples if name + AGAIN in samples]
    factors = [max(r, 1 / r) for a, b in pairs for r in ratios(samples[a], samples[b])]
    return statistics.median(factors) if factors else 1.0


def best(samples: Samples, names: Sequence[str]) -> str:
    """Return the name with the highest median rate."""
    return max(names, key=lambda name: statistics.median(s.iops for s in samples[name]))


def contenders(samples: Samples, names: Sequence[str], *, within: float) -> list[str]:
    """Return those whose median rate is at least *within* of the best one's."""
    rates = {name: statistics.median(s.iops for s in samples[name]) for name in names}
    limit = max(rates.values()) * within
    return [name for name in names if rates[name] >= limit]
