"""The per_query.tsv of a finished cell: the value of every metric for every query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalkit.errors import ScoreError
from evalkit.storage import results


class QueryTable(NamedTuple):
    """A cell's values by query. Shapes: Q queries, M metrics."""

    metrics: tuple[str, ...]
    queries: tuple[str, ...]
    value_QM: np.ndarray

    def column(self, metric: str) -> np.ndarray:
        """Return one metric's values in the queries' order [Q]."""
        return self.value_QM[:, self.metrics.index(metric)]


def text(per_query: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> str:
    """Return each query's metric values as tab-separated text, a row per query in the order given."""
    rows = ["\t".join(("query_id", *metrics))]
    rows += ["\t".join((query, *(repr(values[metric]) for metric in metrics))) for query, values in per_query.items()]
    return "\n".join(rows) + "\n"


def read(path: Path) -> QueryTable:
    """Read a per_query.tsv. Raises ScoreError for a damaged file.

    Arrow parses it in one block, because a report of the whole card reads 1.5 million lines of numbers.
    """
    from pyarrow import BufferReader, csv

    try:
        data = path.read_bytes()
        _, *names = data.partition(b"\n")[0].decode().rstrip("\r").split("\t")
        table = csv.read_csv(
            BufferReader(data),
            read_options=csv.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types={"query_id": "string", **dict.fromkeys(names, "float64")}, null_values=[]
            ),
        )
        # By DLPack: pyarrow's own to_numpy imports pandas, which takes as long as the rest of a report.
        value_QM = np.stack([np.from_dlpack(table[name].combine_chunks()) for name in names], axis=1)
        _, offsets, texts = table["query_id"].combine_chunks().buffers()
        queries = _query_ids(table.num_rows, offsets.to_pybytes(), texts.to_pybytes())
        if not queries:
            raise ValueError("no query")
        usable_QM = (value_QM >= 0) & (value_QM <= 1)  # false for NaN too
        if not usable_QM.all():
            place = int(np.flatnonzero(~usable_QM.all(axis=1))[0])
            msg = f"{value_QM[place].tolist()} on line {place + 2}, wanted numbers from 0 to 1"
            raise ValueError(msg)
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are subclasses of ValueError and KeyError
        msg = f"{path}: not a complete table of queries ({error}); delete the cell's scores.json and run the cell again"
        raise ScoreError(msg) from error
    return QueryTable(tuple(names), queries, value_QM)


@lru_cache(maxsize=64)  # more than the card has datasets
def _query_ids(count: int, offsets: bytes, texts: bytes) -> tuple[str, ...]:
    """Return the query ids in Arrow's two buffers; cells with the same queries share one tuple."""
    import pyarrow as pa

    return tuple(pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(texts)).to_pylist())


def disagreement(scores: results.CellScores, queries: QueryTable) -> str | None:
    """Describe the first metric that is not the mean of its values by query; None if all are."""
    for metric in queries.metrics:
        mean, recorded = float(queries.column(metric).mean()), scores.metrics.get(metric)
        if recorded is None or not math.isclose(mean, recorded, rel_tol=0, abs_tol=1e-9):
            return f"got a mean {metric} of {mean}, wanted the {recorded} of {results.SCORES}"
    return None


def group_means(per_query: Mapping[str, Mapping[str, float]], queries: Sequence[str]) -> dict[str, float]:
    """Return the mean of every metric over some of the queries."""
    names = list(per_query[queries[0]])
    return {name: math.fsum(per_query[query][name] for query in queries) / len(queries) for name in names}
