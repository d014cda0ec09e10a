"""Sheets are tables of formatted text, written as Markdown, CSV and LaTeX. The same sheet gives the same bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evalkit.analysis.compare import storage
from evalkit.config.settings import METRICS
from evalkit.report import frames
from evalkit.report.card import Average, CardTable, Judged, JudgedMean, Leaderboard, System
from evalkit.report.places import order, shown
from evalkit.report.rounding import ABSENT, dim, fixed, signed
from evalkit.report.table import markdown_text, verdict_text
from evalkit.scoring.decimals import rounded
from evalkit.scoring.mteb_results import MEASURED_BY
from evalkit.scoring.published import NEAR
from evalkit.scoring.reruns import Deviation
from evalkit.storage.results import CellScores
from evalkit.texts import printable

CARD_DIGITS = 3
METRIC_NAMES = {"ndcg@10": "NDCG@10", "mrr@10": "MRR@10", "recall@100": "recall@100"}
LONG_COLUMNS = (
    *("table", "system", "dim", "dataset", "metric", "published", "source", "origin", "version"),
    *("measured", "delta", "verdict", "differs", "waived", "slip", "run_id"),
)
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "^": r"\textasciicircum{}",
        "→": r"$\rightarrow$",
        "≠": r"$\neq$",
        "Δ": r"$\Delta$",
        "–": "--",
    }
)


class Sheet(NamedTuple):
    """A table of text: a header, rows of the same length, and notes."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    long_names: Mapping[str, str] = {}
    """Replacements for short names in CSV, which has no notes: there an average names its datasets."""


def card_sheet(table: CardTable) -> Sheet:
    """Return one of the card's tables: one row per dataset, one column per system."""
    header = ("dataset", "metric", *(system.label for system in table.systems))
    rows = [
        (dataset, METRIC_NAMES[metric], *(_cell(table.cells.get((dataset, system))) for system in table.systems))
        for dataset, metric in table.rows
    ]
    averages = dict.fromkeys(average.datasets for average in table.averages.values())
    for datasets in averages:
        of = {system: average for system, average in table.averages.items() if average.datasets == datasets}
        metric = next(iter(of.values())).metric
        cells = (_average(of[system]) if system in of else ABSENT for system in table.systems)
        rows.append((f"average of {len(datasets)}", METRIC_NAMES[metric], *cells))
    notes = [f"Published by the card; protocol: {table.protocol}."]
    quoted = [system.label for system in table.systems if origin(table, system) == "quoted"]
    notes += [f"Quoted by the card from elsewhere: {', '.join(quoted)}."] if quoted else []
    notes += [f"The average of {len(datasets)} is over {', '.join(datasets)}." for datasets in averages]
    notes += [
        f"{system.label} on {found.score.dataset}: {_why(found)}."
        for (_, system), found in table.cells.items()
        if found.score.slip or found.verdict.differs or found.waiver
    ]
    notes += [
        f"The card states {fixed(average.stated, average.digits)} as the average of {system.label}; "
        f"its rows give {fixed(average.of_rows, 4)}."
        for system, average in table.averages.items()
        if broken(average)
    ]
    notes += [
        f"{system.label} has no measured average: {'; '.join(average.differs)}."
        for system, average in table.averages.items()
        if average.differs
    ]
    notes.append("Published → measured VERDICT; a cell with the published score alone is NOT-RUN.")
    long_names = {f"average of {len(datasets)}": f"average of {' '.join(datasets)}" for datasets in averages}
    return Sheet(table.name, table.title, header, tuple(rows), tuple(notes), long_names)


def origin(table: CardTable, system: System) -> str:
    """Return whether the card's authors measured a column ("run") or "quoted" it."""
    return next(found.score.origin for (_, of), found in table.cells.items() if of == system)


def broken(average: Average) -> bool:
    """Whether a stated average does not follow from its rows."""
    return average.stated is not None and rounded(average.of_rows, average.digits) != average.stated


def _cell(found: Judged | None) -> str:
    if found is None:
        return ABSENT
    value = fixed(found.score.value, found.score.digits)
    if found.measured is None:
        return value
    return f"{value} → {fixed(found.measured, 5)} {found.verdict.label}"


def _average(average: Average) -> str:
    stated = fixed(average.stated, average.digits)
    if average.measured is not None or average.differs:
        return f"{stated} → {fixed(average.measured, 5)}"
    return (
        f"{stated} ({average.rows_measured} of {len(average.datasets)} measured)" if average.rows_measured else stated
    )


