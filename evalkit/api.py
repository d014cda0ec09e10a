"""evalkit from Python: the verbs of the command line as functions, their tables as pandas frames.

Every function accepts the words of its verb, and `results_dir` if the verb reads finished cells: by default
evalkit-results, or EVALKIT_RESULTS. Results are the files that the command line writes, so both see the same cells, and
a finished cell is not computed again. Calls of `run` in several threads run one after the other.

    run(*words)           finished cells (`evalkit run`); several values per word are a sweep
    load(run)             a finished cell by its run id, the beginning of one, or its system: scores and frames
    leaderboard()         published and measured means by system and collection (`evalkit report`)
    compare(*runs)        paired differences with intervals and p-values (`evalkit compare`), the base first

Errors are subclasses of `evalkit.errors.EvalkitError`, whose text says what was got, what was wanted and what to do.

>>> import tempfile
>>> import evalkit
>>> folder = tempfile.mkdtemp()
>>> where = (f"results_dir={folder}", f"cache_dir={folder}/cache")
>>> cells = evalkit.run("model=demo", "dim=[128,64]", *where)
>>> [(cell.model, cell.dim, cell.main_metric) for cell in cells]
[('demo', 128, 'ndcg@10'), ('demo', 64, 'ndcg@10')]

A finished cell as frames. The mean of its values by query is its score:

>>> found = evalkit.load(cells[0].run_id, results_dir=folder)
>>> list(found.ranking.columns), list(found.qrels.columns)
(['query', 'document', 'rank', 'score'], ['query', 'document', 'grade'])
>>> bool(abs(found.per_query["ndcg@10"].mean() - found.cell.metrics["ndcg@10"]) < 1e-9)
True

The loss from half the dim, paired by query:

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

from evalkit.run.from_python import run

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.storage.results import CellScores

__all__ = ["Loaded", "compare", "leaderboard", "load", "run"]


@dataclass(frozen=True)
class Loaded:
    """A finished cell and its files as frames."""

    cell: CellScores
    """Its scores, protocol and environment."""
    ranking: pd.DataFrame
    """A row per hit: query, document, rank from 1, score."""
    per_query: pd.DataFrame
    """A row per query, a column per metric."""
    qrels: pd.DataFrame
    """A row per judgement: query, document, grade. If the cell has no copy of them, they are read from the dataset."""


def _folder(results_dir: str | Path | None) -> Path:
    """Return the given results folder, else the default one."""
    from evalkit.storage.paths import default_results_dir

    return default_results_dir() if results_dir is None else Path(results_dir)


def load(run: str, *, results_dir: str | Path | None = None, dataset_path: str | Path | None = None) -> Loaded:
    """Return a finished cell by its run id, by the beginning of one, or by its system if only one cell has it.

    `dataset_path` is the dataset's new place, needed if its judgements are not in the results and it has moved. Raises
    EvalkitError if no cell or several cells fit, or if one of its files is missing, damaged or edited.
    """
    from evalkit.analysis import compare, replay
    from evalkit.report import frames
    from evalkit.storage import paths, per_query_file, results

    folder = _folder(results_dir)
    cell = compare.one(results.readable(folder)[0], run)
    material = replay.load(folder, cell, dataset_path=None if dataset_path is None else Path(dataset_path))
    results.require_unedited(folder, cell, results.PER_QUERY)
    run_dir = paths.run_dir(folder, cell.run_id)
    return Loaded(
        cell,
        frames.ranking(results.read_run(run_dir / results.RUN)),
        frames.per_query(per_query_file.read(run_dir / results.PER_QUERY)),
        frames.judgements(material.qrels),
    )


def leaderboard(*, results_dir: str | Path | None = None) -> pd.DataFrame:
    """Return the published and measured means of every system, those of the card and the measured ones.

    Rows are (system, dim), dim 0 for a system without vectors; columns are (collection, metric, datasets, mean). Cells
    that cannot be read are left out; `evalkit report` names them. Raises ScoreError for invalid waivers.
    """
    from evalkit.report import build, frames

    return frames.leaderboard(build.leaderboard(_folder(results_dir)))


def compare(*runs: str, results_dir: str | Path | None = None, metric: str | None = None) -> pd.DataFrame:
    """Return paired differences of each cell to the first one of its dataset, by `metric` or the main metric.

    Cells are named as for `load`, or by a dataset; without names all are compared. `p` is that of a paired t-test,
    `p_holm` is corrected over all rows, `low` and `high` are the 95 % interval of a paired bootstrap over queries.
    Raises EvalkitError if no cell fits a name.
    """
    from evalkit.analysis import compare as pairs
    from evalkit.report import frames
    from evalkit.storage import results

    folder = _folder(results_dir)
    chosen = pairs.choose(results.readable(folder)[0], runs)
    return frames.comparisons(pairs.compare(chosen, folder, metric=metric))
