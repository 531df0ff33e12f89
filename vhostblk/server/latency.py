"""How long requests took, as the status document has it."""

from collections.abc import Mapping
from typing import TypedDict

from vhostblk.engine.api import Latency, Op


class LatencyStatus(TypedDict):
    """Of requests of one kind; times in microseconds."""

    count: int
    mean_us: int
    p50_us: int
    p99_us: int
    max_us: int


def latency_status(latency: Mapping[Op, Latency]) -> dict[str, LatencyStatus]:
    """
    Return how long requests took, by the names of their kinds.

    Args:
        latency: As `Queue.latency` returns it; kinds of which there was none are left out.
    """
    return {op.name.lower(): _one(took) for op, took in latency.items() if took.count}


def _one(took: Latency) -> LatencyStatus:
    return {
        "count": took.count,
        "mean_us": took.mean_ns // 1000,
        "p50_us": took.percentile(0.5) // 1000,
        "p99_us": took.percentile(0.99) // 1000,
        "max_us": took.max_ns // 1000,
    }
