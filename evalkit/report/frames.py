"""Results as pandas frames, for the exported tables and for `evalkit.api`.

pandas is imported only when a frame is built, so that other reports start without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evalkit.analysis.compare import Comparison
from evalkit.report.card import Leaderboard
from evalkit.report.places import shown
from evalkit.storage.per_query_file import QueryTable
from evalkit.storage.results import distinctions
from evalkit.types import Qrels, Run

if TYPE_CHECKING:
    import pandas as pd


def texts(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Return a table of text: columns may have the same name, and nothing is parsed as a number."""
    import pandas as pd

    return pd.DataFrame([list(row) for row in rows], columns=list(header), dtype=object)


def ranking(run: Run) -> pd.DataFrame:
    """Return a run with one row per hit, each query's best hit first: query, document, rank (from 1), score."""
    import pandas as pd

    rows = [
        (query, hit.document_id, rank, hit.score) for query, hits in run.items() for rank, hit in enumerate(hits, 1)
    ]
    return pd.DataFrame(rows, columns=["query", "document", "rank", "score"])


def per_query(table: QueryTable) -> pd.DataFrame:
    """Return a cell's values by query: one row per query, one column per metric."""
    import pandas as pd

    index = pd.Index(table.queries, name="query", dtype=object)
    return pd.DataFrame(table.value_QM, index=index, columns=list(table.metrics))


def judgements(qrels: Qrels) -> pd.DataFrame:
    """Return one row per judgement: query, document, grade."""
    import pandas as pd

    rows = [(query, document, grade) for query, grades in qrels.items() for document, grade in grades.items()]
    return pd.DataFrame(rows, columns=["query", "document", "grade"])


def leaderboard(board: Leaderboard) -> pd.DataFrame:
    """Return published and measured means by system and collection; missing values are NaN.

    Rows are (system, dim), dim 0 for a system without vectors; columns are (collection, metric, datasets, which).
    """
    import pandas as pd

    columns = pd.MultiIndex.from_tuples(
        [
            (collection.title, collection.metric, len(collection.datasets), which)
            for collection in board.collections
            for which in ("published", "measured")
        ],
        names=["collection", "metric", "datasets", "mean"],
    )
    index = pd.MultiIndex.from_tuples([(one.name, one.dim or 0) for one in board.systems], names=["system", "dim"])
    values = [
        [
            value
            for collection in board.collections
            for value in board.standings[system, collection.name][:2]  # published, measured
        ]
        for system in board.systems
    ]
    return pd.DataFrame(values, index=index, columns=columns, dtype=float)


def comparisons(found: Sequence[Comparison]) -> pd.DataFrame:
    """Return paired differences with their sampling error, one row per comparison, as printed by `evalkit compare`."""
    import pandas as pd

    suffixes = distinctions(cell for one in found for cell in (one.base, one.other))
    rows = [
        {
            "dataset": shown(one.base),
            "metric": one.metric,
            **{
                name: (cell.model if cell.dim is None else f"{cell.model}-{cell.dim}") + suffixes[cell.run_id]
                for name, cell in (("base", one.base), ("other", one.other))
            },
            "base_value": one.base.metrics[one.metric],
            "other_value": one.other.metrics[one.metric],
            "delta": one.delta,
            "low": one.interval[0],
            "high": one.interval[1],
            "p": one.p,
            "p_holm": one.p_holm,
            "queries": one.queries,
            "wins": one.wins,
            "losses": one.losses,
        }
        for one in found
    ]
    return pd.DataFrame(rows)
