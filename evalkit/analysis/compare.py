"""Runs side by side: paired differences with their sampling error, and what each dim costs to store and to search.

Sampling error answers "is dim 64 worse than 128?", never "did we reproduce the card?". Shapes: Q queries, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalkit.errors import ScoreError, nearest
from evalkit.storage import keys, results
from evalkit.storage.paths import run_dir
from evalkit.storage.results import CellScores

RESAMPLES = 2000
SEED = 0
SHOWN = 4
"""How many runs a message names."""
CHUNK = 200
"""Resamples drawn at once: bounds the [B, Q] matrix of drawn positions."""


class Storage(NamedTuple):
    """Bytes of the vectors of a corpus."""

    per_vector: int
    per_passage: float | None
    """None where the run did not count its vectors."""
    corpus: int | None


class Comparison(NamedTuple):
    """A run against a base run on the same queries of one dataset."""

    dataset: str
    metric: str
    base: CellScores
    other: CellScores
    delta: float
    """Mean over queries of the other's value minus the base's."""
    interval: tuple[float, float]
    """95 % of a paired bootstrap of the difference."""
    p: float
    """Two-sided paired t-test."""
    p_holm: float
    """Corrected by Holm's method over all comparisons made together: every dataset, system and dim."""
    queries: int
    wins: int
    losses: int


def storage(cell: CellScores, *, bytes_per_value: int | None = None) -> Storage | None:
    """Return what a cell's vectors take as stored, or at another width; None for a system without vectors."""
    if cell.dim is None:
        return None
    width = bytes_per_value or (4 if cell.protocol.get("stored_dtype") == "float32" else 2)
    vectors, documents = cell.counts.get("document_vectors"), cell.counts.get("documents")
    if vectors is None or not documents:
        return Storage(cell.dim * width, None, None)
    return Storage(cell.dim * width, cell.dim * width * vectors / documents, cell.dim * width * vectors)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean; the same values give the same interval.

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
    """Return the 95 % interval of a mean by its standard error: 1.96 of them to either side.

    Beside a bootstrap it costs nothing, and over the hundreds of queries of a run it says the same.

    >>> [round(end, 3) for end in normal_interval([0.0, 1.0, 0.0, 1.0])]
    [-0.066, 1.066]
    """
    value_Q = np.asarray(values, dtype=np.float64)
    mean, error = float(value_Q.mean()), 0.0
    if len(value_Q) > 1:
        error = float(value_Q.std(ddof=1)) / math.sqrt(len(value_Q))
    return mean - 1.96 * error, mean + 1.96 * error


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the order given.

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
    """Return the p-value of a two-sided paired t-test; runs that never differ have 1, and so has a single query.

    >>> paired_p([0.1, 0.2], [0.1, 0.2])
    1.0
    """
    difference_Q = np.asarray(other, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    if len(difference_Q) < 2 or not difference_Q.any():
        return 1.0
    if not np.ptp(difference_Q):  # the same difference everywhere has no spread to divide by
        return 0.0
    from scipy.stats import ttest_rel

    return float(ttest_rel(other, base).pvalue)


def compare(cells: Sequence[CellScores], results_dir: Path, *, metric: str | None = None) -> list[Comparison]:
    """Compare every run with the first of its dataset, the one with the greatest dim unless the caller ordered them.

    Raises ScoreError when fewer than two runs share a dataset, when a metric was not measured, when two runs judged
    different queries, or when a run's values by query are damaged.
    """
    by_dataset: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        by_dataset.setdefault((cell.dataset, cell.split), []).append(cell)
    found: list[Comparison] = []
    for (dataset, _), (base, *others) in by_dataset.items():
        name = metric or base.main_metric
        base_values = values_of(base, results_dir, name)
        found += [
            _compared(dataset, name, base, other, base_values, values_of(other, results_dir, name)) for other in others
        ]
    if not found:
        shown = ", ".join(f"{_address(cell)} on {cell.dataset}" for cell in cells[:SHOWN]) or "none"
        more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
        msg = f"got runs {shown}{more}; wanted two or more on one dataset (evalkit ls runs)"
        raise ScoreError(msg)
    corrected = holm([one.p for one in found])
    return [one._replace(p_holm=p) for one, p in zip(found, corrected, strict=True)]


def _compared(  # noqa: PLR0913, PLR0917 (one caller: two runs, each with its values)
    dataset: str,
    metric: str,
    base: CellScores,
    other: CellScores,
    base_values: Mapping[str, float],
    other_values: Mapping[str, float],
) -> Comparison:
    if base_values.keys() != other_values.keys():
        differing = len(base_values.keys() ^ other_values.keys())
        msg = f"{base.run_id} and {other.run_id}: {differing} queries stand in one only; wanted the same judged queries"
        raise ScoreError(f"{msg}; run both on the same copy of {dataset}")
    before = list(base_values.values())
    after = [other_values[query] for query in base_values]
    differences = [new - old for new, old in zip(after, before, strict=True)]
    return Comparison(
        dataset=dataset,
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
    """Return a run's values by query for one metric. Raises ScoreError when it was not measured or its table edited."""
    results.require_unedited(results_dir, cell, results.PER_QUERY)
    table = results.read_per_query(run_dir(results_dir, cell.run_id) / results.PER_QUERY)
    if metric not in table.metrics:
        msg = f"{cell.run_id}: metric {metric!r} was not measured; {nearest(metric, table.metrics)}"
        raise ScoreError(msg)
    return dict(zip(table.queries, table.column(metric).tolist(), strict=True))


def intervals(cells: Iterable[CellScores], results_dir: Path) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each run's main metric over its queries, by run id."""
    return {
        cell.run_id: normal_interval(list(values_of(cell, results_dir, cell.main_metric).values())) for cell in cells
    }


def choose(cells: Iterable[CellScores], words: Sequence[str]) -> list[CellScores]:
    """Return the runs that each word names: a run id, its beginning, a system, its dim, or a dataset; all for no words.

    `model=NAME`, `dataset=NAME` and `dim=N` name no run: they narrow what the other words choose from. Within a word
    the greatest dim comes first. Raises ScoreError for a word that names none.
    """
    known = sorted(cells, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0)))
    if not known:
        msg = "got no finished run, wanted one or more; run one first, for example: evalkit run (or give --results-dir)"
        raise ScoreError(msg)
    known, words = _narrowed(known, words)
    chosen: dict[str, CellScores] = {}
    for word in words or ("",):
        named = [cell for cell in known if names(cell, word)]
        if not named:
            labels = [_address(cell) for cell in known]
            msg = (
                f"run {word!r} unknown; {nearest(word, [*labels, *(cell.dataset for cell in known)])} (evalkit ls runs)"
            )
            raise ScoreError(msg)
        chosen |= {cell.run_id: cell for cell in named}
    return list(chosen.values())


