"""Comparison of finished cells: paired differences with their sampling error, and the storage cost of each dim.

Sampling error answers "is dim 64 worse than 128?". It does not answer "did we reproduce the card?".

Shapes: Q queries, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalkit.errors import ScoreError, nearest
from evalkit.storage import evaluated, keys, per_query_file, results
from evalkit.storage.paths import run_dir
from evalkit.storage.results import CellScores

RESAMPLES = 2000
SEED = 0
SHOWN = 4
"""The maximum number of cells that a message names."""
CHUNK = 200
"""Resamples drawn at once, to bound the size of the matrix [B, Q] of drawn positions."""


class Storage(NamedTuple):
    """The size of a corpus's vectors, in bytes."""

    per_vector: int
    per_passage: float | None
    """The mean over passages; None if the cell's vectors were not counted."""
    corpus: int | None
    """The whole corpus; None if the cell's vectors were not counted."""


class Comparison(NamedTuple):
    """The difference between a cell and a base cell on the same queries of one dataset."""

    dataset: str
    metric: str
    base: CellScores
    other: CellScores
    delta: float
    """The mean over queries of the other cell's value minus the base cell's."""
    interval: tuple[float, float]
    """The 95 % interval of a paired bootstrap of the difference."""
    p: float
    """The p-value of a two-sided paired t-test."""
    p_holm: float
    """`p` corrected by Holm's method over all comparisons that one call of `compare` returns."""
    queries: int
    wins: int
    losses: int


def storage(cell: CellScores, *, bytes_per_value: int | None = None) -> Storage | None:
    """Return the size of a cell's vectors as stored, or at `bytes_per_value`; None for a system without vectors."""
    if cell.dim is None:
        return None
    index = cell.environment.get(results.INDEX)
    if isinstance(index, Mapping) and bytes_per_value is None:
        vectors, size = cell.counts.get("document_vectors"), int(index["bytes"])
        return Storage(round(size / vectors) if vectors else 0, size / cell.counts["documents"], size)
    width = bytes_per_value or (4 if cell.protocol.get("stored_dtype") == "float32" else 2)
    vectors, documents = cell.counts.get("document_vectors"), cell.counts.get("documents")
    if vectors is None or not documents:
        return Storage(cell.dim * width, None, None)
    return Storage(cell.dim * width, cell.dim * width * vectors / documents, cell.dim * width * vectors)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean; the seed is fixed, so the result is reproducible.

    >>> bootstrap_interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    """
    value_Q = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    means = [
        value_Q[generator.integers(0, len(value_Q), size=(CHUNK, len(value_Q)))].mean(axis=1)
        for _ in range(RESAMPLES // CHUNK)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def normal_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean: the mean plus and minus 1.96 standard errors.

    It is much cheaper than a bootstrap, and agrees with it for the hundreds of queries of a dataset.

    >>> [round(end, 3) for end in normal_interval([0.0, 1.0, 0.0, 1.0])]
    [-0.066, 1.066]
    """
    value_Q = np.asarray(values, dtype=np.float64)
    mean, error = float(value_Q.mean()), 0.0
    if len(value_Q) > 1:
        error = float(value_Q.std(ddof=1)) / math.sqrt(len(value_Q))
    return mean - 1.96 * error, mean + 1.96 * error


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons by Holm's step-down method, in the order of the argument.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = running
    return corrected