def _why(found: Judged) -> str:
    parts = [found.score.slip, verdict_text(found.verdict) if found.verdict.differs else ""]
    parts.append(f"waived: {found.waiver.reason}" if found.waiver else "")
    return "; ".join(filter(None, parts))


def leaderboard_sheet(board: Leaderboard, mteb_cells: Sequence[CellScores] = ()) -> Sheet:
    """Return the leaderboard: a row per system, published and measured mean of each collection.

    `mteb_cells` are the cells that mteb measured. The notes name its release for each of them.
    """
    header = ["system"]
    notes: list[str] = []
    long_names = {}
    for collection in board.collections:
        count = f"-{len(collection.datasets)}" if len(collection.datasets) > 1 else ""
        name = f"{collection.title}{count} {METRIC_NAMES[collection.metric]}"
        header += [f"{name} published", f"{name} measured"]
        if len(collection.datasets) > 1:
            notes.append(f"{collection.title}{count} is the mean over {', '.join(collection.datasets)}.")
            for column in header[-2:]:
                long_names[column] = f"{column} of {' '.join(collection.datasets)}"
    rows: list[tuple[str, ...]] = []
    reasons: list[str] = []
    for system in board.systems:
        row = [system.label]
        for collection in board.collections:
            standing = board.standings[system, collection.name]
            measured = fixed(standing.measured, 5)
            if standing.differs:
                reasons.append(f"{system.label} has no mean on {collection.title}: {'; '.join(standing.differs)}.")
            elif standing.measured is None and standing.measured_on:
                measured = f"{len(standing.measured_on)} of {len(collection.datasets)}"
            row += [fixed(standing.published, CARD_DIGITS), measured]
        rows.append(tuple(row))
    notes.append("A measured mean is shown only if all of its datasets were measured under the protocol.")
    notes += reasons
    notes += [f"{one.model} on {one.dataset}: measured by {one.environment[MEASURED_BY]}." for one in mteb_cells]
    return Sheet("leaderboard", "Leaderboard", tuple(header), tuple(rows), tuple(notes), long_names)


def means_sheet(judged: Sequence[JudgedMean]) -> Sheet:
    """Return the means that are published without their rows, each with the measured mean."""
    header = ("system", "mean over", "metric", "source", "published", "measured", "Δ", "verdict")
    rows = tuple(
        (
            System(found.score.system, found.score.dim).label,
            f"{found.score.dataset} ({len(found.mean.datasets)})",
            METRIC_NAMES[found.score.metric],
            found.score.source,
            fixed(found.score.value, found.score.digits),
            fixed(found.measured, 5) if found.measured is not None or not found.cells else _measured_count(found),
            ABSENT if found.delta is None else signed(found.delta, 4),
            verdict_text(found.verdict),
        )
        for found in judged
    )
    over = dict.fromkeys((found.score.dataset, found.mean.datasets) for found in judged)
    notes = [f"{name} ({len(datasets)}) is the mean over {', '.join(datasets)}." for name, datasets in over]
    protocols = dict.fromkeys((found.score.source, found.score.protocol) for found in judged)
    notes += [f"{source}: {protocol}." for source, protocol in protocols]
    notes += [
        f"{System(found.score.system, found.score.dim).label} on {found.score.dataset} ({found.score.source}): "
        f"waived: {found.waiver.reason}."
        for found in judged
        if found.waiver
    ]
    notes.append("A mean is measured only where each of its datasets was, all under one protocol.")
    return Sheet("means", "Published means", header, rows, tuple(notes))


def _measured_count(found: JudgedMean) -> str:
    return f"{len(found.cells)} of {len(found.mean.datasets)}"


def dims_sheet(cells: Sequence[CellScores]) -> Sheet:
    """Return quality and storage of every measured cell with vectors."""
    header = ("system", "dim", "dataset", "metric", "value", "bytes per vector", "bytes per passage", "corpus MB")
    rows: list[tuple[str, ...]] = []
    for cell in sorted(cells, key=order):
        if (size := storage(cell)) is not None:
            what = (cell.model, str(cell.dim), shown(cell), METRIC_NAMES[cell.main_metric])
            corpus_mb = fixed(None if size.corpus is None else size.corpus / 1e6, 2)
            quality = fixed(cell.metrics[cell.main_metric], 5)
            rows.append((*what, quality, str(size.per_vector), fixed(size.per_passage, 0), corpus_mb))
    return Sheet("dims", "Quality against storage", header, tuple(rows), ("Bytes of the vectors as stored.",))


