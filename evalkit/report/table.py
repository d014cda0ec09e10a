"""The table of cells with published and measured scores and Δ, for a terminal or as Markdown.

Scores have five decimals and differences four, as is customary in the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from evalkit.analysis import comparability
from evalkit.config.settings import METRICS
from evalkit.report import places
from evalkit.report.card import JudgedMean, by_dataset, judge_means, mean_of, verdict_on
from evalkit.report.grid import Column, Grid, Line
from evalkit.report.rounding import ABSENT, fixed, signed
from evalkit.report.rounding import dim as dim_of
from evalkit.scoring import published, reruns
from evalkit.scoring.mteb_results import MEASURED_BY
from evalkit.scoring.reruns import Deviation
from evalkit.storage.results import CellScores, distinctions
from evalkit.texts import printable

TEXT_COLUMNS = ("system", "dataset", "compared", "verdict", "source")


class Row(NamedTuple):
    """One cell with one of its published scores, or with none."""

    cell: CellScores
    published: published.PublishedScore | None
    verdict: published.Verdict | None


def rows(cells: Iterable[CellScores], *, deviations: Sequence[Deviation] = ()) -> list[Row]:
    """Pair each cell with the published scores of its main metric: the card's first, then those of other sources."""
    paired = []
    spread = reruns.by_cell(deviations)
    for cell in sorted(cells, key=places.order):
        key = (cell.model, cell.dim, cell.dataset, cell.main_metric)
        found = published.find(*key)
        deviation = spread.get((cell.run_id, cell.main_metric), 0.0)
        paired += [Row(cell, score, verdict_on(cell, score, deviation=deviation)) for score in found]
        if not found:
            paired.append(Row(cell, None, None))
    return paired


class Lacking(NamedTuple):
    """A cell that could not be computed, and the reason."""

    system: str
    dim: int | None
    dataset: str
    reason: str


class Mean(NamedTuple):
    """A system's mean over a completely measured collection, with one published mean of it if there is any."""

    system: str
    dim: int | None
    collection: str
    """Its name and, in parentheses, its number of datasets."""
    metric: str
    value: float | None
    """None if the cells have different protocols."""
    judged: JudgedMean | None
    differs: tuple[str, ...] = ()
    """A sentence for each setting that rules out the mean; a published mean's verdict has them too."""


def collection_means(cells: Sequence[CellScores]) -> list[Mean]:
    """Return the means over the collections that have published means, for each system with all of their datasets."""
    judged = [one for one in judge_means(cells) if len(one.cells) == len(one.mean.datasets)]
    found = [
        Mean(
            one.score.system,
            one.score.dim,
            _collection(one.score.dataset, len(one.cells)),
            one.score.metric,
            one.measured,
            one,
        )
        for one in judged
    ]
    known = {(mean.system, mean.dim, mean.collection) for mean in found}
    by_cell = by_dataset(cells)
    collections = {(mean.score.dataset, mean.datasets, mean.score.metric) for mean in published.published_means()}
    for model, dim in dict.fromkeys((cell.model, cell.dim) for cell in cells):
        for name, datasets, metric in sorted(collections):
            members = [
                cell for each in datasets if (cell := by_cell.get((model, dim, each))) and metric in cell.metrics
            ]
            title = _collection(name, len(datasets))
            if len(members) == len(datasets) and (model, dim, title) not in known:
                value, differs = mean_of(members, metric)
                found.append(Mean(model, dim, title, metric, value, None, differs))
    return sorted(found, key=lambda mean: (mean.collection, mean.system, -(mean.dim or 0)))


def _collection(name: str, count: int) -> str:
    return f"{name} ({count})"


def terminal(
    table_rows: Sequence[Row], *, lacking: Sequence[Lacking] = (), means: Sequence[Mean] = (), wide: bool = False
) -> Grid:
    """Return the table for a terminal: the main metric and its verdict; `wide` adds the other metrics and the groups.

    Means over whole collections follow after the cells. The settings that make a verdict PROTOCOL-DIFFERS are printed
    below its row, and so are a cell's deviations without a verdict, and the settings that distinguish results of the
    same cell.
    """
    metrics = {row.cell.main_metric for row in table_rows}
    value = [Column(next(iter(metrics)), "number")] if len(metrics) == 1 else [Column("metric", moves=3)]
    value += [] if len(metrics) == 1 else [Column("value", "number")]
    others = [name for name in METRICS if metrics != {name}]
    groups = _groups(table_rows)
    losses = comparability.index_losses(row.cell for row in table_rows)
    asked = [name for name in _metrics(table_rows) if name not in METRICS and metrics != {name}]
    columns = (
        *(Column("system", "name"), Column("dim", "number"), Column("dataset", "name"), *value),
        *(Column("published", "number"), Column("Δ", "number", moves=2), Column("verdict", moves=1)),
        Column("source", moves=4),
        *([Column("index loss", "number")] if losses else []),
        *(Column(name, "number", moves=3) for name in asked),
        *(Column(name, "number", moves=5, wide=True) for name in (*others, *(f"ndcg@10 {name}" for name in groups))),
        Column("run id", moves=6, wide=True),
    )
    suffixes = distinctions(row.cell for row in table_rows)
    lines = []
    for row in table_rows:
        cell = row.cell
        measured = fixed(cell.metrics.get(cell.main_metric), 5)
        judged, notes = [ABSENT] * 4, [suffixes[cell.run_id].strip(" ()")]
        if row.published is not None and row.verdict is not None:
            delta = signed(cell.metrics[cell.main_metric] - row.published.value, 4)
            judged = [fixed(row.published.value, row.published.digits), delta, row.verdict.label, row.published.source]
            notes.append("; ".join(row.verdict.differs))
        else:
            notes.append(_departing(cell))
        rest = [_loss(cell, losses)] if losses else []
        rest += [fixed(cell.metrics.get(name), 5) for name in (*asked, *others)]
        rest += [fixed(cell.groups.get(name, {}).get("ndcg@10"), 5) for name in groups]
        shown = [measured] if len(metrics) == 1 else [cell.main_metric, measured]
        cells = (cell.model, dim_of(cell.dim), places.shown(cell), *shown, *judged, *rest, cell.run_id)
        lines.append(Line(cells, tuple(filter(None, notes))))
    for mean in means:
        if len(metrics) == 1 and {mean.metric} != metrics:
            continue
        measured, judged, notes = fixed(mean.value, 5), [ABSENT] * 4, ["; ".join(mean.differs)]
        if (against := mean.judged) is not None:
            delta = ABSENT if against.delta is None else signed(against.delta, 4)
            verdict = against.verdict
            judged = [fixed(against.score.value, against.score.digits), delta, verdict.label, against.score.source]
            notes = ["; ".join(verdict.differs)]
        shown = [measured] if len(metrics) == 1 else [mean.metric, measured]
        nothing = [ABSENT] * (len(asked) + len(others) + len(groups) + 1)
        cells = (mean.system, dim_of(mean.dim), f"mean of {mean.collection}", *shown, *judged, *nothing)
        lines.append(Line(cells, tuple(filter(None, notes))))
    for one in lacking:
        nothing = ["NOT-RUN" if column.name == "verdict" else ABSENT for column in columns[3:]]
        lines.append(Line((one.system, dim_of(one.dim), one.dataset, *nothing), (one.reason,)))
    return Grid(columns, lines, wide)


