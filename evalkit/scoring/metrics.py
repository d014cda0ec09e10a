"""Metric values of a run from judgements, computed by ranx under trec_eval's conventions.

Shapes: Q queries; J, H: the largest number of judged documents and of hits of a query.

ranx gets arrays of document numbers, not its dictionaries of ids. It then compiles only once, whatever the ids: about
7 s in a fresh installation, 0.2 s afterwards, because numba caches the result next to ranx or in the user's cache
folder. Ranks are given by position, so ranx cannot reorder equal scores.

The arrays give every query as many hits as the longest list has. Only ranx's precision and f1 without a cutoff count
the hits that fill up the others; these two are computed here, from ranx's number of relevant hits.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from evalkit.config.settings import METRICS
from evalkit.errors import ScoreError
from evalkit.kernels.compile_cache import with_cache_folder
from evalkit.ranking import check_hits, rank_hits
from evalkit.types import Qrels, Run, Scores

UNCUT = re.compile(r"(precision|f1)(-l([1-9]))?")
"""The metrics that divide by the number of a query's hits."""
UNJUDGED = -1
"""The document number of every retrieved document that is not judged for the query; it counts as not relevant."""


def score(run: Run, qrels: Qrels, metrics: Sequence[str] = METRICS) -> Scores:
    """Return each metric's mean over all judged queries, and every judged query's own value.

    NDCG has linear gain, as in trec_eval. A judged query scores 0 if the run lacks it or if all its grades are zero.
    Queries of the run without judgements are ignored. Grades below 1 count as not relevant.

    Raises ScoreError if there are no judgements, if hits cannot be ranked (`check_hits`), if a value is not finite, or
    if ranx cannot be imported.
    """
    if not qrels:
        msg = "no query is judged; wanted judgements for at least one"
        raise ScoreError(msg)
    for query in qrels:
        check_hits(query, run.get(query, []))
    judged_QJ2, found_QH2 = _arrays(run, qrels)
    length_Q = np.array([len(run.get(query, ())) for query in qrels])
    values = _evaluate(judged_QJ2, found_QH2, length_Q, metrics)
    for metric, value_Q in values.items():
        if not np.isfinite(value_Q).all():
            query = list(qrels)[int(np.flatnonzero(~np.isfinite(value_Q))[0])]
            msg = f"{metric} of query {query!r} is not a finite number; check the run's scores and the judgements"
            raise ScoreError(msg)
    per_query = {
        query: {metric: float(values[metric][place]) for metric in metrics} for place, query in enumerate(qrels)
    }
    means = {metric: math.fsum(values[metric].tolist()) / len(qrels) for metric in metrics}
    return Scores(means, per_query)


def _arrays(run: Run, qrels: Qrels) -> tuple[np.ndarray, np.ndarray]:
    """Return judgements [Q, J, 2] as (document number, grade), best first, and hits [Q, H, 2] in rank order.

    Unused entries are UNJUDGED with grade 0. ranx drops them from judgements and never matches them in hits. Hits are
    not truncated here; each metric applies its own cutoff.
    """
    hits = [rank_hits(run.get(query, [])) for query in qrels]
    judged_QJ2 = np.zeros((len(qrels), max(map(len, qrels.values())), 2))
    found_QH2 = np.zeros((len(qrels), max(1, *map(len, hits)), 2))
    judged_QJ2[:, :, 0] = found_QH2[:, :, 0] = UNJUDGED
    for place, (grades, ranked) in enumerate(zip(qrels.values(), hits, strict=True)):
        by_grade = sorted(grades.items(), key=lambda item: -item[1])
        numbers = {document: number for number, (document, _) in enumerate(by_grade)}
        judged_QJ2[place, : len(by_grade), 0] = np.arange(len(by_grade))
        judged_QJ2[place, : len(by_grade), 1] = [grade for _, grade in by_grade]
        found_QH2[place, : len(ranked), 0] = [numbers.get(hit.document_id, UNJUDGED) for hit in ranked]
    return judged_QJ2, found_QH2


def _evaluate(
    judged_QJ2: np.ndarray, found_QH2: np.ndarray, length_Q: np.ndarray, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return each metric's values [Q] from ranx, which is imported here because the import takes about 2 s."""
    try:
        with _without_unused_modules():
            ranx = with_cache_folder(_ranx)
    except (OSError, RuntimeError) as error:
        # ranx imports numba, which needs a writable folder, and no temporary folder could be created either.
        msg = f"ranx cannot be imported ({error}); it needs a writable home folder: set HOME to one"
        raise ScoreError(msg) from error

    asked = [f"hits{found[2] or ''}" if (found := UNCUT.fullmatch(metric)) else metric for metric in metrics]
    # ranx 0.3.21 fails with return_mean=False and a single metric. For a list it returns a dict, so repeat the first.
    values: dict[str, np.ndarray] = ranx.evaluate(judged_QJ2, found_QH2, [asked[0], *asked], return_mean=False)
    return {
        metric: _of_hits(metric, values[name], length_Q, judged_QJ2) if name != metric else values[metric]
        for metric, name in zip(metrics, asked, strict=True)
    }


def _of_hits(metric: str, relevant_Q: np.ndarray, length_Q: np.ndarray, judged_QJ2: np.ndarray) -> np.ndarray:
    """Return precision or f1 over all hits of each query, given how many of them are relevant; 0 without hits."""
    name, _, grade = metric.partition("-l")
    of_Q = length_Q if name == "precision" else length_Q + (judged_QJ2[:, :, 1] >= int(grade or 1)).sum(axis=1)
    return np.asarray((relevant_Q if name == "precision" else 2 * relevant_Q) / np.maximum(of_Q, 1))


def _ranx() -> Any:
    import ranx

    return ranx


@contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Replace two modules that ranx imports but that are not needed here by empty ones, during the import of ranx.

    Importing ir_datasets creates folders in the user's home, and importing matplotlib creates a font cache. A job would
    write outside its results_dir and cache_dir, and would fail where the home folder is not writable.
    """
    empty = {name: ModuleType(name) for name in ("ir_datasets", "ranx.meta.plot") if name not in sys.modules}
    if plotting := empty.get("ranx.meta.plot"):
        plotting.__dict__["plot"] = None  # ranx.meta imports this name
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]