def reruns_sheet(deviations: Sequence[Deviation]) -> Sheet:
    """Return the spread of the scores of every cell that was computed more than once."""
    header = ("system", "dim", "dataset", "metric", "runs", "standard deviation", "NEAR within", "the runs differ in")
    rows = [
        (
            *(one.cell.model, dim(one.cell.dim), shown(one.cell), METRIC_NAMES.get(one.metric, one.metric)),
            *(str(one.runs), fixed(one.value, 6), fixed(max(NEAR, 3 * one.value), 6)),
            ", ".join(one.differing) or ABSENT,
        )
        for one in sorted(deviations, key=lambda one: order(one.cell))
    ]
    notes = (
        "Each cell's result in the tables and its re-runs below reruns/; a cell that is not here was computed once.",
    )
    return Sheet("reruns", "Re-runs", header, tuple(rows), notes)


def long_rows(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Return every published score of every source as one tidy row, including NOT-RUN."""
    return [
        (
            found.score.table,
            found.score.system,
            "" if found.score.dim is None else str(found.score.dim),
            found.score.dataset,
            found.score.metric,
            fixed(found.score.value, found.score.digits),
            found.score.source,
            found.score.origin,
            found.score.version,
            "" if found.measured is None else fixed(found.measured, 5),
            "" if found.delta is None else signed(found.delta, 5),
            found.verdict.label,
            "; ".join(found.verdict.differs),
            found.waiver.reason if found.waiver else "",
            found.score.slip,
            found.cell.run_id if found.cell is not None and found.measured is not None else "",
        )
        for found in judged
    ]


def markdown(sheet: Sheet) -> str:
    """Return a sheet as GitHub Markdown."""
    lines = [f"# {markdown_text(sheet.title)}", ""]
    lines += [_line(sheet.header), _line(["---" if place < 1 else "--:" for place in range(len(sheet.header))])]
    lines += [_line(row) for row in sheet.rows]
    lines += ["", *(f"- {markdown_text(note)}" for note in sheet.notes)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def latex(sheet: Sheet) -> str:
    """Return a sheet as a LaTeX table that needs the booktabs package."""
    frame = frames.texts([_tex(name) for name in sheet.header], [[_tex(cell) for cell in row] for row in sheet.rows])
    caption = f"{_tex(sheet.title)}. {_tex(' '.join(sheet.notes))}"
    columns = f"l{'r' * (len(sheet.header) - 1)}"
    return str(frame.to_latex(index=False, escape=False, caption=caption, column_format=columns))


def _tex(text: str) -> str:
    """Escape a text for LaTeX: it contains no command, comment or line break afterwards."""
    return printable(text).translate(TEX)


def csv_sheet(sheet: Sheet) -> str:
    """Return a sheet as CSV; averages name their datasets."""
    header = [sheet.long_names.get(name, name) for name in sheet.header]
    return csv_text(header, [(sheet.long_names.get(row[0], row[0]), *row[1:]) for row in sheet.rows])


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as CSV with line feeds; a cell that a spreadsheet could read as a formula gets a leading quote."""
    safe = [[_no_formula(cell) for cell in row] for row in rows]
    return str(frames.texts(header, safe).to_csv(index=False, lineterminator="\n"))


def _no_formula(cell: str) -> str:
    """Return a cell that no spreadsheet reads as a formula; numbers are unchanged.

    >>> [_no_formula(cell) for cell in ("=cmd()", "@x", "-0.0012", "+0.5", "-x", "a=b")]
    ["'=cmd()", "'@x", '-0.0012', '+0.5', "'-x", 'a=b']
    """
    cell = printable(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) and not NUMBER.fullmatch(cell) else cell


def run_rows(cells: Sequence[CellScores]) -> list[tuple[str, ...]]:
    """Return the metrics of every finished cell as tidy rows, including those of query groups."""
    rows: list[tuple[str, ...]] = []
    for cell in cells:
        dim = "" if cell.dim is None else str(cell.dim)
        parts: list[tuple[str, Mapping[str, float]]] = [("all", cell.metrics), *sorted(cell.groups.items())]
        rows += [
            (cell.run_id, cell.model, dim, cell.dataset, cell.split, queries, metric, fixed(means[metric], 5))
            for queries, means in parts
            for metric in METRICS
            if metric in means
        ]
    return rows
