"""
Verdicts: what a line of the bench gave, held against what was promised.

A target is a figure per turn, and a bound for its median.  A median that is nearer to its bound
than a server is to itself (A/A) is met or missed by chance, and is marked with ``~``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import resident
from bench.figures import Spread, best, noise, short, spread
from bench.sample import Samples
from bench.turns import Tools
from bench.works import FIO, QSD


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    A promise.

    Args:
        work: What is done, and how.
        against: What it is compared with.
        line: The line of the bench that measures it.
        values: From its samples to the figure of each turn.
        bound: What the median must reach.
        least: The bound is the least that will do; else the most.
        unit: Of the figure.
        name: Of the figure.
    """

    work: str
    against: str
    line: str
    values: Callable[[Samples], Sequence[float]]
    bound: float
    least: bool = True
    unit: str = "x"
    name: str = "IOPS"

    @property
    def goal(self) -> str:
        """The bound as one reads it."""
        return f"{self.name} {'>=' if self.least else '<='} {short(self.bound)}{self.unit}"

    def met(self, median: float) -> bool:
        """Tell whether a median will do."""
        return median >= self.bound if self.least else median <= self.bound


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What became of a promise.

    Args:
        work: As the target says it.
        against: The same.
        goal: The same.
        got: The figure over the turns; None: its line could not be measured.
        noise: A/A of its line, a factor; 1: none was taken.
        met: Whether the median will do.
        close: Whether chance could have decided that.
    """

    work: str
    against: str
    goal: str
    got: Spread | None
    noise: float
    met: bool
    close: bool

    def __str__(self) -> str:
        """Write it as a row of the table."""
        if self.got is None:
            return f"{self.work:44} {self.against:18} {self.goal:24} NOT MEASURED"
        word = ("~ " if self.close else "") + ("met" if self.met else "NOT MET")
        noise = f"A/A {self.noise:.2f}" if self.noise > 1 else ""
        return f"{self.work:44} {self.against:18} {self.goal:24} {self.got!s:28} {noise:9} {word}"


def names(samples: Samples, kind: str) -> list[str]:
    """Return who of a kind took turns: ``qsd`` is all its ways."""
    return [name for name in samples if name.split(" ")[0] == kind]


def ratio(ours: str, kind: str) -> Callable[[Samples], list[float]]:
    """Compare rates: ours by the best of a kind."""

    def values(samples: Samples) -> list[float]:
        theirs = samples[best(samples, names(samples, kind))]
        return [a.iops / b.iops for a, b in zip(samples[ours], theirs, strict=True)]

    return values


def cpu_ratio(ours: str, kind: str) -> Callable[[Samples], list[float]]:
    """Compare the servers' CPU time per request: ours by the best of a kind."""

    def values(samples: Samples) -> list[float]:
        theirs = samples[best(samples, names(samples, kind))]
        pairs = zip(samples[ours], theirs, strict=True)
        return [a.server_cpu_us / b.server_cpu_us for a, b in pairs]

    return values


def cpu(ours: str) -> Callable[[Samples], list[float]]:
    """Return our CPU time per request."""
    return lambda samples: [one.server_cpu_us for one in samples[ours]]


def longer(ours: str, kind: str, wake: str | None = None) -> Callable[[Samples], list[float]]:
    """Return by how much our median latency exceeds fio's, and one wake-up (half of a trip)."""

    def values(samples: Samples) -> list[float]:
        theirs = samples[best(samples, names(samples, kind))]
        trips = [0.0] * len(theirs) if wake is None else [one.us for one in samples[wake]]
        turns = zip(samples[ours], theirs, trips, strict=True)
        return [a.p50_us - b.p50_us - trip / 2 for a, b, trip in turns]

    return values


def copies(base: str, memory: str, copy: str) -> Callable[[Samples], list[float]]:
    """Return time per request of *memory* by that of *base* and 1.1 copies."""

    def values(samples: Samples) -> list[float]:
        turns = zip(samples[memory], samples[base], samples[copy], strict=True)
        return [a.us / (b.us + 1.1 * c.us) for a, b, c in turns]

    return values


def either(ours: str) -> Callable[[Samples], list[float]]:
    """Return our rate by the smaller of 1.2 times qsd's and 95 % of the raw file's."""

    def values(samples: Samples) -> list[float]:
        theirs = samples[best(samples, names(samples, QSD))]
        raw = samples[best(samples, names(samples, FIO))]
        turns = zip(samples[ours], theirs, raw, strict=True)
        return [a.iops / min(1.2 * b.iops, 0.95 * c.iops) for a, b, c in turns]

    return values


def verdict(target: Target, samples: Samples | None) -> Verdict:
    """Say what became of a target whose line gave *samples*, or none."""
    if samples is None:
        said = target.work, target.against, target.goal
        return Verdict(*said, None, 1.0, met=False, close=False)
    got, chance = spread(target.values(samples)), noise(samples)
    # Differences of latencies have no factor to compare with.
    off = max(got.median / target.bound, target.bound / got.median) if target.unit == "x" else 9.0
    return Verdict(
        target.work,
        target.against,
        target.goal,
        got,
        round(chance, 3),
        target.met(got.median),
        off < chance,
    )


def resting(tools: Tools) -> list[Verdict]:
    """Measure what nobody takes turns in: idle devices and memory."""
    idle, memory = resident.idle(tools), resident.resident(tools)
    rows = (
        ("idle device, 10 s", "wake-ups <= 0 /s", idle.wakes, 0.0),
        ("idle device, 10 s", "CPU <= 0 ms/s", idle.cpu, 0.0),
        ("memory, one device", "private <= 40 MiB", memory.one, 40.0),
        (
            f"memory, further device of {resident.DEVICES}",
            "private <= 1 MiB",
            memory.further,
            1.0,
        ),
    )
    return [
        Verdict(work, "-", goal, spread([got]), 1.0, got <= bound, close=False)
        for work, goal, got, bound in rows
    ]
