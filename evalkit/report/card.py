"""The card's tables and the leaderboard as values: every published score with the measured one.

All functions are pure functions of finished cells, published scores, waivers and deviations. Nothing is rounded here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.analysis import comparability
from evalkit.errors import ScoreError
from evalkit.report.places import family, shown
from evalkit.scoring import published, reruns
from evalkit.scoring.decimals import as_decimal
from evalkit.scoring.published import CARD, PublishedMean, PublishedScore, Verdict
from evalkit.scoring.reruns import Deviation
from evalkit.storage import keys, untrusted
from evalkit.storage.results import CellScores

TITLES = {
    "beir": "BEIR",
    "msmarco": "MS MARCO",
    "miracl": "MIRACL",
    "mmarco": "mMARCO",
    "matryoshka": "Matryoshka",
}
"""The card's tables, in the card's order."""
FAMILIES = {"xquad": "XQuAD", "nanobeir": "NanoBEIR"}
"""Titles of families of datasets whose title differs from the first part of the name."""
SHOWN_CHARACTERS = 200
"""Characters of an invalid entry that are quoted in messages."""


class Waiver(NamedTuple):
    """A known HIGHER or LOWER score, and the reason why it is accepted."""

    system: str
    dim: int | None
    dataset: str
    metric: str
    source: str
    measured: float
    """The accepted score. A score that differs by more than NEAR is not waived."""
    reason: str

    def names(self, score: PublishedScore) -> bool:
        """Whether it is of this published score."""
        return self[:5] == (score.system, score.dim, score.dataset, score.metric, score.source)


class Judged(NamedTuple):
    """One published score and the cell that measured it, if there is one."""

    score: PublishedScore
    cell: CellScores | None
    verdict: Verdict
    waiver: Waiver | None = None

    @property
    def measured(self) -> float | None:
        """The measured value; None if the cell was not computed or not scored with this metric."""
        return None if self.cell is None else self.cell.metrics.get(self.score.metric)

    @property
    def delta(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.score.value


class JudgedMean(NamedTuple):
    """One published mean and the cells of its datasets that were measured."""

    mean: PublishedMean
    cells: Mapping[str, CellScores]
    """The cells that were scored with the mean's metric, by dataset."""
    measured: float | None
    """None unless every dataset was measured and all cells have the same protocol."""
    verdict: Verdict
    waiver: Waiver | None = None

    @property
    def score(self) -> PublishedScore:
        """The published mean as a score on its collection."""
        return self.mean.score

    @property
    def delta(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.mean.score.value


class System(NamedTuple):
    """A column: a system at a dim; `dim` is None for a system without vectors."""

    name: str
    dim: int | None

    @property
    def label(self) -> str:
        """The system's name, with its dim where it has one."""
        return keys.label(self.name, self.dim)


class Average(NamedTuple):
    """One system's mean over rows of a table: as stated, as computed from the published rows, and as measured."""

    metric: str
    stated: float | None
    digits: int
    of_rows: float
    measured: float | None
    """None unless every row was measured under the published protocol, and all of them under one."""
    rows_measured: int
    datasets: tuple[str, ...]
    differs: tuple[str, ...] = ()
    """A sentence for each setting that varies over the measured rows and rules out their mean."""


class CardTable(NamedTuple):
    """One table of the card."""

    name: str
    title: str
    protocol: str
    rows: tuple[tuple[str, str], ...]
    """(dataset, metric), in the card's order."""
    systems: tuple[System, ...]
    cells: Mapping[tuple[str, System], Judged]
    averages: Mapping[System, Average]


def judge(
    cells: Iterable[CellScores], *, waivers: Sequence[Waiver] = (), deviations: Sequence[Deviation] = ()
) -> tuple[Judged, ...]:
    """Return every published score of every source with its verdict.

    A cell counts only if it represents its system (`comparability.representative`); a score whose cells all have other
    weights, a deviating dataset or an edited protocol is NOT-RUN.
    """
    by_cell = {(cell.model, cell.dim, cell.dataset): cell for cell in comparability.representative(cells)}
    pairs = ((score, by_cell.get((score.system, score.dim, score.dataset))) for score in published.published_scores())
    return _judged(pairs, waivers, deviations)


def judge_runs(
    cells: Iterable[CellScores], *, waivers: Sequence[Waiver] = (), deviations: Sequence[Deviation] = ()
) -> tuple[Judged, ...]:
    """Return the scores published for every cell's system and dataset, even if it does not represent the system."""
    by_cell: dict[tuple[str, int | None, str], list[PublishedScore]] = {}
    for score in published.published_scores():
        by_cell.setdefault((score.system, score.dim, score.dataset), []).append(score)
    pairs = ((score, cell) for cell in cells for score in by_cell.get((cell.model, cell.dim, cell.dataset), []))
    return _judged(pairs, waivers, deviations)


def _judged(
    pairs: Iterable[tuple[PublishedScore, CellScores | None]],
    waivers: Sequence[Waiver],
    deviations: Sequence[Deviation],
) -> tuple[Judged, ...]:
    spread = reruns.by_cell(deviations)
    judged = []
    for score, cell in pairs:
        deviation = 0.0 if cell is None else spread.get((cell.run_id, score.metric), 0.0)
        verdict = verdict_on(cell, score, deviation=deviation)
        measured = None if cell is None else cell.metrics.get(score.metric)
        judged.append(Judged(score, cell, verdict, _waiver(score, measured, verdict, waivers)))
    return tuple(judged)


def _waiver(
    score: PublishedScore, measured: float | None, verdict: Verdict, waivers: Sequence[Waiver]
) -> Waiver | None:
    """Return the waiver of a HIGHER or LOWER score, if the score is still the one that was accepted."""
    if verdict.label not in ("HIGHER", "LOWER") or measured is None:
        return None
    named = (waiver for waiver in waivers if waiver.names(score))
    tolerance = as_decimal(published.NEAR)
    return next((one for one in named if abs(as_decimal(one.measured) - as_decimal(measured)) <= tolerance), None)


def verdict_on(cell: CellScores | None, score: PublishedScore, *, deviation: float = 0.0) -> Verdict:
    """Return the verdict on a cell, or NOT-RUN, with all settings in which it is known to differ."""
    if cell is None or score.metric not in cell.metrics:
        return published.verdict(None, score)
    return published.verdict(
        cell.metrics[score.metric],
        score,
        deviation=deviation,
        declared_loss=score.index_loss,
        differs=comparability.differing(cell, score),
    )


def by_dataset(cells: Iterable[CellScores]) -> dict[tuple[str, int | None, str], CellScores]:
    """Return the cells of which means are formed, by system, dim and dataset.

    They represent their system and are on their dataset's usual split. Of several results of one cell, for example of a
    sweep over a setting, none is taken: a mean would not say which of them it is over.
    """
    found: dict[tuple[str, int | None, str], dict[str, CellScores]] = {}
    for cell in comparability.representative(cells):
        if shown(cell) == cell.dataset:
            found.setdefault((cell.model, cell.dim, cell.dataset), {})[cell.run_id] = cell
    return {key: one for key, claiming in found.items() for one in claiming.values() if len(claiming) == 1}


def mean_of(cells: Sequence[CellScores], metric: str) -> tuple[float | None, tuple[str, ...]]:
    """Return a metric's mean over cells of one system, or None and a sentence for each setting that rules it out."""
    if varying := comparability.varying(cells):
        return None, tuple(f"{name} is not the same on every dataset" for name in varying)
    return math.fsum(cell.metrics[metric] for cell in cells) / len(cells), ()


def judge_means(cells: Iterable[CellScores], *, waivers: Sequence[Waiver] = ()) -> tuple[JudgedMean, ...]:
    """Return every mean that is published without its rows, with the verdict on the measured mean.

    A mean is NOT-RUN unless each of its datasets was measured. If the cells have different protocols, there is no
    measured mean either, and the verdict names the settings that vary.
    """
    by_cell = by_dataset(cells)
    judged = []
    for mean in published.published_means():
        score = mean.score
        runs = {dataset: by_cell.get((score.system, score.dim, dataset)) for dataset in mean.datasets}
        found = {dataset: cell for dataset, cell in runs.items() if cell is not None and score.metric in cell.metrics}
        measured, verdict = _mean_verdict(mean, found)
        judged.append(JudgedMean(mean, found, measured, verdict, _waiver(score, measured, verdict, waivers)))
    return tuple(judged)


def _mean_verdict(mean: PublishedMean, found: Mapping[str, CellScores]) -> tuple[float | None, Verdict]:
    """Return the measured mean over cells by dataset, None if it has no single protocol, and its verdict."""
    score = mean.score
    if len(found) < len(mean.datasets):
        return None, published.verdict(None, score)
    value, several = mean_of(list(found.values()), score.metric)
    if value is None:
        return None, published.verdict(0.0, score, differs=several)
    where: dict[str, list[str]] = {}
    for dataset, cell in found.items():
        for setting in comparability.differing(cell, score):
            where.setdefault(setting, []).append(dataset)
    differs = [
        setting if len(datasets) == len(found) else f"{setting} ({', '.join(datasets)})"
        for setting, datasets in where.items()
    ]
    return value, published.verdict(value, score, differs=differs)


def card_tables(judged: Iterable[Judged]) -> tuple[CardTable, ...]:
    """Return the card's five tables."""
    by_table: dict[str, list[Judged]] = {name: [] for name in TITLES}
    for found in judged:
        if found.score.source == CARD:
            by_table[found.score.table].append(found)
    stated_averages = {(average.table, average.system, average.dim): average for average in published.stated_averages()}
    tables = []
    for name, members in by_table.items():
        # In the Matryoshka table MS MARCO's MRR follows the five datasets of the average.
        pairs = dict.fromkeys((found.score.dataset, found.score.metric) for found in members)
        rows = tuple(sorted(pairs, key=lambda pair: name == "matryoshka" and pair[1] == "mrr@10"))
        systems = tuple(dict.fromkeys(System(found.score.system, found.score.dim) for found in members))
        cells = {(found.score.dataset, System(found.score.system, found.score.dim)): found for found in members}
        averages = {}
        for system in systems:
            stated_average = stated_averages.get((name, *system))
            datasets = tuple(stated_average.rows) if stated_average else tuple(dataset for dataset, _ in rows)
            if len(datasets) > 1:
                averages[system] = _average(
                    [cells[dataset, system] for dataset in datasets if (dataset, system) in cells],
                    stated=stated_average.value if stated_average else None,
                )
        protocol = "; ".join(dict.fromkeys(found.score.protocol for found in members))
        tables.append(CardTable(name, TITLES[name], protocol, rows, systems, cells, averages))
    return tuple(tables)


def _average(members: Sequence[Judged], *, stated: float | None) -> Average:
    """Return the average of one column over some rows; `stated` is the card's own."""
    metric = members[0].score.metric
    under_protocol = [
        found.cell
        for found in members
        if found.cell is not None and found.measured is not None and found.verdict.label != "PROTOCOL-DIFFERS"
    ]
    measured, differs = mean_of(under_protocol, metric) if len(under_protocol) == len(members) else (None, ())
    return Average(
        metric=metric,
        stated=stated,
        digits=members[0].score.digits,
        of_rows=math.fsum(found.score.value for found in members) / len(members),
        measured=measured,
        rows_measured=len(under_protocol),
        datasets=tuple(found.score.dataset for found in members),
        differs=differs,
    )


class Standing(NamedTuple):
    """One system's published and measured means over the datasets of one collection."""

    published: float | None
    measured: float | None
    measured_on: tuple[str, ...]
    differs: tuple[str, ...] = ()
    """A sentence for each setting that varies over the datasets and rules out the measured mean."""


class Collection(NamedTuple):
    """A column of the leaderboard: datasets whose main metric is averaged."""

    name: str
    title: str
    metric: str
    datasets: tuple[str, ...]


class Leaderboard(NamedTuple):
    """Published and measured means of every system on every collection."""

    collections: tuple[Collection, ...]
    systems: tuple[System, ...]
    standings: Mapping[tuple[System, str], Standing]


def leaderboard(tables: Sequence[CardTable], cells: Sequence[CellScores]) -> Leaderboard:
    """Return all systems, the card's and the measured ones, sorted by the published mean on BEIR."""
    collections = [
        Collection(table.name, table.title, table.rows[0][1], tuple(dataset for dataset, _ in table.rows))
        for table in tables
        if table.name != "matryoshka"
    ]
    known = {dataset for collection in collections for dataset in collection.datasets}
    families: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if (name := shown(cell)) not in known:
            members = families.setdefault((family(cell), cell.main_metric), [])
            members += [] if name in members else [name]
    collections += [
        Collection(f"{name} {metric}", FAMILIES.get(name, name), metric, tuple(sorted(datasets)))
        for (name, metric), datasets in sorted(families.items())
    ]
    by_name = {table.name: table for table in tables}
    systems = {System(*key) for table in tables for key in table.systems} | {
        System(cell.model, cell.dim) for cell in cells
    }
    standings = {
        (system, collection.name): _standing(system, collection, by_name.get(collection.name), cells, tables)
        for system in systems
        for collection in collections
    }
    order = [collection.name for collection in collections]

    def rank(system: System) -> tuple[Any, ...]:
        values = [standings[system, name] for name in order]
        best = [-(found.published if found.published is not None else found.measured or 0.0) for found in values]
        return (*best, system.name, system.dim or 0)

    return Leaderboard(tuple(collections), tuple(sorted(systems, key=rank)), standings)


def _standing(
    system: System,
    collection: Collection,
    table: CardTable | None,
    cells: Sequence[CellScores],
    tables: Sequence[CardTable],
) -> Standing:
    published_mean = table.averages[system].stated if table is not None and system in table.averages else None
    if len(collection.datasets) == 1:  # the Matryoshka table has MS MARCO at the smaller dims
        (dataset,) = collection.datasets
        found = [other.cells[dataset, system].score for other in tables if (dataset, system) in other.cells]
        published_mean = found[0].value if found else None
    found_cells = {
        place: cell
        for cell in cells
        if (cell.model, cell.dim) == system
        and (place := shown(cell)) in collection.datasets
        and collection.metric in cell.metrics
        and not _differs_from_card(cell, table, system)
    }
    complete = len(found_cells) == len(collection.datasets)
    measured, differs = mean_of(list(found_cells.values()), collection.metric) if complete else (None, ())
    return Standing(published_mean, measured, tuple(sorted(found_cells)), differs)


def _differs_from_card(cell: CellScores, table: CardTable | None, system: System) -> bool:
    """Whether a cell is known to differ from the card in protocol, weights or corpus."""
    found = table.cells.get((cell.dataset, system)) if table else None
    return not comparability.representative([cell]) or (found is not None and found.verdict.label == "PROTOCOL-DIFFERS")


def read_waivers(results_dir: Path) -> tuple[Waiver, ...]:
    """Return the waivers of a results folder (waivers.yaml).

    Raises ScoreError for an entry without a reason or without the measured score.
    """
    path = results_dir / "waivers.yaml"
    fields = ", ".join(Waiver._fields)
    wanted = f"wanted a list of {{{fields}}}, measured the score that is accepted (0.38123), each reason a sentence"
    entries = _entries(path, set(Waiver._fields), wanted)
    for entry in entries:
        reason, measured = entry["reason"], entry["measured"]
        _require(isinstance(reason, str) and reason.strip(), path, entry, wanted)
        _require(isinstance(measured, (int, float)) and not isinstance(measured, bool), path, entry, wanted)
    return tuple(Waiver(**entry) for entry in entries)


def _entries(path: Path, names: set[str], wanted: str) -> list[dict[str, Any]]:
    """Return the entries of a YAML list, which must have exactly these fields; none if the file does not exist."""
    if not path.is_file():
        return []
    try:
        entries = untrusted.read_yaml(path) or []
    except untrusted.UnreadableError as error:
        msg = f"{path}: not YAML ({error}); {wanted}"
        raise ScoreError(msg) from error
    for entry in entries if isinstance(entries, list) else [entries]:
        _require(isinstance(entry, dict) and set(entry) == names, path, entry, wanted)
        plain = all(isinstance(value, (str, int, float, type(None))) for value in entry.values())  # no lists, no dates
        _require(plain, path, entry, wanted)
    return list(entries)


def _require(holds: object, path: Path, entry: object, wanted: str) -> bool:
    """Return True, or raise ScoreError that quotes the entry if the condition does not hold."""
    if not holds:
        shown = repr(entry)
        msg = f"{path}: got {shown if len(shown) <= SHOWN_CHARACTERS else f'{shown[:SHOWN_CHARACTERS]}…'}, {wanted}"
        raise ScoreError(msg)
    return True
