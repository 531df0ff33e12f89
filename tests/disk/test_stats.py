"""What `stats` tells of what the core has counted."""

import pytest

from vhostblk.disk.null import Null
from vhostblk.disk.stats import Stats, counters


class Counting:
    """A layer in the core to which nothing has come."""

    def set(self, stage: object) -> None:
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        return dict.fromkeys(counters(), 0)


@pytest.mark.parametrize(
    ("ns", "bucket", "mean", "most"),
    [
        (0, 0, 0.0, 0.256),
        (300, 1, 0.3, 0.32),
        (999, 8, 0.999, 1.0),
        (1040, 9, 1.0, 1.3),
        (5_000_000, 57, 5000.0, 5242.9),
    ],
)
def test_times_are_told_in_nanoseconds_below_a_microsecond(
    ns: int, bucket: int, mean: float, most: float
) -> None:
    """The mean as it was counted, the others by the end of a bucket: a quarter more at most."""
    stats = Stats(Null(1 << 20))
    stats.recall({"read requests": 4, "read sum_ns": 4 * ns, f"read {bucket}": 4})
    stats.bound = Counting()
    told = stats.settings()
    assert told["read mean_us"] == mean
    assert told["read p50_us"] == told["read p99_us"] == most
