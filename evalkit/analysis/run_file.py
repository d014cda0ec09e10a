"""Score a TREC run file of any system under a dataset's rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evalkit import datasets
from evalkit.config.settings import RunConfig
from evalkit.ranking import drop_self, self_hits
from evalkit.scoring import metrics
from evalkit.storage import results, trec
from evalkit.types import Dataset


class ScoredFile(NamedTuple):
    """The means of a run file, and what to know about them: missing queries, self-hits, unmatched ids, deviations."""

    dataset: Dataset
    means: Mapping[str, float]
    queries: int
    """Judged queries, which the means are over; some may have no text, if the dataset deviates."""
    missing: int
    """Those that the run lacks; they score 0."""
    self_hits: int
    """Hits of the file whose document id is the query's id."""
    dropped: int | None
    """How many of these were dropped; None if the dataset's rule keeps them."""
    warning: str | None
    """A likely reason why the run's document ids do not match the judgements, if they do not."""
    deviations: tuple[str, ...]
    """Deviations of queries and judgements from the published dataset, accepted or from the one of this name."""


def score_file(path: Path, config: RunConfig) -> ScoredFile:
    """Score a run file by the config's dataset and metrics; no corpus is read.

    Raises ScoreError if the file cannot be read, or if it contains no query that the dataset judges, and DatasetError
    if the dataset cannot be obtained.
    """
    dataset = datasets.load(config.dataset, with_corpus=False)
    run = results.read_run(path)
    missing = trec.unanswered(path, run, dataset, dataset.qrels) if run else len(dataset.qrels)
    own, dropped = self_hits(run), None
    if dataset.drop_self:
        run, dropped = drop_self(run, depth=max((len(hits) for hits in run.values()), default=0))
    warning = trec.unmatched(run, dataset.qrels)
    means = metrics.score(run, dataset.qrels, config.metrics).means
    deviations = datasets.deviations(dataset, None, config.dataset)
    return ScoredFile(dataset, means, len(dataset.qrels), missing, own, dropped, warning, deviations)
