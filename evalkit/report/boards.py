"""The page's summary: how much of the card was confirmed, boards of means, and the quality that each dim keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evalkit.report.card import FAMILIES, TITLES, CardTable, Judged, Leaderboard, System, mean_of
from evalkit.report.places import family, shown
from evalkit.scoring import published
from evalkit.scoring.published import CARD, PublishedScore
from evalkit.storage.results import CellScores

SYSTEM = "jina-colbert-v2"
"""The system that the card belongs to."""
UNDECIDED = ("NOT-RUN", "PROTOCOL-DIFFERS")
"""Verdicts that neither confirm nor contradict a published score."""
CONFIRMED = ("MATCH", "NEAR")


def card_cells(judged: Iterable[Judged]) -> tuple[Judged, ...]:
    """Return each of the card's cells once: its Matryoshka table repeats six cells of the other tables.

    A cell is a system at a dim, a dataset and a metric. It is taken from the first table that contains it.
    """
    found: dict[tuple[str, int | None, str, str], Judged] = {}
    for one in judged:
        if one.score.source == CARD:
            found.setdefault((one.score.system, one.score.dim, one.score.dataset, one.score.metric), one)
    return tuple(found.values())


class Answer(NamedTuple):
    """The card's cells with their verdicts: those of its own system, and those of the systems it is compared with."""

    own: tuple[Judged, ...]
    others: tuple[Judged, ...]

    @property
    def cells(self) -> tuple[Judged, ...]:
        """All cells, those of the card's own system first."""
        return (*self.own, *self.others)


def answer(judged: Iterable[Judged]) -> Answer:
    """Divide the card's cells into those of its own system and the others."""
    cells = card_cells(judged)
    own = tuple(one for one in cells if one.score.system == SYSTEM)
    return Answer(own, tuple(one for one in cells if one.score.system != SYSTEM))


def measured(cells: Iterable[Judged]) -> tuple[Judged, ...]:
    """Return the cells that were measured under the published protocol."""
    return tuple(one for one in cells if one.verdict.label not in UNDECIDED)


def holding(cells: Iterable[Judged]) -> int:
    """Count the cells whose verdict is MATCH or NEAR."""
    return sum(one.verdict.label in CONFIRMED for one in cells)


def tally(cells: Iterable[Judged]) -> Counter[str]:
    """Count cells by verdict."""
    return Counter[str](one.verdict.label for one in cells)


class Mean(NamedTuple):
    """A system's published and measured means over a collection of datasets."""

    published: float | None
    measured: float | None
    """None unless every dataset was measured under the protocol."""
    delta: float | None
    verdict: str | None
    """The verdict on the measured mean, if both means exist."""
    counts: Mapping[str, int]
    """The number of measured datasets by verdict."""
    of: int
    """The number of datasets in the collection."""
    run: int
    """The number of datasets that were measured under the protocol."""
    differs: tuple[str, ...] = ()
    """A sentence for each setting that varies over all datasets and rules out the measured mean."""


def means(board: Leaderboard, cells: Sequence[Judged]) -> dict[tuple[System, str], Mean]:
    """Return each system's means over the card's collections, with the verdict on each mean."""
    scores = {(one.score.system, one.score.dim, one.score.dataset, one.score.metric): one for one in cells}
    found = {}
    for collection in board.collections:
        if collection.name not in TITLES:
            continue
        for system in board.systems:
            standing = board.standings[system, collection.name]
            members = [scores.get((*system, dataset, collection.metric)) for dataset in collection.datasets]
            known = [one for one in members if one is not None]
            measured_cells = [one for one in known if one.measured is not None]
            verdict = _verdict(standing.published, standing.measured, known)
            both = standing.published is not None and standing.measured is not None
            delta = (standing.measured or 0.0) - (standing.published or 0.0) if both else None
            counts = dict(sorted(tally(measured_cells).items()))
            size = len(collection.datasets)
            found[system, collection.name] = Mean(
                standing.published,
                standing.measured,
                delta,
                verdict,
                counts,
                size,
                len(standing.measured_on),
                standing.differs,
            )
    return found


def _verdict(stated: float | None, value: float | None, members: Sequence[Judged]) -> str | None:
    """Return the verdict on a mean by the rule for cells; for a mean over one cell, that cell's verdict."""
    if stated is None or value is None or not members:
        return None
    if len(members) == 1:
        return members[0].verdict.label
    return mean_verdict(stated, value, members[0].score)


def mean_verdict(stated: float, value: float, like: PublishedScore) -> str:
    """Return the verdict on a measured mean, given a stated one with as many digits as `like`."""
    return published.verdict(value, like._replace(value=stated, index_loss=0.0)).label


class Entry(NamedTuple):
    """A cell's value on a board of own results, and the scores that others published for it."""

    cell: CellScores
    value: float
    judged: Judged | None


