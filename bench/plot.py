"""
Pictures of a run: ``python -m bench.plot FILE.json DIRECTORY``.

For each disk and kind of load, by depth: requests per second, and CPU time of the server for each;
and for depths 1 and 32 how latencies are distributed.  A point is the median over turns, the bar
through it reaches from the smallest to the largest.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.figures import Spread, spread
from bench.sample import Load
from bench.svg import Chart, Series, render

Figure = Callable[[Mapping[str, Any]], float]
PERCENTILES = ("1", "25", "50", "75", "90", "99", "99.9", "99.99")
DEPTHS = (1, 32)
"""Whose latencies are drawn, where they were measured."""


@dataclass(frozen=True, slots=True)
class Group:
    """
    Loads that differ in their depth only.

    Args:
        name: What they have in common.
        runs: Samples by depth and by who took turns; of rivals the best one's, by what they are.
    """

    name: str
    runs: dict[int, dict[str, list[Mapping[str, Any]]]]

    @property
    def names(self) -> list[str]:
        """Who took turns at any depth, ours first."""
        return list({name: None for runs in self.runs.values() for name in runs})


def groups(content: Mapping[str, Any]) -> list[Group]:
    """Sort the lines of a document; what has another disk or load than its line is left out."""
    found: dict[str, Group] = {}
    for line in content["lines"]:
        first = line["entries"][0]
        load = Load(**first["load"])
        work, devices = first["work"], first["devices"]
        kind = f"{load.order}{load.op} {load.bytes >> 10}K"
        many = f" {load.queues}q" * (load.queues > 1) + f" {devices}dev" * (devices > 1)
        name = f"{work} {kind}{many} {load.wait}"
        runs = found.setdefault(name, Group(name, {})).runs.setdefault(load.depth, {})
        for entry in line["entries"]:
            same = entry["work"] == work and entry["load"] == first["load"]
            if same and not entry["again"] and entry["samples"][0]["latency_us"].get("90"):
                name = f"{entry['rival']} (best)" if entry["rival"] else entry["name"]
                runs[name] = max(runs.get(name, []), entry["samples"], key=rate)
    return list(found.values())


def rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the median rate over turns; 0 of none."""
    return statistics.median(sample["iops"] for sample in runs) if runs else 0.0


def by_depth(group: Group, title: str, unit: str, figure: Figure) -> Chart | None:
    """Draw a figure by depth; None where nobody has it, or there is one depth only."""
    series = []
    for name in group.names:
        points = [_spread(runs.get(name), figure) for _, runs in sorted(group.runs.items())]
        if any(points):
            series.append(Series(name, points))
    if not series or len(group.runs) == 1:
        return None
    places = [str(depth) for depth in sorted(group.runs)]
    return Chart(
        title=f"{group.name}: {title}",
        unit=unit,
        below="requests under way",
        places=places,
        series=series,
    )


def latencies(group: Group, depth: int) -> Chart | None:
    """Draw how latencies are distributed at a depth; None where it was not measured."""
    if depth not in group.runs:
        return None
    series = [
        Series(name, [_spread(runs, _percentile(percent)) for percent in PERCENTILES])
        for name, runs in group.runs[depth].items()
    ]
    return Chart(
        title=f"{group.name} QD{depth}: latency",
        unit="us",
        below="percent of requests that took no longer",
        places=PERCENTILES,
        series=series,
    )


def charts(content: Mapping[str, Any]) -> Iterator[tuple[str, Chart]]:
    """Yield all charts of a document, each with a name for its file."""
    for group in groups(content):
        drawn = {
            "iops": by_depth(group, "requests per second", "IOPS", lambda s: s["iops"]),
            "cpu": by_depth(
                group, "CPU time of the server", "us per request", lambda s: s["server_cpu_us"]
            ),
            **{f"latency-qd{depth}": latencies(group, depth) for depth in DEPTHS},
        }
        for kind, chart in drawn.items():
            if chart is not None:
                yield f"{group.name} {kind}".lower().replace(" ", "-"), chart


def _percentile(percent: str) -> Figure:
    return lambda sample: sample["latency_us"].get(percent, 0.0)


def _spread(runs: list[Mapping[str, Any]] | None, figure: Figure) -> Spread | None:
    values = [figure(sample) for sample in runs or ()]
    # A logarithmic scale has no place for nothing.
    return spread(values) if values and min(values) > 0 else None


def main() -> None:
    """Draw what a run has kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("file", type=Path, help="from python -m bench --json FILE")
    parser.add_argument("directory", type=Path, help="where the pictures go")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    for name, chart in charts(report.read(args.file)):
        path = args.directory / f"{name}.svg"
        path.write_text(render(chart))
        print(path)


if __name__ == "__main__":
    main()
