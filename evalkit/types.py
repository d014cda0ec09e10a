"""The values that modules exchange: documents, queries, judgements, runs and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id → document id → relevance grade, including zero grades."""


class Document(NamedTuple):
    """One passage of a corpus; `title` is empty if the collection has none."""

    id: str
    title: str
    text: str

    def joined(self) -> str:
        """Return title and text, joined by a space and stripped: the input of a model, as in BEIR.

        >>> Document("d", "", " a b ").joined()
        'a b'
        >>> Document("d", "T", "a").joined()
        'T a'
        """
        return f"{self.title} {self.text}".strip()


class Query(NamedTuple):
    """One search request."""

    id: str
    text: str


class Hit(NamedTuple):
    """One retrieved document with the score that the system gave it."""

    document_id: str
    score: float


Run = Mapping[str, list[Hit]]
"""A ranking: query id → hits, the best first under the tie rule of `evalkit.ranking`."""


class Corpus(Protocol):
    """A collection that can be read again from any position without holding it in memory."""

    def fingerprint(self) -> str:
        """Return a cheap string that changes whenever the documents may have changed."""
        ...

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents `start` (inclusive) to `stop` (exclusive; None: the end) in corpus order."""
        ...

    def where(self, index: int) -> str:
        """Return the place of document `index` for messages, for example file and line."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A retrieval task: a corpus, the queries that have judgements, the judgements, and its rules."""

    name: str
    split: str
    language: str
    corpus: Corpus
    queries: tuple[Query, ...]
    qrels: Qrels
    drop_self: bool
    """Whether a retrieved document is dropped if its id is the query's (BEIR's rule for sets whose ids overlap)."""
    main_metric: str
    query_groups: Mapping[str, tuple[str, ...]]
    """Named subsets of query ids that tables report separately (in the demo: same-language and cross-lingual)."""
    source: str = "unknown"
    """The source, including the commit or package version; a result records it."""
    unjudged_queries: int = 0
    """Queries of the source without a judgement in this split; they are in no mean."""


class Scores(NamedTuple):
    """Metric values of one run: means over all judged queries, and each query's own."""

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
