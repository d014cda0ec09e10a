"""The first hits of a run, with judgements and texts, limited to an amount that the page can contain."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.config.settings import DemoSize
from evalkit.errors import DatasetError, ScoreError
from evalkit.storage import paths, results, trec
from evalkit.storage.per_query_file import QueryTable
from evalkit.storage.results import CellScores

CUTOFF = 10
"""Hits per query."""
MOST_QUERIES = 2000
"""No hits of a run with more queries are shown: reading them takes minutes and would add megabytes to the page."""
SHOWN_QUERIES = 300
"""Queries per run whose hits are shown: those with the lowest values of the main metric."""


class QueryHits(NamedTuple):
    """One query's first hits, the best one first."""

    documents: tuple[str, ...]
    grades: tuple[int | None, ...]
    """The grade of each hit, None without a judgement; empty if the judgements are not stored."""
    relevant: int | None
    """The number of documents judged relevant; None if the judgements are not stored."""
    first: int
    """The rank of the first relevant hit; 0 if none was retrieved."""


def read(results_dir: Path, cell: CellScores, table: QueryTable) -> dict[str, QueryHits]:
    """Return the first hits of a run's lowest-scoring queries, in the table's order.

    Empty for a run with too many queries, or if its files cannot be read: damaged files are reported elsewhere.
    """
    if len(table.queries) > MOST_QUERIES:
        return {}
    folder = paths.run_dir(results_dir, cell.run_id)
    try:
        lines = gzip.decompress((folder / results.RUN).read_bytes()).decode().splitlines()
        qrels = trec.read_qrels(folder / results.QRELS) if (folder / results.QRELS).is_file() else None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ScoreError):
        return {}
    values = table.column(cell.main_metric)
    lowest = sorted(range(len(table.queries)), key=lambda place: (values[place], place))[:SHOWN_QUERIES]
    ranked: dict[str, list[str]] = {table.queries[place]: [] for place in sorted(lowest)}
    for line in lines:
        query, _, document, *_ = line.split(maxsplit=3)
        if (known := ranked.get(query)) is not None:
            known.append(document)
    return {
        query: _query_hits(documents, None if qrels is None else qrels.get(query, {}))
        for query, documents in ranked.items()
    }


def texts(cell: CellScores, saved: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the queries' texts of a cell on the demo; those of other datasets may not be published.

    The demo's texts are generated again. Empty if their checksum differs from the one that the cell records.
    """
    try:
        dataset = (saved or {})["dataset"]
        if tuple(dataset["sources"]) != ("demo",):
            return {}
        size = DemoSize(**dataset["demo"])
    except (KeyError, TypeError):
        return {}
    from evalkit.datasets.demo import load_demo
    from evalkit.run.identity import texts_checksum

    try:
        queries = load_demo(size).queries
    except DatasetError:
        return {}
    known = texts_checksum(queries) == cell.protocol.get("queries")
    return {query.id: query.text for query in queries} if known else {}


def _query_hits(documents: list[str], grades: dict[str, int] | None) -> QueryHits:
    shown = tuple(documents[:CUTOFF])
    if grades is None:
        return QueryHits(shown, (), None, 0)
    first = next((rank for rank, document in enumerate(documents, start=1) if grades.get(document, 0) > 0), 0)
    return QueryHits(shown, tuple(map(grades.get, shown)), sum(grade > 0 for grade in grades.values()), first)
