"""Reuse of finished cells: return the stored scores, or score the stored run file again if the request has changed.

Judgements, query groups and metrics are not in the run id because they do not affect the search. This module compares
those of a finished cell with the requested ones. Scoring again never searches or encodes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from evalkit.errors import ScoreError
from evalkit.run import cell_files, environment, identity
from evalkit.run.cells import Cell, Task
from evalkit.run.progress import print_line
from evalkit.scoring import metrics
from evalkit.storage import cell_config, keys, per_query_file, results, trec
from evalkit.storage.paths import run_dir, write_atomic
from evalkit.storage.results import CellScores
from evalkit.types import Run

DATE_CHARACTERS = len("2026-01-31")
PUBLISHED = "published"
"""A results folder with this subfolder is the project's own: it also holds the published scores."""


def finished(task: Task, cell: Cell, names: Sequence[str]) -> CellScores | None:
    """Return a finished cell's scores under the current judgements, query groups and metrics (`names`).

    None means that the cell must be searched: it is not finished, or it must be scored again and its run file cannot be
    read.
    """
    scores = results.finished(task.config.results_dir, cell.run_id)
    changed = None if scores is None else _changed(task, cell, scores, names)
    if scores is None or changed is None:
        return scores
    try:
        results.require_unedited(task.config.results_dir, scores, results.RUN)
        run = results.read_run(run_dir(task.config.results_dir, cell.run_id) / results.RUN)
    except ScoreError as error:
        print_line(
            task.console, f"{cell.run_id}: {changed}, and its run file cannot be read ({error}); it is searched again"
        )
        return None
    print_line(task.console, f"{cell.run_id}: {changed}; its run file is scored again, nothing is searched or encoded")
    wanted = tuple(dict.fromkeys((*names, *scores.metrics)))  # metrics of earlier requests are kept
    return _scored_again(task, cell, scores, run, wanted)


def _scored_again(task: Task, cell: Cell, scores: CellScores, run: Run, names: Sequence[str]) -> CellScores:
    """Score the run of a finished cell again with the metrics `names`; write and return the new scores."""
    folder = run_dir(task.config.results_dir, cell.run_id)
    started = time.monotonic()
    results.begin_scoring(task.config.results_dir, cell.run_id)
    trec.write_qrels(task.dataset.qrels, folder / results.QRELS)
    scored = metrics.score(run, task.dataset.qrels, names)
    write_atomic(folder / results.PER_QUERY, per_query_file.text(scored.per_query, names).encode())
    cell_config.write(task.config, folder, scored_again=True)
    here = environment.environment(None)
    fresh = dataclasses.replace(
        scores,
        files={},  # `write` computes the checksums of the current files
        language=task.dataset.language,
        main_metric=task.dataset.main_metric,
        metrics=scored.means,
        groups=cell_files.group_means(task, scored),
        counts=_counts(task, scores),
        deviations=(*task.deviations, *cell_files.accepted_contradictions(task.config, cell)),
        wall_s={**scores.wall_s, "score": round(time.monotonic() - started, 3)},
        environment={
            **scores.environment,
            **cell_files.scoring_facts(task),
            "scored_again": {"evalkit": here["evalkit"], "ranx": here["packages"]["ranx"]},
        },
    )
    results.write(fresh, task.config.results_dir)
    return fresh


def reused_lines(cells: Sequence[CellScores], results_dir: Path) -> list[str]:
    """Return lines that say when and on which device finished cells were computed, and where they are read from."""
    own = " (the project's own published results)" if (results_dir / PUBLISHED).is_dir() else ""
    where = f"read from {results_dir}{own}; --force runs again"
    by_origin: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        when = str(cell.environment.get(cell_files.FINISHED, ""))[:DATE_CHARACTERS] or "date not recorded"
        device = cell.environment.get("device") or "cpu"
        if device == "cpu":
            device = cell.environment.get("processor") or device
        by_origin.setdefault((when, str(device)), []).append(cell)
    return [
        f"{', '.join(keys.label(cell.model, cell.dim) for cell in same_origin)} on {same_origin[0].dataset}: "
        f"finished earlier ({when}, on {device}), {where}"
        for (when, device), same_origin in by_origin.items()
    ]


def _changed(task: Task, cell: Cell, scores: CellScores, names: Sequence[str]) -> str | None:
    """Describe the first difference between a cell's scoring and the requested one; None if there is none."""
    judged, metric = _judged_with(task, scores), task.dataset.main_metric
    problem = None
    if judged is None:
        problem = "its result does not record the judgements that it was scored with"
    elif judged != identity.qrels_checksum(task.dataset.qrels):
        problem = "the judgements have changed since it was scored"
    elif not set(names) <= set(scores.metrics):
        problem = f"it was scored with {', '.join(scores.metrics)}, wanted {', '.join(names)}"
    elif scores.main_metric != metric:
        problem = f"its main metric was {scores.main_metric}, wanted {metric}"
    elif not _same_groups(task, scores):
        problem = "the query groups have changed since it was scored"
    elif scores.deviations != (*task.deviations, *cell_files.accepted_contradictions(task.config, cell)):
        problem = "the deviations differ from the recorded ones"
    return problem


def _judged_with(task: Task, scores: CellScores) -> str | None:
    """Return the checksum of a cell's judgements; results of older versions lack it, so read the stored judgements."""
    if (recorded := scores.environment.get(results.QRELS_CHECKSUM)) is not None:
        return str(recorded)
    try:
        return identity.qrels_checksum(trec.read_qrels(run_dir(task.config.results_dir, scores.run_id) / results.QRELS))
    except ScoreError:
        return None


def _same_groups(task: Task, scores: CellScores) -> bool:
    """Whether the recorded group means are those of the current groups, computed from the per-query values."""
    groups = task.dataset.query_groups
    if not groups and not scores.groups:
        return True
    try:
        table = per_query_file.read(run_dir(task.config.results_dir, scores.run_id) / results.PER_QUERY)
        rows = zip(table.queries, table.value_QM.tolist(), strict=True)
        per_query = {query: dict(zip(table.metrics, row, strict=True)) for query, row in rows}
        return {name: per_query_file.group_means(per_query, ids) for name, ids in groups.items()} == dict(scores.groups)
    except (ScoreError, KeyError):
        return False


def _counts(task: Task, scores: CellScores) -> dict[str, int]:
    """Return a cell's counts, with those of judged queries, judgements and missing documents updated."""
    kept = {name: count for name, count in scores.counts.items() if name != "missing_documents"}
    missing = {"missing_documents": len(task.survey.missing)} if task.survey.missing else {}
    judgements = sum(map(len, task.dataset.qrels.values()))
    return {**kept, "queries": len(task.dataset.qrels), "judgements": judgements, **missing}
