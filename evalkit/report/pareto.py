"""Plot quality against storage; a line joins the Pareto-optimal systems."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalkit.analysis.compare import storage
from evalkit.errors import ConfigError, ScoreError
from evalkit.report.places import shown
from evalkit.storage import keys
from evalkit.storage.paths import write_atomic
from evalkit.storage.results import CellScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import BboxBase

    from evalkit.analysis.precision import Narrowed

INK = "#1f5f8b"
HALF_MARK = 5
"""Half a mark's width in pixels of the drawing."""
LABEL_OFFSETS = tuple((x, y) for y in (5, -12, 17, -24, 29, -36, 41, -48) for x in (6, -6))
"""Positions of a label relative to its point, in points to the right and up; the preferred ones first."""
COLUMNS = 3
"""Panels side by side."""
MOST_LABELS = 14
"""Up to this many points of a panel have labels; more are distinguished by shape and colour."""
SHAPES = {"float32": "P", "float16": "o", "int8": "s", "int4": "^", "binary": "D"}
"""The mark of each storage format."""
COLOURS = (INK, "#c8553d", "#4f8a4c", "#7b5ea7")
"""The colours of pooling factors, the smallest first."""
FORMATS = (".svg", ".png", ".pdf")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal points (bytes, quality), sorted by bytes.

    >>> front([(256, 0.60), (128, 0.59), (192, 0.58)])
    [1, 0]
    """
    best, kept = float("-inf"), []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if points[place][1] > best:
            best = points[place][1]
            kept.append(place)
    return kept


class Point(NamedTuple):
    """One way to store the vectors of one cell."""

    kilobytes: float
    """Per passage."""
    quality: float
    label: str
    interval: tuple[float, float] | None
    """The 95 % confidence interval of the mean over queries."""
    form: tuple[str, int] = ("", 1)
    """The storage format and the pooling factor; empty and 1 if no other form was measured."""


def points(
    cells: Sequence[CellScores],
    *,
    intervals: Mapping[str, tuple[float, float]],
    narrowed: Mapping[str, Sequence[Narrowed]],
) -> dict[tuple[str, str], list[Point]]:
    """Return the points to draw, by dataset and main metric: cells with a number of vectors, and their smaller forms.

    `intervals` and `narrowed` are by run id.
    """
    found: dict[tuple[str, str], list[Point]] = {}
    for cell in cells:
        size = storage(cell)
        if size is None or size.per_passage is None:
            continue
        name, panel = keys.label(cell.model, cell.dim), found.setdefault((shown(cell), cell.main_metric), [])
        quality = cell.metrics[cell.main_metric]
        stored = str(cell.protocol.get("stored_dtype", "float16")) if narrowed.get(cell.run_id) else ""
        panel.append(Point(size.per_passage / 1000, quality, name, intervals.get(cell.run_id), (stored, 1)))
        for one in narrowed.get(cell.run_id, ()):
            if one.bytes_per_vector == size.per_vector and one.factor == 1:
                continue  # the form in which the cell is stored
            kilobytes = size.per_passage * one.bytes_per_vector / size.per_vector / 1000
            if one.bytes_per_document is not None:
                kilobytes = one.bytes_per_document / 1000
            pooled = "" if one.factor == 1 else f" pool {one.factor}"
            panel.append(Point(kilobytes, one.value, f"{name} {one.width}{pooled}", None, (one.width, one.factor)))
    return dict(sorted(found.items()))


def label(axis: Axes, panel: Sequence[Point]) -> list[Annotation]:
    """Place each point's label at the first of LABEL_OFFSETS where it covers no other label and no point.

    The axis must have its final size and limits. A label that fits nowhere is placed where it covers least.
    """
    from matplotlib.transforms import Bbox

    frame = axis.get_window_extent()
    marks = [
        Bbox.from_bounds(x - HALF_MARK, y - HALF_MARK, 2 * HALF_MARK, 2 * HALF_MARK)
        for x, y in (axis.transData.transform((point.kilobytes, point.quality)) for point in panel)
    ]
    written: list[Annotation] = []
    taken: list[BboxBase] = []
    for place, point in enumerate(panel):
        text = axis.annotate(
            point.label, (point.kilobytes, point.quality), xytext=LABEL_OFFSETS[0], textcoords="offset points"
        )
        others = [*taken, *marks[:place], *marks[place + 1 :]]
        costs = []
        for number, (x, y) in enumerate(LABEL_OFFSETS):
            text.set(position=(x, y), horizontalalignment="left" if x > 0 else "right")
            box = text.get_window_extent()
            outside = not (frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0))
            outside = outside or not frame.containsy(box.y1)
            costs.append((outside + box.count_overlaps(others), number))
        x, y = LABEL_OFFSETS[min(costs)[1]]
        text.set(position=(x, y), horizontalalignment="left" if x > 0 else "right")
        taken.append(text.get_window_extent())
        written.append(text)
    return written


def _legend(panels: Mapping[tuple[str, str], Sequence[Point]], *, intervals: bool) -> list[Line2D]:
    """Return the legend: filled and hollow marks, intervals if any, and shapes and colours of many forms."""
    from matplotlib.lines import Line2D

    meanings = [
        Line2D([], [], color=INK, marker="o", label="no other is smaller and better"),
        Line2D([], [], color=INK, marker="o", linestyle="none", markerfacecolor="white", label="another is"),
    ]
    if intervals:
        meanings.append(Line2D([], [], color=INK, alpha=0.35, marker="|", linestyle="none", label="95 % over queries"))
    forms = {point.form for panel in panels.values() if len(panel) > MOST_LABELS for point in panel}
    factors = sorted({factor for _, factor in forms})
    meanings += [
        Line2D([], [], color=INK, marker=shape, linestyle="none", markerfacecolor="white", label=width)
        for width, shape in SHAPES.items()
        if width in {width for width, _ in forms}
    ]
    meanings += [
        Line2D([], [], color=_colour(factor, factors), marker="o", linestyle="none", label=f"pool {factor}")
        for factor in factors
    ]
    return meanings


def _labelled(panel: Sequence[Point]) -> list[Point]:
    """Return the points that get a label: all, or if they are too many, those of the cells as they are stored."""
    return list(panel) if len(panel) <= MOST_LABELS else [point for point in panel if point.interval is not None]


def _colour(factor: int, factors: Sequence[int]) -> str:
    return COLOURS[factors.index(factor) % len(COLOURS)]


def _scatter_few(axis: Axes, panel: Sequence[Point], best: Sequence[int]) -> None:
    """Draw points that labels distinguish. The axis of quality begins at zero, so differences keep their proportion."""
    for place, point in enumerate(panel):
        axis.scatter(point.kilobytes, point.quality, edgecolors=INK, color=INK if place in best else "white", zorder=3)
    axis.margins(0.1)
    axis.set_xlim(left=0)
    top = max(end for point in panel for end in (point.quality, *(point.interval or ())))
    axis.set_ylim(0, 1.12 * top or 1)


def _scatter_many(axis: Axes, panel: Sequence[Point], best: Sequence[int]) -> None:
    """Draw points that shape and colour distinguish. Storage is in powers of two, and quality is zoomed in."""
    factors = sorted({point.form[1] for point in panel})
    for place, point in enumerate(panel):
        colour = _colour(point.form[1], factors)
        axis.scatter(
            point.kilobytes,
            point.quality,
            marker=SHAPES.get(point.form[0], "o"),
            edgecolors=colour,
            color=colour if place in best else "white",
            zorder=3,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.margins(0.1)


def draw(
    cells: Sequence[CellScores],
    path: Path,
    *,
    intervals: Mapping[str, tuple[float, float]] = {},
    narrowed: Mapping[str, Sequence[Narrowed]] = {},
) -> None:
    """Write the plot with one panel per dataset and main metric. The same cells give the same bytes.

    Both axes start at zero, except in a panel with more than MOST_LABELS forms: its storage axis is in powers of two,
    and shapes and colours replace labels.

    Raises ConfigError for an unknown format, ScoreError if no cell has a count of its vectors.
    """
    if path.suffix not in FORMATS:
        msg = f"plot {path}: got format {path.suffix!r}, wanted one of {', '.join(FORMATS)}"
        raise ConfigError(msg)
    panels = points(cells, intervals=intervals, narrowed=narrowed)
    if not panels:
        msg = "got no cell with a count of its vectors, wanted one with dims that this evalkit computed"
        raise ScoreError(f"{msg} (evalkit run model=…)")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "evalkit", "font.size": 9}):
        rows, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
        figure, axes = plt.subplots(rows, columns, figsize=(5.4 * columns, 0.4 + 3.6 * rows), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, ((dataset, metric), panel) in zip(axes.flat, panels.items(), strict=False):
            best = front([(point.kilobytes, point.quality) for point in panel])
            axis.plot([panel[place].kilobytes for place in best], [panel[place].quality for place in best], color=INK)
            for point in panel:
                if point.interval is not None:
                    axis.vlines(point.kilobytes, *point.interval, color=INK, alpha=0.35)
            (_scatter_many if len(panel) > MOST_LABELS else _scatter_few)(axis, panel, best)
            axis.set(title=f"{dataset}: quality against storage", xlabel="kB per passage", ylabel=metric)
            axis.grid(alpha=0.3)
        legend = _legend(panels, intervals=bool(intervals))
        figure.legend(handles=legend, loc="lower center", ncols=3, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.08 * -(-len(legend) // 3) / rows * (0.7 if len(legend) > 3 else 1), 1, 1))
        for axis, panel in zip(axes.flat, panels.values(), strict=False):
            label(axis, _labelled(panel))
        data = io.BytesIO()
        figure.savefig(
            data,
            format=path.suffix[1:],
            metadata={".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix),
        )
        plt.close(figure)
    write_atomic(path, data.getvalue())
