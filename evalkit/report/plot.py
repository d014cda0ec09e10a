"""Plots as inline SVG, which takes its colours from the page. Axes start at zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from evalkit.report.rounding import fixed, signed

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 22, 46
ROW_HEIGHT = 34
"""Height of a row in a plot of differences."""
LEAST_SPAN = 0.02
"""The axis of a plot of differences reaches at least this far to both sides, so that noise looks small."""
CHARACTER_WIDTH = 6.3
"""Approximate width of a label's character."""


class Point(NamedTuple):
    """One mark: its position and its label."""

    x: float
    y: float
    label: str
    interval: tuple[float, float] | None = None
    """The confidence interval of y, drawn as a bar."""
    best: bool = True
    """Whether the point is Pareto-optimal (small x, large y); other points are drawn hollow."""


class Series(NamedTuple):
    """The marks of one system."""

    name: str
    points: tuple[Point, ...]


class Plot(NamedTuple):
    """A panel: series and the titles of the axes."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]


class Difference(NamedTuple):
    """A mean difference and the ends of its 95 % interval."""

    label: str
    value: float
    interval: tuple[float, float]


class Differences(NamedTuple):
    """A panel of paired differences, one row for each."""

    title: str
    x_title: str
    rows: tuple[Difference, ...]


def svg(plot: Plot) -> Markup:
    """Return a panel as SVG; its label lists the points for screen readers.

    Both axes start at zero, so that differences have their true proportion.
    """
    points = [point for series in plot.series for point in series.points]
    x_ticks = _ticks([0.0, *(point.x for point in points)])
    y_ticks = _ticks([0.0, *(end for point in points for end in (point.y, *(point.interval or ())))])
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + value / (x_ticks[-1] or 1) * (right - LEFT)

    def y(value: float) -> float:
        return base - max(value, 0.0) / (y_ticks[-1] or 1) * (base - TOP)

    description = "; ".join(f"{point.label}, {point.x:.4g} {plot.x_title}, {fixed(point.y, 5)}" for point in points)
    parts = [_svg_tag(HEIGHT, f"{plot.title}: {description}")]
    digits = _digits(y_ticks)
    for tick in y_ticks:
        parts += [
            _line("grid", LEFT, right, y(tick), y(tick)),
            _text(LEFT - 6, y(tick) + 4, f"{tick:.{digits}f}", anchor="end"),
        ]
    parts += [_text(x(tick), base + 16, f"{tick:g}") for tick in x_ticks]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, plot.x_title, kind="axis"))
    parts.append(
        Markup('<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (TOP + base) / 2, plot.y_title
        )
    )
    best = sorted({(point.x, point.y) for point in points if point.best})
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in best)
    parts.append(Markup('<polyline class="frontier" points="{}"/>').format(path))
    places = _label_places(
        [(x(point.x), *_vertical_extent(y, point), len(point.label) * CHARACTER_WIDTH) for point in points]
    )
    for number, series in enumerate(plot.series):
        parts.append(Markup('<g class="series s{}">').format(number % 4))
        for point in series.points:
            if point.interval is not None:
                low, high = point.interval
                parts.append(_line("bar", x(point.x), x(point.x), y(low), y(high)))
            parts.append(
                Markup('<circle{} cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                    *("" if point.best else Markup(' class="hollow"'), x(point.x), y(point.y)),
                    f"{series.name}, {point.label}: {fixed(point.y, 5)} at {point.x:g} {plot.x_title}",
                )
            )
            across, down, anchor = places.pop(0)
            parts.append(_text(across, down, point.label, anchor=anchor))
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def differences(plot: Differences) -> Markup:
    """Return a panel of paired differences as SVG with zero in the middle."""
    left, right, height = 100, WIDTH - RIGHT, TOP + ROW_HEIGHT * len(plot.rows) + BOTTOM
    most = max(LEAST_SPAN, *(abs(end) for row in plot.rows for end in (row.value, *row.interval)))
    half = _ticks([0.0, most])[-1]
    middle, base = (left + right) / 2, height - BOTTOM

    def x(value: float) -> float:
        return middle + value / half * (right - left) / 2

    description = "; ".join(
        f"{row.label}, {signed(row.value, 4)}, {signed(row.interval[0], 4)} to {signed(row.interval[1], 4)}"
        for row in plot.rows
    )
    parts = [_svg_tag(height, f"{plot.title}: {description}")]
    for tick in (-half, -half / 2, 0.0, half / 2, half):
        parts += [
            _line("grid" if tick else "zero", x(tick), x(tick), TOP - 8, base),
            _text(x(tick), base + 16, f"{tick:+g}" if tick else "0"),
        ]
    parts.append(_text(middle, height - 8, plot.x_title, kind="axis"))
    for number, row in enumerate(plot.rows):
        y = TOP + ROW_HEIGHT * (number + 0.5)
        parts += [
            _text(left - 10, y + 4, row.label, anchor="end", kind="row"),
            Markup('<g class="series s0">'),
            _line("bar", x(row.interval[0]), x(row.interval[1]), y, y),
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                *(x(row.value), y),
                f"{row.label}: {signed(row.value, 5)}, "
                f"95 % {signed(row.interval[0], 5)} to {signed(row.interval[1], 5)}",
            ),
            _text(x(row.value), y - 9, signed(row.value, 4)),
            Markup("</g>"),
        ]
    return Markup("").join([*parts, Markup("</svg>")])


def _svg_tag(height: int, description: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, description)


def _line(kind: str, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(kind, x1, x2, y1, y2)


def _text(x: float, y: float, text: str, *, anchor: str = "middle", kind: str = "tick") -> Markup:
    """Return a text element."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _vertical_extent(y: Callable[[float], float], point: Point) -> tuple[float, float]:
    """Return the top and bottom of a point's marker and interval bar; `y` maps a value to its drawn position."""
    low, high = point.interval or (point.y, point.y)
    return min(y(high), y(point.y) - 5), max(y(low), y(point.y) + 5)


def _label_places(points: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float, str]]:
    """Return x, y and anchor of each label: above its point and bar, or below if it would cover another label.

    A point is its x, its top and bottom (see `_vertical_extent`) and the width of its label.
    """
    taken: list[tuple[float, float, float, float]] = [(x - 5, top, x + 5, bottom) for x, top, bottom, _ in points]
    found = []
    for x, top, bottom, width in points:
        anchor = "end" if x + width / 2 > WIDTH else "start" if x - width / 2 < LEFT else "middle"
        left = {"end": x - width, "start": x, "middle": x - width / 2}[anchor]
        places = (top - 4, bottom + 14, top - 18, bottom + 28, top - 32, bottom + 42, bottom + 56, bottom + 70)
        downs = [place for place in places if place > TOP / 2]
        boxes = [(left, down - 10, left + width, down + 2) for down in downs]
        free = [place for place, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        found.append((x, downs[chosen], anchor))
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers that span all values.

    >>> _ticks([0, 0.599]), _ticks([0.0, 0.0])
    ([0.0, 0.2, 0.4, 0.6], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    """
    low, high = min(values), max(values)
    if low == high:
        low, high = 0.0, 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _digits(ticks: Sequence[float]) -> int:
    return max(len(f"{tick:.10g}".partition(".")[2]) for tick in ticks)
