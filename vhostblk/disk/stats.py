"""A layer that counts what passes, and how long it takes from there on; run by the C core."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vhostblk.disk.api import Disk
from vhostblk.disk.given import check_path
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.ops import Op
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

OPTIONS = frozenset({"file"})
FORM = "stats[:file=PATH]"

COUNTED = ("requests", "bytes", "errors", "sum_ns")
"""Of each kind, in the core's order; then come `BUCKETS` counts of how long they took."""
BUCKETS = 114
_FIRST_BIT, _PER_DOUBLING = 8, 4
_SHARES = (50, 99)


@dataclass(frozen=True, slots=True)
class StatsStage:
    """What the core is to do: count.  Nothing can be set."""

    reserved: int = 0


class Stats(StageLayer):
    """
    Counts what passes to *below*: at this place of a stack.

    Args:
        below: Any disk.
        file: Written at the end, a line for each kind of request; empty: none.
    """

    name: ClassVar[str] = "stats"
    commands = ("reset",)

    def __init__(self, below: object, *, file: str = "") -> None:
        super().__init__(below)
        self._file = check_path(file, "file")

    def stage(self) -> StatsStage:
        """Return that it counts."""
        return StatsStage()

    async def open(self) -> None:
        """
        Open the disk below.

        Raises:
            VhostBlkError: The file cannot be written: said now, not when all is counted.
        """
        if self._file:
            try:
                Path(self._file).open("a").close()  # noqa: ASYNC230 - only looked at
            except OSError as error:
                raise VhostBlkError(f"stats: {self._file}: {error.strerror}") from error
        await super().open()

    async def close(self) -> None:
        """Write the file, and close the disk below."""
        try:
            if self._file and self.bound is not None:
                Path(self._file).write_text(self.text())  # noqa: ASYNC240 - short, and the last
        except OSError as error:
            log.error("stats: %s: %s: what was counted is not there", self._file, error.strerror)  # noqa: TRY400 - a line says it
        finally:
            await super().close()

    def reset(self) -> None:
        """Count anew."""
        now = self.bound.counters() if self.bound is not None else {}
        self.before = {name: -n for name, n in now.items()}

    def settings(self) -> Mapping[str, Value]:
        """Return the counts of each kind of request that there was, and times in microseconds."""
        told: dict[str, Value] = {"file": self._file or None}
        counted = self.counted()
        for op in Op:
            row = {name: counted.get(f"{op} {name}", 0) for name in COUNTED}
            if row["requests"]:
                told |= {f"{op} {name}": row[name] for name in COUNTED if name != "sum_ns"}
                told[f"{op} mean_us"] = _us(row["sum_ns"] / row["requests"])
                times = [counted.get(f"{op} {i}", 0) for i in range(BUCKETS)]
                for share in _SHARES:
                    told[f"{op} p{share}_us"] = _us(_at(times, share))
        return told

    def text(self) -> str:
        """Return `settings` as lines of text."""
        return "".join(f"{key}: {value}\n" for key, value in self.settings().items())


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    return Stats(below, file=options.get("file", ""))


def counters() -> tuple[str, ...]:
    """Return the names of what the core counts, in its order."""
    return tuple(f"{op} {name}" for op in Op for name in (*COUNTED, *range(BUCKETS)))


def _us(ns: float) -> float:
    """Return microseconds; where they are less than one, to the nanosecond."""
    return round(ns / 1000, 1 if ns >= 1000 else 3)  # noqa: PLR2004 - one


def _at(times: list[int], share: int) -> int:
    """Return the nanoseconds that *share* percent of the requests took at most, by the bucket."""
    left = sum(times) * share / 100
    for bucket, n in enumerate(times):
        left -= n
        if n and left <= 0:
            return _end(bucket)
    return 0


def _end(bucket: int) -> int:
    """Return the first nanosecond behind a bucket: as ``vhb_latency_bound``."""
    doubling, quarter = divmod(bucket, _PER_DOUBLING)
    return (_PER_DOUBLING + quarter) << (_FIRST_BIT + doubling - 2)
