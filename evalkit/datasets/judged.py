"""Build a dataset from the parts that every reader of files has, and what holds for the ids of all of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from evalkit.config.settings import DatasetConfig
from evalkit.errors import DatasetError
from evalkit.types import Corpus, Dataset, Qrels, Query

LONGEST_ID: Final = 4096
"""Most bytes of a document's or query's id, more than in any collection: every line of a run file holds two ids."""


def judged(config: DatasetConfig, corpus: Corpus, known: Sequence[Query], qrels: Qrels, *, source: str) -> Dataset:
    """Return a dataset whose queries are those of `known` with a judgement; the others are only counted.

    Raises DatasetError if a query's id has more than LONGEST_ID bytes.
    """
    for number, query in enumerate(known, 1):
        if (size := len(query.id.encode(errors="surrogatepass"))) > LONGEST_ID:
            got = f"an id of {size:,} bytes for query number {number} from {source}, wanted {LONGEST_ID:,} at most"
            raise DatasetError(f"dataset {config.name}: got {got}; give the queries shorter ids")
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


def other_spelling(wanted: Iterable[str], ids: Iterable[str]) -> tuple[str, str] | None:
    """Return the first id that differs from a wanted one only by Unicode normalisation, and the wanted one.

    >>> other_spelling(["caf\u00e9"], ["tea", "cafe\u0301"]) == ("cafe\u0301", "caf\u00e9")
    True
    """
    by_form = {unicodedata.normalize("NFC", one): one for one in wanted if not one.isascii()}
    if not by_form:
        return None
    return next(((one, by_form[form]) for one in ids if (form := unicodedata.normalize("NFC", one)) in by_form), None)
