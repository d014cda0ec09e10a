"""Verify that a cell's other files still give its scores: by checksum, or else by scoring them again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evalkit.errors import ScoreError
from evalkit.storage import paths, results, trec
from evalkit.storage.per_query_file import QueryTable
from evalkit.storage.results import CellScores

SCORED_FROM = (results.RUN, results.QRELS, results.PER_QUERY)
"""The files that scores are computed from; the other files only document how."""
_TOLERANCE = 1e-9
"""Sums in another order differ by less than this; any other change of a value is larger."""


def confirm(results_dir: Path, cell: CellScores, queries: QueryTable) -> tuple[list[str], bool]:
    """Return a line for every edited file of a cell, and whether its scores are still confirmed.

    If a checksum does not match, the cell is scored again from its run file and judgements and compared with its values
    by query. If all match, nothing is computed.
    """
    edited = results.edited(results_dir, cell)
    wrong = _disagreement(results_dir, cell, queries) if edited.keys() & set(SCORED_FROM) else None
    lines = []
    for name, line in edited.items():
        if name not in SCORED_FROM:
            lines.append(f"{line}; no score depends on it: restore it")
        elif wrong is None:
            lines.append(f"{line}; scored again it gives the same values: restore it")
        else:
            lines.append(f"{line}; {wrong}; the cell is left out: restore the file or run the cell again")
    return lines, wrong is None


def _disagreement(results_dir: Path, cell: CellScores, queries: QueryTable) -> str | None:
    """Score a cell again. Describe the first value that differs; None if all are the same."""
    from evalkit.scoring import metrics

    folder = paths.run_dir(results_dir, cell.run_id)
    try:
        run = results.read_run(folder / results.RUN)
        again = metrics.score(run, trec.read_qrels(folder / results.QRELS), queries.metrics)
    except ScoreError as error:
        return f"it cannot be scored again ({error})"
    if set(again.per_query) != set(queries.queries):
        return f"got judgements of {len(again.per_query)} queries, wanted the {len(queries.queries)} of its table"
    return _first_difference(again.per_query, queries)


def _first_difference(again: dict[str, dict[str, float]], queries: QueryTable) -> str | None:
    for metric in queries.metrics:
        values: Sequence[float] = [again[query][metric] for query in queries.queries]
        stored = queries.column(metric)
        if not np.allclose(values, stored, rtol=0, atol=_TOLERANCE):
            place = int(np.argmax(np.abs(np.asarray(values) - stored)))
            query, mean = queries.queries[place], math.fsum(values) / len(values)
            return (
                f"query {query!r} scored again has {metric} {values[place]:.5f}, its table says {stored[place]:.5f} "
                f"(mean {mean:.5f})"
            )
    return None