def names(cell: CellScores, word: str) -> bool:
    """Say whether a word names a run: the beginning of its id, its system (with or without dim), or its dataset."""
    system = keys.system_label(cell.model, cell.dim)
    return cell.run_id.startswith(word) or word in (cell.model, system, cell.dataset, _address(cell), str(cell.dim))


def _address(cell: CellScores) -> str:
    """Return what a user types for a run: its system, and behind a colon its dim.

    The colon tells a dim from a number that is part of a system's name.
    """
    return cell.model if cell.dim is None else f"{cell.model}:{cell.dim}"


def _narrowed(cells: Sequence[CellScores], words: Sequence[str]) -> tuple[list[CellScores], list[str]]:
    """Return the runs that model=, dataset= and dim= leave, and the other words. Raises ScoreError for none."""
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
            msg = f"{word}: no finished run has it; {nearest(value, have)} (evalkit ls runs)"
            raise ScoreError(msg)
        kept = left
    return kept, rest


def one(cells: Iterable[CellScores], word: str) -> CellScores:
    """Return the single run that a word names. Raises ScoreError when it names none or several."""
    chosen = choose(cells, [word])
    exact = [cell for cell in chosen if cell.run_id == word]
    if len(exact or chosen) != 1:
        told_apart = results.distinctions(chosen)
        shown = [f"{_address(cell)} on {cell.dataset}{told_apart[cell.run_id]}" for cell in chosen[:SHOWN]]
        more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
        msg = f"run {word!r} names {len(chosen)}: {', '.join(shown)}{more}; wanted one (evalkit ls runs --wide has ids)"
        raise ScoreError(msg)
    return (exact or chosen)[0]


def measured(cell: CellScores, metric: str | None) -> str:
    """Return a metric's name, the main one for None. Raises ScoreError when the run was not scored with it."""
    name = metric or cell.main_metric
    if name not in cell.metrics:
        msg = f"{cell.run_id}: metric {name!r} was not measured; {nearest(name, cell.metrics)}"
        raise ScoreError(msg)
    return name
