"""The page: one HTML file without any request to elsewhere, made from the same values as the tables."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from evalkit.analysis import standing
from evalkit.analysis.compare import normal_interval, storage
from evalkit.config.settings import METRICS
from evalkit.report import plot, sheets
from evalkit.report.audit import audit_lines
from evalkit.report.card import CardTable, Judged, Leaderboard
from evalkit.scoring.published import CARD, AverageAudit
from evalkit.scoring.reruns import Deviation
from evalkit.storage.results import CellScores, QueryTable

SYMBOLS = {"MATCH": "✓", "NEAR": "≈", "HIGHER": "▲", "LOWER": "▼", "PROTOCOL-DIFFERS": "≠", "NOT-RUN": "○"}
MEANINGS = {
    "MATCH": "equal at the digits that were published",
    "NEAR": "within .001, three measured re-run deviations, or a declared index loss",
    "HIGHER": "above what was published",
    "LOWER": "below what was published",
    "PROTOCOL-DIFFERS": "measured under another setting, which is named",
    "NOT-RUN": "not measured here",
}
DEVIATES = f" {SYMBOLS['PROTOCOL-DIFFERS']}"
"""What marks a run that may not stand for its system wherever its name alone would say that it does."""
SCALE = 10_000
"""Values by query have four decimals on the page."""

PerQuery = Mapping[str, QueryTable]
"""Run id → each query's values."""


class Material(NamedTuple):
    """Everything that the page shows."""

    cells: Sequence[CellScores]
    judged: Sequence[Judged]
    tables: Sequence[CardTable]
    leaderboard: Leaderboard
    audit: Sequence[AverageAudit]
    per_query: PerQuery
    problems: Sequence[str]
    deviations: Sequence[Deviation] = ()
    judged_runs: Sequence[Judged] = ()
    """Every run with what was published for its cell, those among them that may not stand for their system."""


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
        origin=sheets.origin,
        sheets={table.name: sheets.card_sheet(table) for table in material.tables},
        leaderboard_sheet=sheets.leaderboard_sheet(material.leaderboard),
        tally={label: verdicts.count(label) for label in SYMBOLS},
        measured=len(verdicts) - verdicts.count("NOT-RUN") - verdicts.count("PROTOCOL-DIFFERS"),
        holding=verdicts.count("MATCH") + verdicts.count("NEAR"),
        unfounded=sum(not found.holds for found in material.audit),
        representative=standing.representative(material.cells),
        by_run=_by_run(material.judged_runs),
        deviations={(one.system, one.dim, one.dataset, one.metric): one for one in material.deviations},
        audit_lines=audit_lines(),
        elsewhere=_elsewhere(material.judged),
        others=[found for found in material.judged if found.score.source != CARD],
        plots=[(panel, plot.svg(panel)) for panel in _plots(material)],
        flat=flat,
        deviates=DEVIATES,
        departures=standing.departures,
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
    for cell in standing.representative(material.cells):
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
        queries = per_query.get(cell.run_id)
        known = queries is not None and cell.main_metric in queries.metrics
        interval = normal_interval(queries.column(cell.main_metric)) if queries is not None and known else None
        point = plot.Point(x, cell.metrics[cell.main_metric], f"dim {cell.dim}", interval)
        series.setdefault(cell.model, []).append(point)
    unit = "kB per passage" if counted else "bytes per vector"
    lines = tuple(plot.Series(name, tuple(points)) for name, points in series.items())
    title = f"Measured: {', '.join(series)} on {dataset}"
    return plot.Plot(title, unit, sheets.METRIC_NAMES.get(cells[0].main_metric, cells[0].main_metric), lines)


def _data(material: Material) -> Markup:
    """Return what the page's script reads: each run's values by query, as whole numbers of 1/SCALE in 16 bits.

    Runs on the same queries share one list of ids, and a run is unpacked when it is opened, so that the page of a whole
    card stays one that a browser opens at once. No text in it can end the script element.
    """
    lists: dict[tuple[str, ...], int] = {}
    runs = {}
    for cell in material.cells:
        if (table := material.per_query.get(cell.run_id)) is None:
            continue
        packed_MQ = np.floor(table.value_QM.T * SCALE + 0.5).astype("<u2")
        runs[cell.run_id] = {
            "system": (cell.model if cell.dim is None else f"{cell.model} ({cell.dim})")
            + (DEVIATES if standing.departures(cell) else ""),
            "dataset": cell.dataset,
            "main": cell.main_metric,
            "metrics": list(table.metrics),
            "queries": lists.setdefault(table.queries, len(lists)),
            "values": base64.b64encode(packed_MQ.tobytes()).decode(),
        }
    data = {"scale": SCALE, "queries": list(lists), "runs": runs}
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(escaped)  # noqa: S704 (JSON in which nothing can be markup)
