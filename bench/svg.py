"""
Charts as SVG: lines over a few named points, with the spread of each, on a logarithmic scale.

Our own, as one kind of chart is all that is wanted: a library would be larger than the bench.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import Spread

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 44, 48
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart."""
PLACES = 8
"""Points that are labelled below at most."""


@dataclass(frozen=True, slots=True)
class Series:
    """
    A line of a chart.

    Args:
        name: In the legend.
        points: One for each place on the x axis, above 0; None: there is none.
    """

    name: str
    points: Sequence[Spread | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """
    A chart.

    Args:
        title: Above it.
        unit: Of the y axis.
        below: What the x axis is.
        places: Its places, from left to right.
        series: The first is drawn strongest.
    """

    title: str
    unit: str
    below: str
    places: Sequence[str]
    series: Sequence[Series]


def number(value: float) -> str:
    """Write a tick: ``500k``, ``2M``, ``0.3``."""
    for letter, factor in (("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, the ends at *low* or below and *high* or above."""
    steps = [
        round(factor * 10.0**power, 12)
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    first = max(step for step in steps if step <= low)
    last = min(step for step in steps if step >= high)
    return [step for step in steps if first <= step <= last]


def render(chart: Chart) -> str:
    """
    Draw a chart.

    Raises:
        ValueError: It has no point at all.
    """
    points = [point for one in chart.series for point in one.points if point is not None]
    if not points:
        raise ValueError(f"{chart.title}: nothing to draw")
    scale = ticks(min(p.low for p in points), max(p.high for p in points))
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    font = 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}>',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 20, chart.title, weight="bold"),
        _text(LEFT, 36, chart.unit, colour="#555555"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, chart.below, anchor="middle"),
        *_grid(chart, scale),
    ]
    for index, one in reversed(list(enumerate(chart.series))):
        parts += _series(one, index, len(chart.places), scale)
    return "\n".join([*parts, "</svg>", ""])


def _x(place: int, places: int) -> float:
    step = (WIDTH - LEFT - RIGHT) / places
    return LEFT + step * (place + 0.5)


def _y(value: float, scale: Sequence[float]) -> float:
    low, high = math.log(scale[0]), math.log(scale[-1])
    share = 0.5 if high == low else (math.log(value) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(chart: Chart, scale: Sequence[float]) -> list[str]:
    parts = []
    # Where there are many ticks, those of powers of ten will do.
    many = len(scale) > 2 * PLACES
    for value in scale:
        if many and not math.log10(value).is_integer():
            continue
        y = _y(value, scale)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, number(value), anchor="end"))
    for index, place in enumerate(chart.places):
        x = _x(index, len(chart.places))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, place, anchor="middle"))
    return parts


def _series(series: Series, index: int, places: int, scale: Sequence[float]) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    # The spreads of several lines at one place stand beside each other.
    aside = (index - 1) * 3.0
    known = [(_x(at, places) + aside, p) for at, p in enumerate(series.points) if p is not None]
    path = " ".join(f"{x:.1f},{_y(p.median, scale):.1f}" for x, p in known)
    wide = 3 if index == 0 else 1.5
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{wide}"/>']
    for x, p in known:
        ends = f'y1="{_y(p.low, scale):.1f}" y2="{_y(p.high, scale):.1f}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{colour}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{_y(p.median, scale):.1f}" r="3" fill="{colour}"/>')
    y = TOP + 12 + index * 18
    parts.append(
        f'<line x1="{WIDTH - RIGHT + 10}" x2="{WIDTH - RIGHT + 30}" y1="{y}" y2="{y}" '
        f'stroke="{colour}" stroke-width="{wide}"/>'
    )
    weight = "bold" if index == 0 else "normal"
    parts.append(_text(WIDTH - RIGHT + 36, y + 4, series.name, weight=weight))
    return parts


def _text(  # noqa: PLR0913 - attributes of the element
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "#222222",
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
