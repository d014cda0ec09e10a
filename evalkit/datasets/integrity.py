"""Counts of irregularities in a dataset: duplicate and empty texts, judgements without documents, shared ids."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np
import xxhash

from evalkit.datasets import judged_ids
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Document

_EXAMPLES: Final = 3
"""Most ids that are named per count."""


@dataclass(frozen=True, kw_only=True)
class Integrity:
    """Counts of irregularities in a dataset. None is an error by itself; the examples are the first ones found."""

    documents: int
    duplicates: int
    """Documents whose title and text are identical to an earlier document's."""
    duplicate_examples: tuple[str, ...]
    empty_documents: int
    """Documents without title and text."""
    missing_documents: int
    """Judged documents missing from the corpus."""
    queries: int
    unjudged_queries: int
    """Queries of the source without a judgement in this split."""
    irrelevant_queries: int
    """Judged queries without a document of a grade above zero; every system scores 0 on them."""
    shared_ids: int
    """Ids that belong to both a query and a document."""
    shared_examples: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the report, one line per count."""
        return [
            f"documents                         {self.documents:,}",
            f"texts that occurred before        {self.duplicates:,}{_shown(self.duplicate_examples)}",
            f"documents without any text        {self.empty_documents:,}",
            f"judged documents not in corpus    {self.missing_documents:,}",
            f"judged queries                    {self.queries:,}",
            f"queries without judgements        {self.unjudged_queries:,}",
            f"queries with no relevant document {self.irrelevant_queries:,}",
            f"ids of both query and document    {self.shared_ids:,}{_shown(self.shared_examples)}",
        ]


def integrity(dataset: Dataset) -> Integrity:
    """Read the whole corpus once and count irregularities, in eight bytes of memory per document plus the judged ids.

    Two texts count as identical if their 64-bit XXH3 hashes are equal. With ten million texts, the probability of a
    false match is 1 in 400,000.
    """
    query_ids = {query.id for query in dataset.queries}
    missing = set(judged_ids(dataset))
    hashes: array[int] = array("Q")
    shared: list[str] = []
    empty = 0
    for document in dataset.corpus.documents():
        text = document.joined()
        hashes.append(xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass")))
        empty += not text
        missing.discard(document.id)
        if document.id in query_ids:
            shared.append(document.id)
    values = np.frombuffer(hashes, dtype=np.uint64)
    _, firsts, counts = np.unique(values, return_index=True, return_counts=True)
    repeated = np.ones(len(values), dtype=np.bool_)
    repeated[firsts] = False
    examples = [
        next(document.id for document in dataset.corpus.documents(place, place + 1))
        for place in np.flatnonzero(repeated)[:_EXAMPLES].tolist()
    ]
    return Integrity(
        documents=len(values),
        duplicates=int((counts - 1).sum()),
        duplicate_examples=tuple(examples),
        empty_documents=empty,
        missing_documents=len(missing),
        queries=len(dataset.queries),
        unjudged_queries=dataset.unjudged_queries,
        irrelevant_queries=sum(max(judged.values()) <= 0 for judged in dataset.qrels.values()),
        shared_ids=len(shared),
        shared_examples=tuple(shared[:_EXAMPLES]),
    )


def agree(one: Dataset, other: Dataset) -> bool:
    """Compare two sources of a dataset; return whether their documents are in the same order.

    Another order is not a difference in content, although it changes the corpus's checksum and so the run id. Comparing
    sources in different orders takes sixteen bytes of memory per document.

    Raises:
        DatasetError: A document, query or judgement differs; the message names the first one.

    """
    pairs = zip_longest(one.corpus.documents(), other.corpus.documents())
    same_order = all(left == right for left, right in pairs)
    if not same_order and (difference := _difference(one, other)):
        raise _disagreement(one, other, difference)
    if set(one.queries) != set(other.queries):
        odd = min(set(one.queries) ^ set(other.queries))
        raise _disagreement(one, other, f"query {odd.id!r} with text {_cut(odd.text)} in one of them only")
    for query_id, judged in one.qrels.items():
        theirs = other.qrels.get(query_id, {})
        for document_id in sorted(judged.keys() | theirs.keys()):
            if judged.get(document_id) != theirs.get(document_id):
                got = f"relevance {judged.get(document_id)} and {theirs.get(document_id)}"
                raise _disagreement(one, other, f"query {query_id!r}, document {document_id!r}: {got}")
    return same_order


def _difference(one: Dataset, other: Dataset) -> str | None:
    """Describe the first document that only one source has, in any order; None if the sources have the same documents.

    Documents are compared by 64-bit hashes, as in `integrity`.
    """
    ours, theirs = (np.fromiter(map(_hash, each.corpus.documents()), dtype=np.uint64) for each in (one, other))
    if np.array_equal(np.sort(ours), np.sort(theirs)):
        return None
    for number in np.flatnonzero(~np.isin(ours, theirs))[:1].tolist():
        document = next(one.corpus.documents(number, number + 1))
        same_id = next((each for each in other.corpus.documents() if each.id == document.id), None)
        return f"{_numbered(number, document)}: {_differing_field(document, same_id)}"
    for number in np.flatnonzero(~np.isin(theirs, ours))[:1].tolist():
        document = next(other.corpus.documents(number, number + 1))
        return f"{_numbered(number, document)}: {_differing_field(None, document)}"
    return f"{len(ours):,} and {len(theirs):,} documents, some of them more than once"


def _hash(document: Document) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(document).encode(errors="surrogatepass"))


def _numbered(number: int, document: Document) -> str:
    return f"document number {number + 1} ({document.id!r})"


def _differing_field(left: Document | None, right: Document | None) -> str:
    """Quote the first field in which two documents with the same id differ, or the id if only one source has it."""
    part = next((name for name in Document._fields if getattr(left, name, None) != getattr(right, name, None)), "id")
    return " and ".join(f"{part} {_cut(getattr(each, part, 'of no document'))}" for each in (left, right))


def _disagreement(one: Dataset, other: Dataset, got: str) -> DatasetError:
    sources = f"{one.source} and {other.source} disagree"
    remedy = "get both again, or choose one with dataset.sources"
    return DatasetError(f"dataset {one.name}: {sources}; got {got}, wanted the same from both; {remedy}")


def _cut(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}…"


def _shown(examples: tuple[str, ...]) -> str:
    return f" ({', '.join(examples)}{', …' if len(examples) == _EXAMPLES else ''})" if examples else ""
