"""A layer that lets requests on no faster than it is told; run by the C core."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from vhostblk.disk.api import Disk
from vhostblk.disk.grammar import parse_rate, parse_time
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

RATES = ("iops", "read-iops", "write-iops", "bps", "read-bps", "write-bps")
"""In the core's order."""
MOST_IOPS, MOST_BPS = 1 << 28, 1 << 43
"""More than that a second is no limit the core counts in."""
BURST_NS = 100_000_000
"""What may be saved up, if nobody says."""

OPTIONS = frozenset({*RATES, "burst"})
FORM = (
    "limit[:iops=N][,bps=SIZE][,read-iops=N][,write-iops=N][,read-bps=SIZE][,write-bps=SIZE]"
    "[,burst=TIME]"
)


@dataclass(frozen=True, slots=True)
class LimitStage:
    """
    What the core is to do.

    Args:
        rates: Requests or bytes a second, in the order of `RATES`; 0: no limit.
        burst_ns: What was not used for so many nanoseconds may be used at once.
    """

    rates: tuple[int, ...] = (0,) * len(RATES)
    burst_ns: int = BURST_NS

    def with_text(self, options: Mapping[str, str]) -> "LimitStage":
        """Return what this is with options written anew."""
        rates, new = dict(zip(RATES, self.rates, strict=True)), self
        for key, text in options.items():
            if key == "burst":
                new = replace(new, burst_ns=parse_time(text, key))
            elif key in rates:
                base, most = (1024, MOST_BPS) if key.endswith("bps") else (1000, MOST_IOPS)
                rates[key] = parse_rate(text, key, base=base, most=most)
            else:
                some = ", ".join([*RATES, "burst"])
                raise VhostBlkError(f"no option {key!r} (there are {some})")
        return replace(new, rates=tuple(rates.values()))


class Limit(StageLayer):
    """
    Lets requests on to *below* no faster than so many, or so many bytes, a second.

    Args:
        below: Any disk.
        burst: What was not used for so long may be used at once; as text, ``100ms``.
        **rates: Requests a second (``iops``, ``read_iops``, ``write_iops``) or bytes (``bps``,
            ``read_bps``, ``write_bps``), as numbers or text; 0: no limit.  Whatever is no read
            counts as a write; flushes are never held.

    Raises:
        VhostBlkError: There is no such limit, or a value is none.
    """

    name: ClassVar[str] = "limit"

    def __init__(self, below: object, *, burst: str = "100ms", **rates: int | str) -> None:
        super().__init__(below)
        options = {key.replace("_", "-"): str(rate) for key, rate in rates.items()}
        self._stage = LimitStage().with_text({**options, "burst": str(burst)})

    def stage(self) -> LimitStage:
        """Return the limits."""
        return self._stage

    def settings(self) -> Mapping[str, Value]:
        """Return the limits, how many requests had to wait, and how long all of them together."""
        counted = self.counted()
        waited = (
            {"waited": counted["waited"], "waited_s": counted["waited_ns"] / 1e9} if counted else {}
        )
        return {
            **dict(zip(RATES, self._stage.rates, strict=True)),
            "burst": f"{self._stage.burst_ns / 1e6:g}ms",
            **waited,
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set any option; what waits keeps its place."""
        stage = self._stage.with_text(values)
        if self.bound is not None:
            self.bound.set(stage)
        self._stage = stage


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    made = Limit(below)
    made.change(options)
    return made
