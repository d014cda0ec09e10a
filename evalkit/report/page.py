"""The page: one HTML file without any request to elsewhere, made from the same values as the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from evalkit.compare import bootstrap_interval, storage
from evalkit.published import CARD, AverageAudit
from evalkit.report import plot, sheets
from evalkit.report.audit import audit_lines
from evalkit.report.card import CardTable, Judged, Leaderboard
from evalkit.report.table import METRICS
from evalkit.results import CellScores

SYMBOLS = {"MATCH": "✓", "NEAR": "≈", "HIGHER": "▲", "LOWER": "▼", "PROTOCOL-DIFFERS": "≠", "NOT-RUN": "○"}
MEANINGS = {
    "MATCH": "equal at the digits that were published",
    "NEAR": "within .001, three measured re-run deviations, or a declared index loss",
    "HIGHER": "above what was published",
    "LOWER": "below what was published",
    "PROTOCOL-DIFFERS": "measured under another setting, which is named",
    "NOT-RUN": "not measured here",
}
PER_QUERY_DIGITS = 4

PerQuery = Mapping[str, tuple[tuple[str, ...], Mapping[str, tuple[float, ...]]]]
"""Run id → metric names and each query's values."""


class Material(NamedTuple):
    """Everything that the page shows."""

    cells: Sequence[CellScores]
    judged: Sequence[Judged]
    tables: Sequence[CardTable]
    leaderboard: Leaderboard
    audit: Sequence[AverageAudit]
    per_query: PerQuery
    problems: Sequence[str]


def render(material: Material) -> str:
    """Return the page; the same material gives the same bytes."""
    verdicts: list[str] = [found.verdict.label for found in material.judged if found.score.source == CARD]
    return _template().render(
        material=material,
        runs=sorted(material.cells, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0))),
        symbols=SYMBOLS,
        meanings=MEANINGS,
        metrics=METRICS,
        metric_names=sheets.METRIC_NAMES,
        fixed=sheets.fixed,
        card_digits=sheets.CARD_DIGITS,
        broken=sheets.broken,
        sheets={table.name: sheets.card_sheet(table) for table in material.tables},
        leaderboard_sheet=sheets.leaderboard_sheet(material.leaderboard),
        tally={label: verdicts.count(label) for label in SYMBOLS},
        by_run=_by_run(material.judged),
        audit_lines=audit_lines(),
        elsewhere=_elsewhere(material.judged),
        others=[found for found in material.judged if found.score.source != CARD],
        plots=[(panel, plot.svg(panel)) for panel in _plots(material)],
        flat=flat,
        data=_data(material),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("evalkit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2")


def _by_run(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Return what was published for each run, by run id."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        if one.cell is not None and one.measured is not None:
            found.setdefault(one.cell.run_id, []).append(one)
    return found


def _elsewhere(judged: Sequence[Judged]) -> dict[tuple[str, int | None, str, str], list[Judged]]:
    """Return what other sources published, by system, dim, dataset and metric."""
    found: dict[tuple[str, int | None, str, str], list[Judged]] = {}
    for one in judged:
        if one.score.source != CARD:
            key = (one.score.system, one.score.dim, one.score.dataset, one.score.metric)
            found.setdefault(key, []).append(one)
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as lines: dotted name and text.

    >>> flat({"a": {"b": [1, 2]}, "c": None})
    [('a.b', '1, 2'), ('c', '–')]
    """
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            lines.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            lines.append((f"{prefix}{name}", "–" if value is None else str(value)))
    return lines


def _plots(material: Material) -> list[plot.Plot]:
    """Return the card's published dims, and each dataset on which two systems with vectors were measured."""
    panels = []
    for table in material.tables:
        if table.name == "matryoshka":
            points = [
                plot.Point((system.dim or 0) * 2, average.stated or average.of_rows, f"dim {system.dim}")
                for system, average in table.averages.items()
            ]
            datasets = next(iter(table.averages.values())).datasets
            title = f"Published: jina-colbert-v2, mean of {', '.join(name.split('/')[1] for name in datasets)}"
            series = (plot.Series("jina-colbert-v2", tuple(points)),)
            panels.append(plot.Plot(title, "bytes per vector (fp16)", "NDCG@10", series))
    by_dataset: dict[str, list[CellScores]] = {}
    for cell in material.cells:
        if cell.dim is not None:
            by_dataset.setdefault(cell.dataset, []).append(cell)
    for dataset, cells in sorted(by_dataset.items()):
        if len(cells) > 1:
            panels.append(_measured_plot(dataset, cells, material.per_query))
    return panels


def _measured_plot(dataset: str, cells: Sequence[CellScores], per_query: PerQuery) -> plot.Plot:
    sizes = {cell.run_id: size for cell in cells if (size := storage(cell)) is not None}
    counted = all(size.per_passage is not None for size in sizes.values())
    series: dict[str, list[plot.Point]] = {}
    for cell in sorted(cells, key=lambda cell: cell.dim or 0):
        size = sizes[cell.run_id]
        x = size.per_passage / 1000 if counted and size.per_passage is not None else size.per_vector
        metrics, values = per_query.get(cell.run_id, ((), {}))
        interval = None
        if cell.main_metric in metrics:
            place = metrics.index(cell.main_metric)
            interval = bootstrap_interval([numbers[place] for numbers in values.values()])
        point = plot.Point(x, cell.metrics[cell.main_metric], f"dim {cell.dim}", interval)
        series.setdefault(cell.model, []).append(point)
    unit = "kB per passage" if counted else "bytes per vector"
    lines = tuple(plot.Series(name, tuple(points)) for name, points in series.items())
    title = f"Measured: {', '.join(series)} on {dataset}"
    return plot.Plot(title, unit, sheets.METRIC_NAMES.get(cells[0].main_metric, cells[0].main_metric), lines)


def _data(material: Material) -> Markup:
    """Return what the page's script reads: each run's values by query. No text in it can end the script element."""
    runs = {
        cell.run_id: {
            "system": cell.model if cell.dim is None else f"{cell.model} ({cell.dim})",
            "dataset": cell.dataset,
            "main": cell.main_metric,
            "metrics": list(material.per_query[cell.run_id][0]),
            "queries": [
                [query, *(round(value, PER_QUERY_DIGITS) for value in values)]
                for query, values in material.per_query[cell.run_id][1].items()
            ],
        }
        for cell in material.cells
        if cell.run_id in material.per_query
    }
    text = json.dumps(runs, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))  # noqa: S704
