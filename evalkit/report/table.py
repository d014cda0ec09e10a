"""The table of cells: published, measured and Δ, for a terminal or as Markdown.

Rounding happens here and nowhere else: values to five decimals, differences to four, as the field prints them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table

from evalkit.config.settings import METRICS
from evalkit.report.card import verdict_on
from evalkit.scoring import published
from evalkit.scoring.reruns import Deviation
from evalkit.storage.results import CellScores, distinctions
from evalkit.texts import printable

ABSENT = "–"
TEXT_COLUMNS = ("system", "dataset", "compared", "verdict", "source")


class Row(NamedTuple):
    """One cell beside one published score of it, or beside none."""

    cell: CellScores
    published: published.PublishedScore | None
    verdict: published.Verdict | None


def rows(cells: Iterable[CellScores], *, deviations: Sequence[Deviation] = ()) -> list[Row]:
    """Pair each cell with what was published for its main metric: the card's score first, then other sources'."""
    paired = []
    spread = {(found.system, found.dim, found.dataset, found.metric): found.value for found in deviations}
    for cell in sorted(cells, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0))):
        key = (cell.model, cell.dim, cell.dataset, cell.main_metric)
        found = published.find(*key)
        paired += [Row(cell, score, verdict_on(cell, score, deviation=spread.get(key, 0.0))) for score in found]
        if not found:
            paired.append(Row(cell, None, None))
    return paired


def terminal(table_rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    table = Table(box=None, pad_edge=False)
    for name in _header(table_rows):
        # A verdict names every deviation: it alone takes several lines, and leaves the other columns their width.
        table.add_column(name, justify="left" if name in TEXT_COLUMNS else "right", no_wrap=name != "verdict")
    for values in _lines(table_rows):
        table.add_row(*values)
    return table


def markdown(table_rows: Sequence[Row]) -> str:
    """Return the table as GitHub Markdown; the same rows give the same bytes."""
    header = _header(table_rows)
    lines = [header, ["---" if name in TEXT_COLUMNS else "--:" for name in header]]
    lines += _lines(table_rows)
    return "".join(f"| {' | '.join(map(markdown_text, line))} |\n" for line in lines)


def markdown_text(text: str) -> str:
    r"""Return a text that Markdown shows as it stands, in a cell of a table too: no HTML, no column, no line break.

    >>> print(markdown_text("a|b <b>c</b>"))
    a\|b &lt;b>c&lt;/b>
    """
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|")


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign and so many decimals, rounded half up; nothing is no negative nothing.

    >>> signed(-0.00001, 4), signed(-0.0012, 4)
    ('+0.0000', '-0.0012')
    """
    return f"{published.rounded(value, digits) + 0.0:+.{digits}f}"


def said(verdict: published.Verdict) -> str:
    """Return a verdict in words, with the settings that differ.

    >>> said(published.Verdict("PROTOCOL-DIFFERS", ("split is train, published with test",)))
    'PROTOCOL-DIFFERS: split is train, published with test'
    """
    return ": ".join([verdict.label, *filter(None, ["; ".join(verdict.differs)])])


def _groups(table_rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in table_rows for name in row.cell.groups})


def _metrics(table_rows: Sequence[Row]) -> list[str]:
    """Return the metrics of every result, then those that some run was scored by beside them."""
    return list(dict.fromkeys([*METRICS, *(name for row in table_rows for name in row.cell.metrics)]))


def _header(table_rows: Sequence[Row]) -> list[str]:
    groups = [f"ndcg@10 {name}" for name in _groups(table_rows)]
    return [
        "system",
        "dim",
        "dataset",
        *_metrics(table_rows),
        *groups,
        "compared",
        "published",
        "Δ",
        "verdict",
        "source",
    ]


def _lines(table_rows: Sequence[Row]) -> list[list[str]]:
    lines, names = [], _groups(table_rows)
    told_apart = distinctions(row.cell for row in table_rows)
    for row in table_rows:
        cell = row.cell
        groups = [cell.groups.get(name, {}).get("ndcg@10") for name in names]
        line = [cell.model + told_apart[cell.run_id], ABSENT if cell.dim is None else str(cell.dim), cell.dataset]
        line += [f"{cell.metrics[name]:.5f}" if name in cell.metrics else ABSENT for name in _metrics(table_rows)]
        line += [ABSENT if value is None else f"{value:.5f}" for value in groups]
        if row.published is None or row.verdict is None:
            line += [ABSENT] * 5
        else:
            delta = cell.metrics[cell.main_metric] - row.published.value
            value = f"{row.published.value:.{row.published.digits}f}"
            line += [row.published.metric, value, signed(delta, 4), said(row.verdict), row.published.source]
        lines.append(line)
    return lines
