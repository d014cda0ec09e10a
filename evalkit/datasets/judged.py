"""Build a dataset from what every reader of files returns: corpus, queries and judgements."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.config.settings import DatasetConfig
from evalkit.types import Corpus, Dataset, Qrels, Query


def judged(config: DatasetConfig, corpus: Corpus, known: Sequence[Query], qrels: Qrels, *, source: str) -> Dataset:
    """Return a dataset whose queries are those of `known` with a judgement.

    The others are counted in `unjudged_queries`. `source` says where the data comes from, for example
    `hub OWNER/NAME@COMMIT`.
    """
    queries = tuple(query for query in known if query.id in qrels)
    return Dataset(
        name=config.name,
        split=config.split,
        language=config.language,
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        drop_self=config.drop_self,
        main_metric=config.main_metric,
        query_groups={},
        source=source,
        unjudged_queries=len(known) - len(queries),
    )