def markdown(table_rows: Sequence[Row], *, columns: Collection[str] | None = None) -> str:
    """Return the table as GitHub Markdown with all or the given columns. The same rows give the same bytes.

    Cells that searched an index are left out if `columns` lacks the index loss, because they would look exact.
    """
    if columns is not None and "index loss" not in columns:
        table_rows = [row for row in table_rows if row.cell.search == "exact"]
    header = _header(table_rows)
    kept = [place for place, name in enumerate(header) if columns is None or name in columns]
    lines = [header, ["---" if name in TEXT_COLUMNS else "--:" for name in header], *_lines(table_rows)]
    shown = [[markdown_text(line[place]) for place in kept] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in shown)


def markdown_text(text: str) -> str:
    r"""Escape a text for a cell of a Markdown table: no HTML, no column separator, no line break.

    >>> print(markdown_text("a|b <b>c</b>"))
    a\|b &lt;b>c&lt;/b>
    """
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")


def verdict_text(verdict: published.Verdict) -> str:
    """Return a verdict with the settings that differ.

    >>> verdict_text(published.Verdict("PROTOCOL-DIFFERS", ("split is train, published with test",)))
    'PROTOCOL-DIFFERS: split is train, published with test'
    """
    return ": ".join([verdict.label, *filter(None, ["; ".join(verdict.differs)])])


def _loss(cell: CellScores, losses: Mapping[str, float]) -> str:
    """Return the index loss of a cell; a dash for an exact one."""
    return signed(losses[cell.run_id], 4) if cell.run_id in losses else ABSENT


def _departing(cell: CellScores) -> str:
    """Say how a cell departs from its dataset or its system; a row without a verdict would not say it otherwise."""
    departs = comparability.departures(cell)
    return f"deviates: {'; '.join(departs)}" if departs else ""


def _groups(table_rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in table_rows for name in row.cell.groups})


def _metrics(table_rows: Sequence[Row]) -> list[str]:
    """Return the metrics of every result, then the additional metrics of some cells."""
    return list(dict.fromkeys([*METRICS, *(name for row in table_rows for name in row.cell.metrics)]))


def _header(table_rows: Sequence[Row]) -> list[str]:
    groups = [f"ndcg@10 {name}" for name in _groups(table_rows)]
    losses = ["index loss"] if comparability.index_losses(row.cell for row in table_rows) else []
    return [
        "system",
        "dim",
        "dataset",
        *_metrics(table_rows),
        *groups,
        *losses,
        "compared",
        "published",
        "Δ",
        "verdict",
        "source",
    ]


def _lines(table_rows: Sequence[Row]) -> list[list[str]]:
    lines, names = [], _groups(table_rows)
    suffixes = distinctions(row.cell for row in table_rows)
    losses = comparability.index_losses(row.cell for row in table_rows)
    for row in table_rows:
        cell = row.cell
        groups = [cell.groups.get(name, {}).get("ndcg@10") for name in names]
        measured_by = f" ({cell.environment[MEASURED_BY]})" if MEASURED_BY in cell.environment else ""
        line = [cell.model + measured_by + suffixes[cell.run_id], dim_of(cell.dim), places.shown(cell)]
        line += [fixed(cell.metrics.get(name), 5) for name in _metrics(table_rows)]
        line += [fixed(value, 5) for value in groups]
        line += [_loss(cell, losses)] if losses else []
        if row.published is None or row.verdict is None:
            line += [ABSENT, ABSENT, ABSENT, _departing(cell) or ABSENT, ABSENT]
        else:
            delta = cell.metrics[cell.main_metric] - row.published.value
            value = fixed(row.published.value, row.published.digits)
            line += [row.published.metric, value, signed(delta, 4), verdict_text(row.verdict), row.published.source]
        lines.append(line)
    return lines
