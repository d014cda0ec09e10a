"""Line plots as inline SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 62, 18, 46


class Point(NamedTuple):
    """One mark: where it is, and what is written beside it."""

    x: float
    y: float
    label: str
    interval: tuple[float, float] | None = None
    """From where to where its y may be, drawn as a bar."""


class Series(NamedTuple):
    """Marks that belong together, joined by a line."""

    name: str
    points: tuple[Point, ...]


class Plot(NamedTuple):
    """A panel: titled axes and series."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]


def svg(plot: Plot) -> Markup:
    """Return a panel as SVG; a person who cannot see it hears its points."""
    points = [point for series in plot.series for point in series.points]
    x_ticks, y_ticks = (
        _ticks([point.x for point in points], zero=True),
        _ticks([end for point in points for end in (point.y, *(point.interval or ()))]),
    )

    def x(value: float) -> str:
        span = (x_ticks[-1] - x_ticks[0]) or 1
        return f"{LEFT + (value - x_ticks[0]) / span * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        span = (y_ticks[-1] - y_ticks[0]) or 1
        return f"{HEIGHT - BOTTOM - (value - y_ticks[0]) / span * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{plot.title}: " + "; ".join(f"{point.label}, {point.x:g}, {point.y:g}" for point in points)
        )
    ]
    digits = _digits(y_ticks)
    for tick in y_ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y(tick), y(tick))
        )
        parts.append(
            Markup('<text x="{}" y="{}" dy=".35em" text-anchor="end">{}</text>').format(
                LEFT - 6, y(tick), f"{tick:.{digits}f}"
            )
        )
    parts += [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}")
        for tick in x_ticks
    ]
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, plot.x_title
        )
    )
    parts.append(
        Markup('<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (TOP + HEIGHT - BOTTOM) / 2, plot.y_title
        )
    )
    for place, series in enumerate(plot.series):
        line = " ".join(f"{x(point.x)},{y(point.y)}" for point in series.points)
        parts.append(Markup('<g class="series s{}">').format(place % 4))
        parts.append(Markup('<polyline points="{}"/>').format(line))
        parts += [
            Markup('<line class="bar" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                x(point.x), x(point.x), y(point.interval[0]), y(point.interval[1])
            )
            for point in series.points
            if point.interval is not None
        ]
        for point in series.points:
            parts.append(
                Markup(
                    '<circle cx="{}" cy="{}" r="4.5"><title>{}</title></circle>'
                    '<text x="{}" y="{}" dx="8" dy="-7">{}</text>'
                ).format(
                    *(x(point.x), y(point.y), f"{series.name}, {point.label}: {point.y:.5f} at {point.x:g}"),
                    *(x(point.x), y(point.y), point.label),
                )
            )
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def _ticks(values: Sequence[float], *, zero: bool = False) -> list[float]:
    """Return round numbers from below the least value to above the greatest.

    >>> _ticks([0.589, 0.599])
    [0.588, 0.59, 0.592, 0.594, 0.596, 0.598, 0.6]
    """
    low, high = (0.0 if zero else min(values)), max(values)
    if low == high:
        low, high = low - 0.005, high + 0.005
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _digits(ticks: Sequence[float]) -> int:
    return max(len(f"{tick:.10g}".partition(".")[2]) for tick in ticks)