def paired_p(base: Sequence[float], other: Sequence[float]) -> float:
    """Return the p-value of a two-sided paired t-test; 1 for values that never differ and for a single query.

    >>> paired_p([0.1, 0.2], [0.1, 0.2])
    1.0
    """
    difference_Q = np.asarray(other, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    if len(difference_Q) < 2 or not difference_Q.any():
        return 1.0
    if not np.ptp(difference_Q):  # a constant difference has standard deviation 0, by which the test would divide
        return 0.0
    from scipy.stats import ttest_rel

    return float(ttest_rel(other, base).pvalue)


def compare(cells: Sequence[CellScores], results_dir: Path, *, metric: str | None = None) -> list[Comparison]:
    """Compare every cell with the first cell on its dataset; `choose` puts the greatest dim first.

    `metric` is the dataset's main metric unless given. Raises ScoreError if no two cells share a dataset and split, if
    a cell was not scored with the metric, if two cells of a dataset have another corpus, other queries or judgements,
    or if per-query values are damaged.
    """
    by_dataset: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        by_dataset.setdefault((cell.dataset, cell.split), []).append(cell)
    found: list[Comparison] = []
    for same in by_dataset.values():
        evaluated.refuse_differing(same)
        base, *others = same
        name = metric or base.main_metric
        base_values = values_of(base, results_dir, name)
        found += [_compared(name, base, other, base_values, values_of(other, results_dir, name)) for other in others]
    if not found:
        shown = ", ".join(f"{_address(cell)} on {cell.dataset} ({cell.split})" for cell in cells[:SHOWN]) or "none"
        more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
        msg = f"got cells {shown}{more}; wanted two or more on one dataset and split (evalkit ls runs)"
        raise ScoreError(msg)
    corrected = holm([one.p for one in found])
    return [one._replace(p_holm=p) for one, p in zip(found, corrected, strict=True)]


def refuse_other_queries(
    base: CellScores, other: CellScores, base_values: Mapping[str, float], other_values: Mapping[str, float]
) -> None:
    """Raise ScoreError unless two cells have values of the same queries."""
    if base_values.keys() != other_values.keys():
        differing = len(base_values.keys() ^ other_values.keys())
        msg = f"{base.run_id} and {other.run_id}: {differing} queries are in one only; wanted the same judged queries"
        raise ScoreError(f"{msg}; run both on the same copy of {base.dataset}")


def _compared(
    metric: str,
    base: CellScores,
    other: CellScores,
    base_values: Mapping[str, float],
    other_values: Mapping[str, float],
) -> Comparison:
    refuse_other_queries(base, other, base_values, other_values)
    before = list(base_values.values())
    after = [other_values[query] for query in base_values]
    differences = [new - old for new, old in zip(after, before, strict=True)]
    return Comparison(
        dataset=base.dataset,
        metric=metric,
        base=base,
        other=other,
        delta=math.fsum(differences) / len(differences),
        interval=bootstrap_interval(differences),
        p=paired_p(before, after),
        p_holm=1.0,
        queries=len(differences),
        wins=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
    )


def values_of(cell: CellScores, results_dir: Path, metric: str) -> dict[str, float]:
    """Return a cell's values of a metric by query. Raises ScoreError if it was not measured or the table was edited."""
    results.require_unedited(results_dir, cell, results.PER_QUERY)
    table = per_query_file.read(run_dir(results_dir, cell.run_id) / results.PER_QUERY)
    if metric not in table.metrics:
        msg = f"{cell.run_id}: metric {metric!r} was not measured; {nearest(metric, table.metrics)}"
        raise ScoreError(msg)
    return dict(zip(table.queries, table.column(metric).tolist(), strict=True))


def intervals(cells: Iterable[CellScores], results_dir: Path) -> dict[str, tuple[float, float]]:
    """Return by run id the 95 % interval of each cell's main metric over its queries."""
    return {
        cell.run_id: normal_interval(list(values_of(cell, results_dir, cell.main_metric).values())) for cell in cells
    }


def choose(cells: Iterable[CellScores], words: Sequence[str]) -> list[CellScores]:
    """Return the cells that each word names (see `names`), in the order of the words; without words, all.

    `model=NAME`, `dataset=NAME` and `dim=N` narrow the cells that the other words choose from. Among the cells of one
    word the greatest dim comes first. A word that is both a system and a dataset means the system. Raises ScoreError if
    there are no cells, and for a word that names none.
    """
    known = sorted(cells, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0), cell.search != "exact"))
    if not known:
        msg = "got no finished cell; run one first, for example: evalkit run (or give --results-dir)"
        raise ScoreError(msg)
    known, words = _narrowed(known, words)
    chosen: dict[str, CellScores] = {}
    for word in words or ("",):
        named = [cell for cell in known if names(cell, word)]
        if not named:
            labels = [_address(cell) for cell in known]
            valid = [*labels, *(cell.dataset for cell in known)]
            msg = f"cell {word!r} unknown; {nearest(word, valid)} (evalkit ls runs)"
            raise ScoreError(msg)
        of_system = [cell for cell in named if cell.model == word]
        chosen |= {cell.run_id: cell for cell in of_system or named}
    return list(chosen.values())


def names(cell: CellScores, word: str) -> bool:
    """Whether a word names a cell: the beginning of its run id, its system (with or without dim), or its dataset.

    A cell that searched an index counts as a system of its own, as in `demo-128@plaid`.
    """
    by = "" if cell.search == "exact" else f"@{cell.search}"
    systems = (cell.model, keys.system_label(cell.model, cell.dim), keys.label(cell.model, cell.dim), str(cell.dim))
    return cell.run_id.startswith(word) or word == cell.dataset or word in [f"{system}{by}" for system in systems]


def _address(cell: CellScores) -> str:
    """Return the name that a user types for a cell: SYSTEM, SYSTEM:DIM or SYSTEM:DIM@INDEX.

    The colon distinguishes a dim from a number that is part of a system's name.
    """
    named = keys.label(cell.model, cell.dim)
    return named if cell.search == "exact" else f"{named}@{cell.search}"


def _narrowed(cells: Sequence[CellScores], words: Sequence[str]) -> tuple[list[CellScores], list[str]]:
    """Filter cells by model=, dataset= and dim=; return them and the other words. Raises ScoreError if none is left."""
    kept, rest = list(cells), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ("model", "dataset", "dim"):
            rest.append(word)
            continue
        wanted = value.strip("[]").split(",")
        left = [cell for cell in kept if str(getattr(cell, key)) in wanted]
        if not left:
            have = sorted({str(getattr(cell, key)) for cell in kept if getattr(cell, key) is not None})
            msg = f"{word}: no finished cell has it; {nearest(value, have)} (evalkit ls runs)"
            raise ScoreError(msg)
        kept = left
    return kept, rest


def one(cells: Iterable[CellScores], word: str) -> CellScores:
    """Return the only cell that a word names, as in `choose`. Raises ScoreError if it names none or several."""
    chosen = choose(cells, [word])
    exact = [cell for cell in chosen if cell.run_id == word]
    if len(exact or chosen) != 1:
        distinction = results.distinctions(chosen)
        shown = [f"{_address(cell)} on {cell.dataset}{distinction[cell.run_id]}" for cell in chosen[:SHOWN]]
        more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
        msg = f"cell {word!r} names {len(chosen)}: {', '.join(shown)}{more}; wanted one"
        raise ScoreError(f"{msg} (evalkit ls runs --wide has ids)")
    return (exact or chosen)[0]


def measured(cell: CellScores, metric: str | None) -> str:
    """Return a metric's name; None means the main metric. Raises ScoreError if the cell was not scored with it."""
    name = metric or cell.main_metric
    if name not in cell.metrics:
        msg = f"{cell.run_id}: metric {name!r} was not measured; {nearest(name, cell.metrics)}"
        raise ScoreError(msg)
    return name
