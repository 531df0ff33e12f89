"""Pictures are well-formed and have what was measured, from a document made up for it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.figures import Spread
from bench.plot import PERCENTILES, charts, groups
from bench.sample import Load
from bench.svg import Chart, Series, number, render, ticks

SVG = "{http://www.w3.org/2000/svg}"


def entry(name: str, depth: int, iops: float, cpu: float = 0.5) -> dict[str, object]:
    sample = {
        "iops": iops,
        "server_cpu_us": cpu,
        "latency_us": {percent: 1.0 + index for index, percent in enumerate(PERCENTILES)},
    }
    return {
        "name": name,
        "work": "null",
        "devices": 1,
        "again": name.endswith("again"),
        "rival": "fio" if "fio" in name else "",
        "load": asdict(Load(depth=depth)),
        "samples": [sample, {**sample, "iops": iops * 2}],
    }


@pytest.fixture
def content() -> Mapping[str, Any]:
    return {
        "lines": [
            {
                "entries": [
                    entry("vhostblk", depth, 1000.0 * depth),
                    entry("vhostblk again", depth, 1.0),
                    entry("fio <worse>", depth, 300.0 * depth, cpu=0.0),
                    entry("fio <best>", depth, 500.0 * depth, cpu=0.0),
                ]
            }
            for depth in (1, 32)
        ]
    }


def test_loads_that_differ_in_depth_share_a_picture(content: Mapping[str, Any]) -> None:
    """The A/A run is left out; of rivals the best one stands for all."""
    [group] = groups(content)
    assert group.name == "null randread 4K block"
    assert sorted(group.runs) == [1, 32]
    assert group.names == ["vhostblk", "fio (best)"]
    assert [sample["iops"] for sample in group.runs[32]["fio (best)"]] == [16000.0, 32000.0]


def test_pictures_are_well_formed_and_complete(content: Mapping[str, Any]) -> None:
    """A point for each who was measured at each depth; who has no CPU time is not drawn there."""
    drawn = {name: ET.fromstring(render(chart)) for name, chart in charts(content)}
    circles = {name: len(root.findall(f"{SVG}circle")) for name, root in drawn.items()}
    assert circles == {
        "null-randread-4k-block-iops": 4,
        "null-randread-4k-block-cpu": 2,
        "null-randread-4k-block-latency-qd1": 2 * len(PERCENTILES),
        "null-randread-4k-block-latency-qd32": 2 * len(PERCENTILES),
    }
    texts = [text.text for text in drawn["null-randread-4k-block-iops"].findall(f"{SVG}text")]
    assert {"vhostblk", "fio (best)", "1", "32", "IOPS"} <= set(texts)


def test_nothing_is_drawn_outside_of_the_picture(content: Mapping[str, Any]) -> None:
    """Neither the ends of a spread nor a label."""
    for _, chart in charts(content):
        root = ET.fromstring(render(chart))
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for line in root.iter(f"{SVG}line"):
            assert all(0 <= float(line.attrib[x]) <= width for x in ("x1", "x2"))
            assert all(0 <= float(line.attrib[y]) <= height for y in ("y1", "y2"))


def test_names_are_no_markup() -> None:
    """A peer may be called anything."""
    chart = Chart(
        title="<t>",
        unit="u&",
        below="b",
        places=["1"],
        series=[Series("<&>", [Spread(1, 1, 1)])],
    )
    root = ET.fromstring(render(chart))
    assert {"<t>", "u&", "<&>"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_a_larger_rate_is_higher() -> None:
    """Rows of an SVG count downwards."""
    chart = Chart(
        title="t",
        unit="u",
        below="b",
        places=["1", "2"],
        series=[Series("a", [Spread(10, 5, 20), Spread(100, 50, 200)])],
    )
    root = ET.fromstring(render(chart))
    low, high = (float(circle.attrib["cy"]) for circle in root.iter(f"{SVG}circle"))
    assert high < low


def test_a_chart_without_a_point_is_an_error() -> None:
    """Rather than an empty picture."""
    empty = Chart(title="t", unit="u", below="b", places=["1"], series=[Series("a", [None])])
    with pytest.raises(ValueError, match="nothing to draw"):
        render(empty)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (3.0, 30.0, [2, 5, 10, 20, 50]),
        (1.0, 1.0, [1]),
        (0.13, 0.4, [0.1, 0.2, 0.5]),
        (999.0, 1001.0, [500, 1000, 2000]),
    ],
)
def test_ticks_hold_everything_between_them(low: float, high: float, wanted: list[float]) -> None:
    """1, 2 and 5 times powers of ten."""
    assert ticks(low, high) == pytest.approx(wanted)


def test_ticks_are_written_short() -> None:
    """As one says them."""
    assert [number(n) for n in (2e6, 5e5, 50.0, 0.2)] == ["2M", "500k", "50", "0.2"]
