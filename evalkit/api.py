"""evalkit from Python: the verbs of the command line as functions, their tables as pandas frames.

Every function accepts the words of its verb, and `results_dir` if the verb reads finished cells: by default
evalkit-results, or EVALKIT_RESULTS. Results are the files that the command line writes, so both see the same cells, and
a finished cell is not computed again.

    run(*words)           finished cells (`evalkit run`); several values per word are a sweep
    load(run)             one of them, by its id or the beginning of it: its cell, ranking, per_query and qrels
    leaderboard()         published and measured means by system and collection (`evalkit report`)
    compare(*runs)        paired differences with intervals and p-values (`evalkit compare`), the base first

Failures raise `evalkit.errors.EvalkitError`, whose text says what was got and what to do.

>>> import tempfile
>>> import evalkit
>>> folder = tempfile.mkdtemp()
>>> where = (f"results_dir={folder}", f"cache_dir={folder}/cache")
>>> cells = evalkit.run("model=demo", "dim=[128,64]", *where)
>>> [(cell.model, cell.dim, cell.main_metric) for cell in cells]
[('demo', 128, 'ndcg@10'), ('demo', 64, 'ndcg@10')]

A finished run, as frames; the mean of its values by query is its score:

>>> found = evalkit.load(cells[0].run_id, results_dir=folder)
>>> list(found.ranking.columns), list(found.qrels.columns)
(['query', 'document', 'rank', 'score'], ['query', 'document', 'grade'])
>>> bool(abs(found.per_query["ndcg@10"].mean() - found.cell.metrics["ndcg@10"]) < 1e-9)
True

What half the dim costs, paired by query:

>>> evalkit.compare("demo-128", "demo-64", results_dir=folder)[["base", "other", "queries"]].to_dict("records")
[{'base': 'demo-128', 'other': 'demo-64', 'queries': 200}]

Every system with its published and measured means; NaN if there is none:

>>> board = evalkit.leaderboard(results_dir=folder)
>>> float(board.loc[("jina-colbert-v2", 128), ("BEIR", "ndcg@10", 13, "published")])
0.531
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evalkit.run.words import run

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.storage.results import CellScores

__all__ = ["Loaded", "compare", "leaderboard", "load", "run"]


@dataclass(frozen=True)
class Loaded:
    """A finished run and its files as frames."""

    cell: CellScores
    """Its scores, the protocol that they were measured under, and the environment."""
    ranking: pd.DataFrame
    """A row per hit: query, document, rank from 1, score."""
    per_query: pd.DataFrame
    """A row per query, a column per metric."""
    qrels: pd.DataFrame
    """A row per judgement: query, document, grade; of a dataset too large to be copied, read from where it is."""


def _folder(results_dir: str | Path | None) -> Path:
    """Return the results folder that is named, else the one that `run` writes to."""
    from evalkit.storage.paths import default_results_dir

    return default_results_dir() if results_dir is None else Path(results_dir)


def load(run: str, *, results_dir: str | Path | None = None, dataset_path: str | Path | None = None) -> Loaded:
    """Return the finished run of this id, or of this beginning of one, or of a system where that is clear.

    `dataset_path` is where its dataset is now, if the judgements lie there and it moved. Raises EvalkitError when there
    is no such run, more than one, or a file of it is missing, damaged or edited.
    """
    from evalkit.analysis import compare, replay
    from evalkit.report import frames
    from evalkit.storage import paths, results

    folder = _folder(results_dir)
    cell = compare.one(results.readable(folder)[0], run)
    material = replay.load(folder, cell, dataset_path=None if dataset_path is None else Path(dataset_path))
    results.require_unedited(folder, cell, results.PER_QUERY)
    below = paths.run_dir(folder, cell.run_id)
    return Loaded(
        cell,
        frames.ranking(results.read_run(below / results.RUN)),
        frames.per_query(results.read_per_query(below / results.PER_QUERY)),
        frames.judgements(material.qrels),
    )


def leaderboard(*, results_dir: str | Path | None = None) -> pd.DataFrame:
    """Return every system, the card's and the measured ones, with its published and measured means, as a report does.

    Rows are (system, dim), dim 0 for a system without vectors; columns are (collection, metric, datasets, mean). Raises
    ScoreError for waivers that cannot be read; a run that cannot be read is left out, which `evalkit report` names.
    """
    from evalkit.report import build, frames

    return frames.leaderboard(build.leaderboard(_folder(results_dir)))


def compare(*runs: str, results_dir: str | Path | None = None, metric: str | None = None) -> pd.DataFrame:
    """Return paired differences: each run against the first of its dataset, by `metric` or the dataset's main one.

    Runs are named as for `load`, or by a dataset; none means all. p comes from a paired t-test, p_holm is corrected
    over all rows, low and high are the 95 % of a paired bootstrap. Raises EvalkitError when a name fits no run.
    """
    from evalkit.analysis import compare as pairs
    from evalkit.report import frames
    from evalkit.storage import results

    folder = _folder(results_dir)
    chosen = pairs.choose(results.readable(folder)[0], runs)
    return frames.comparisons(pairs.compare(chosen, folder, metric=metric))
