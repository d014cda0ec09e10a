"""The files of a finished cell, except scores.json, which is written last and marks the cell as finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evalkit.ranking import drop_self, self_hits
from evalkit.run.cells import Task
from evalkit.scoring import metrics
from evalkit.storage import results, trec
from evalkit.storage.paths import make_folder, run_dir, write_atomic
from evalkit.types import Hit, Run, Scores


class Written(NamedTuple):
    """The run that was written, under the dataset's self-id rule, and its scores."""

    run: Run
    dropped: int
    """Hits that were left out because their document is the query itself."""
    values: Scores


def write(task: Task, run_id: str, hits: Mapping[str, Sequence[Hit]]) -> Written:
    """Apply the dataset's self-id rule to hits by query id; write run file, judgements, per-query values and config.

    The hits that the rule drops are kept in a separate file, so that `evalkit replay` can put them back. An earlier
    scores.json is removed first, because it describes the files that are replaced.
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
    values = metrics.score(kept, dataset.qrels, config.metrics)
    write_atomic(folder / results.PER_QUERY, results.per_query_table(values.per_query, config.metrics).encode())
    results.write_config(config, folder)
    return Written(kept, dropped, values)


def counts(task: Task, written: Written) -> dict[str, int]:
    """Return the numbers of documents, queries and judgements of a cell, and of hits whose id is the query's own."""
    survey, dataset = task.survey, task.dataset
    return {
        "documents": survey.documents,
        "empty_documents": survey.empty_documents,
        "queries": len(dataset.queries),
        "judgements": sum(len(judged) for judged in dataset.qrels.values()),
        **({"missing_documents": len(survey.missing)} if survey.missing else {}),
        "dropped_self": written.dropped,
        **({} if dataset.drop_self else {"kept_self": self_hits(written.run)}),
    }
