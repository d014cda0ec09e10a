"""The values that every room passes to the next: documents, queries, judgements, runs and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id → document id → relevance grade; zero grades are kept."""


class Document(NamedTuple):
    """One passage of a corpus; `title` is empty where the collection has none."""

    id: str
    title: str
    text: str

    def joined(self) -> str:
        """Title and text joined by one space and stripped, as BEIR's retrievers feed it to a model.

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
"""What a system retrieved: query id → hits, best first under evalkit's tie rule."""


class Corpus(Protocol):
    """A collection that can be read again from any position without holding it in memory."""

    def fingerprint(self) -> str:
        """Return a cheap string that changes whenever the documents may have changed."""
        ...

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents `start` (inclusive) to `stop` (exclusive; None: the end) in corpus order."""
        ...

    def where(self, index: int) -> str:
        """Say where document `index` stands, for messages; a reader of files names the file and the line."""
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
    """Drop a retrieved document whose id equals the query's id (BEIR's rule for sets whose ids overlap)."""
    main_metric: str
    query_groups: Mapping[str, tuple[str, ...]]
    """Named subsets of query ids that the table reports separately (the demo: same-language and cross-lingual)."""
    source: str = "unknown"
    """The source, including the commit or package version; a result records it."""
    unjudged_queries: int = 0
    """Queries of the source without a judgement in this split; they are in no mean."""


class Scores(NamedTuple):
    """Metric values of one run: means over all judged queries, and each query's own."""

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
