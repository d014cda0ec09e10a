"""Runs and judgements to metric values, computed by ranx under trec_eval's conventions.

Shapes: Q queries, J judged documents of a query at most, H hits of a query at most.

ranx is handed plain arrays of document numbers instead of its own dictionaries of text ids: it then compiles once
(about 7 s in a fresh installation, .2 s after that, since numba caches it beside ranx or in the user's cache folder)
whatever the ids look like, and ranks are given by position, so that equal scores cannot be reordered.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from evalkit.errors import ScoreError
from evalkit.kernels.cpu.numba_folder import with_folder
from evalkit.ranking import check_hits, rank_hits
from evalkit.types import Qrels, Run, Scores

UNJUDGED = -1
"""The number of every retrieved document that the query's judgements do not name; it is not relevant."""


def score(run: Run, qrels: Qrels, metrics: Sequence[str] = ("ndcg@10", "mrr@10", "recall@100")) -> Scores:
    """Return each metric's mean over all judged queries, and every judged query's own value.

    NDCG has linear gain, as trec_eval's. A judged query that the run misses scores 0, and so does one whose judgements
    are all zero; a query of the run that is not judged is ignored. Grades below 1 are not relevant.
    Raises ScoreError when nothing is judged, for hits that cannot be ranked (`check_hits`), when a value is not a
    finite number and when ranx cannot be imported.
    """
    if not qrels:
        msg = "no query is judged; wanted judgements for at least one"
        raise ScoreError(msg)
    for query in qrels:
        check_hits(query, run.get(query, []))
    judged_QJ2, found_QH2 = _arrays(run, qrels)
    values = _evaluate(judged_QJ2, found_QH2, metrics)
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

    Unused places hold UNJUDGED with grade 0, which ranx drops from judgements and never matches in hits. Hits are
    cut at no depth here: a metric's own cutoff decides.
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


def _evaluate(judged_QJ2: np.ndarray, found_QH2: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Let ranx compute; it is imported here because the import alone takes about 2 s."""
    try:
        with _without_unused_modules():
            ranx = with_folder(_ranx)
    except (OSError, RuntimeError) as error:
        # numba, which ranx imports, wants a folder to write to, and there is no room for a temporary one either.
        msg = f"ranx cannot be imported ({error}); it wants a home folder that can be written: set HOME to one"
        raise ScoreError(msg) from error

    # ranx 0.3.21 fails on one metric without its mean, and answers a list of several with a dict: name the first twice.
    return dict(ranx.evaluate(judged_QJ2, found_QH2, [metrics[0], *metrics], return_mean=False))


def _ranx() -> Any:
    import ranx

    return ranx


@contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Let ranx be imported without the modules behind functions of it that nobody calls here.

    On import alone ir_datasets makes folders in the user's home, and matplotlib, which plots, a cache of fonts; a run
    would leave both outside its results_dir and cache_dir, and fail where the home cannot be written.
    """
    stand_ins = {name: ModuleType(name) for name in ("ir_datasets", "ranx.meta.plot") if name not in sys.modules}
    if plotting := stand_ins.get("ranx.meta.plot"):
        plotting.__dict__["plot"] = None  # ranx.meta names it
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