class Board(NamedTuple):
    """The cells of one family of datasets that the card does not contain."""

    name: str
    title: str
    metric: str
    datasets: tuple[str, ...]
    systems: tuple[System, ...]
    """Systems with all datasets come first, then by mean, descending."""
    entries: Mapping[tuple[System, str], Entry]
    means: Mapping[System, float | None]
    differs: Mapping[System, tuple[str, ...]]
    """By system, a sentence for each setting that varies over its datasets and rules out their mean."""


def own_boards(cells: Sequence[CellScores], judged: Sequence[Judged]) -> tuple[Board, ...]:
    """Return the cells that the card does not contain, as one board per family of datasets and metric.

    They are of the demo, XQuAD, the user's own data, and other systems on the card's datasets.
    """
    on_card = {one.cell.run_id for one in card_cells(judged) if one.cell is not None and one.measured is not None}
    others = {
        (one.cell.run_id, one.score.metric): one for one in reversed(judged) if one.cell and one.score.source != CARD
    }
    families: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        if cell.run_id not in on_card:
            families.setdefault((family(cell), cell.main_metric), []).append(cell)
    boards = []
    for (name, metric), members in sorted(families.items()):
        entries = {
            (System(cell.model, cell.dim), shown(cell)): Entry(
                cell, cell.metrics[metric], others.get((cell.run_id, metric))
            )
            for cell in members
        }
        datasets = tuple(sorted({shown(cell) for cell in members}))
        systems = {system for system, _ in entries}
        whole = {system: _mean([entries.get((system, dataset)) for dataset in datasets], metric) for system in systems}
        averages = {system: average for system, (average, _) in whole.items()}
        differs = {system: reasons for system, (_, reasons) in whole.items()}
        best = {system: max(one.value for (of, _), one in entries.items() if of == system) for system in systems}
        ranks = {
            system: (average is None, -(best[system] if average is None else average), system.name, system.dim or 0)
            for system, average in averages.items()
        }
        order = tuple(sorted(systems, key=ranks.__getitem__))
        title = FAMILIES.get(name, name)
        title = f"{TITLES[name]}: cells that the card does not have" if name in TITLES else title
        anchor = f"board-{name.replace(' (', '-').rstrip(')')}-{metric}"
        boards.append(Board(anchor, title, metric, datasets, order, entries, averages, differs))
    return tuple(boards)


def _mean(entries: Sequence[Entry | None], metric: str) -> tuple[float | None, tuple[str, ...]]:
    """Return the mean value; None if an entry is missing, or with the settings that rule a mean out."""
    known = [one.cell for one in entries if one is not None]
    return mean_of(known, metric) if len(known) == len(entries) else (None, ())


class Heatmap(NamedTuple):
    """The quality of every smaller dim relative to the largest one, by dataset."""

    title: str
    base: int
    columns: tuple[tuple[str, str], ...]
    """(dataset, metric)."""
    rows: tuple[tuple[int, tuple[tuple[float, float] | None, ...]], ...]
    """A dim, and for each column its value and the ratio to the largest dim's value; None if one is missing."""


def heatmaps(tables: Sequence[CardTable], cells: Sequence[CellScores]) -> tuple[Heatmap, ...]:
    """Return the card's published dims, then every system that was measured at two or more dims."""
    found = []
    for table in tables:
        if table.name == "matryoshka":
            values = {
                (system.dim or 0, pair): one.score.value
                for (dataset, system), one in table.cells.items()
                for pair in [(dataset, one.score.metric)]
            }
            found.append(_heatmap(f"Published by the card: {SYSTEM}", values, table.rows))
    by_model: dict[str, dict[tuple[int, tuple[str, str]], float]] = {}
    for cell in sorted(cells, key=shown):
        if cell.dim is not None:
            pair = (shown(cell), cell.main_metric)
            by_model.setdefault(cell.model, {})[cell.dim, pair] = cell.metrics[cell.main_metric]
    for model, values in sorted(by_model.items()):
        if len({dim for dim, _ in values}) > 1:
            found.append(_heatmap(f"Measured here: {model}", values, tuple(dict.fromkeys(pair for _, pair in values))))
    return tuple(found)


def _heatmap(
    title: str, values: Mapping[tuple[int, tuple[str, str]], float], columns: Sequence[tuple[str, str]]
) -> Heatmap:
    dims = sorted({dim for dim, _ in values}, reverse=True)
    base = dims[0]
    rows = tuple(
        (dim, tuple(_share(values.get((dim, pair)), values.get((base, pair))) for pair in columns)) for dim in dims
    )
    return Heatmap(title, base, tuple(columns), rows)


def _share(value: float | None, base: float | None) -> tuple[float, float] | None:
    """Return a value and its ratio to the largest dim's; None if one is missing."""
    return None if value is None or not base else (value, value / base)
