"""The files of a finished cell, and what its scores.json records about dataset, judgements and weights.

scores.json itself is written last, by the caller, because it marks the cell as finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.models import metadata
from evalkit.ranking import drop_self, self_hits
from evalkit.run import identity
from evalkit.run.cells import Cell, Task
from evalkit.scoring import metrics
from evalkit.storage import cell_config, per_query_file, results, trec
from evalkit.storage.paths import make_folder, run_dir, write_atomic
from evalkit.types import Hit, Run, Scores

FINISHED = "finished"
"""The key in `environment` of the time when a cell was finished."""


class Written(NamedTuple):
    """The run that was written, under the dataset's self-id rule, and its scores."""

    run: Run
    dropped: int
    """Hits that were left out because their document is the query itself."""
    scores: Scores


def write(task: Task, run_id: str, hits: Mapping[str, Sequence[Hit]]) -> Written:
    """Apply the dataset's self-id rule to hits by query id; write run file, judgements, per-query values and config.

    The hits that the rule drops are kept in a separate file, so that `evalkit replay` can put them back. An earlier
    scores.json is marked as outdated first, because it describes the files that are replaced.
    """
    config, dataset = task.config, task.dataset
    folder = run_dir(config.results_dir, run_id)
    make_folder(folder)
    given = {query: list(ranked) for query, ranked in hits.items()}
    kept, dropped = drop_self(given, depth=config.search.depth) if dataset.drop_self else (given, 0)
    results.begin_scoring(config.results_dir, run_id)
    trec.write_run(kept, folder / results.RUN, tag=run_id)
    trec.write_qrels(dataset.qrels, folder / results.QRELS)
    if dropped:
        own = {query: [hit for hit in ranked if hit.document_id == query] for query, ranked in given.items()}
        trec.write_run(own, folder / results.DROPPED, tag=run_id)
    scored = metrics.score(kept, dataset.qrels, config.metrics)
    write_atomic(folder / results.PER_QUERY, per_query_file.text(scored.per_query, config.metrics).encode())
    cell_config.write(config, folder)
    return Written(kept, dropped, scored)


def counts(task: Task, written: Written) -> dict[str, int]:
    """Return the numbers of documents, queries and judgements of a cell, and of hits whose id is the query's own."""
    survey, dataset = task.survey, task.dataset
    return {
        "documents": survey.documents,
        "empty_documents": survey.empty_documents,
        "queries": len(dataset.qrels),  # the number that the means are over
        "judgements": sum(len(judged) for judged in dataset.qrels.values()),
        **({"missing_documents": len(survey.missing)} if survey.missing else {}),
        "dropped_self": written.dropped,
        **({} if dataset.drop_self else {"kept_self": self_hits(written.run)}),
    }


def scoring_facts(task: Task) -> dict[str, Any]:
    """Return the entries of a result's environment that describe the dataset and judgements it was scored with."""
    return {
        "dataset_source": task.dataset.source,
        "dataset_verified": task.verified,
        results.QRELS_CHECKSUM: identity.qrels_checksum(task.dataset.qrels),
    }


def group_means(task: Task, scored: Scores) -> dict[str, dict[str, float]]:
    """Return each metric's mean over each of the dataset's query groups, by group."""
    return {name: per_query_file.group_means(scored.per_query, ids) for name, ids in task.dataset.query_groups.items()}


def accepted_contradictions(config: RunConfig, cell: Cell) -> tuple[str, ...]:
    """Return the contradictions between config and `artifact.metadata` that model.verify=false accepts."""
    if not isinstance(config.model, EncoderConfig) or cell.checkpoint is None or cell.dim is None:
        return ()
    found = metadata.differences(config.model, cell.checkpoint, cell.dim).contradictions
    return tuple(f"{metadata.settings_file(cell.checkpoint)} has {clause}" for clause in found)
