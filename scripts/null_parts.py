"""Parts of a run that compute nothing: invented texts and queries, a model that returns at once, no kernel.

What remains is the host's work, for which a GPU would wait. Vectors and hits are random; scores have no meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.random_encoder import token_table
from rich.console import Console
from torch import Tensor

from evalkit.config.compose import compose
from evalkit.datasets.survey import ContentHash, ShardRange, Survey
from evalkit.models.encoder import Encoder
from evalkit.models.tokens import TokenTable
from evalkit.run.cells import Cell, Task
from evalkit.types import Dataset, Document, Query

QUERY_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Invented:
    """A corpus of ids without texts."""

    count: int

    def fingerprint(self) -> str:
        """Return a name with the number of documents."""
        return f"invented {self.count}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents without text."""
        for place in range(start, self.count if stop is None else stop):
            yield Document(f"d{place:09d}", "", "")

    def where(self, index: int) -> str:
        """Return a document's number."""
        return f"invented document {index}"


def content_of(corpus: Invented, start: int, stop: int) -> str:
    """Return the checksum that the run compares a shard's documents with."""
    content = ContentHash()
    for document in corpus.documents(start, stop):
        content.add(document)
    return content.hexdigest()


def task_of(
    folder: Path,
    *,
    device: torch.device,
    lengths_by_shard: Sequence[np.ndarray],
    queries: int,
    words: Sequence[str] = (),
) -> Task:
    """Return a run's task over invented shards; `lengths_by_shard` has the token counts of each shard's documents."""
    counts = [len(lengths_N) for lengths_N in lengths_by_shard]
    ends = np.cumsum(counts)
    corpus = Invented(int(ends[-1]))
    shards = tuple(
        ShardRange(
            place, int(end - count), int(end), f"invented-{place}", content_of(corpus, int(end - count), int(end))
        )
        for place, (count, end) in enumerate(zip(counts, ends, strict=True))
    )
    places = [f"results_dir={folder / 'results'}", f"cache_dir={folder / 'cache'}"]
    config = compose(["model=demo", *places, *words])
    dataset = Dataset(
        name="invented",
        split="test",
        language="en",
        corpus=corpus,
        queries=tuple(Query(f"q{place}", "") for place in range(queries)),
        qrels={},
        drop_self=False,
        main_metric="ndcg@10",
        query_groups={},
        source="invented",
    )
    return Task(config, dataset, Survey(int(ends[-1]), "invented", shards, 0, ()), (), device, Console(quiet=True))


def cells_of(dims: Sequence[int]) -> Mapping[int, Cell]:
    """Return a cell for each dim."""
    return {
        dim: Cell(dim=dim, run_id=f"c{dim}", protocol={}, checkpoint=None, store_key=f"s{dim}", search_key=f"k{dim}")
        for dim in dims
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTexts(Encoder):
    """An encoder that draws random token ids instead of tokenising, so that tokenising takes almost no time."""

    lengths_by_count: Mapping[int, np.ndarray]
    """The token counts [N] of a shard's texts, by N."""

    def tokenize_documents(self, texts: Sequence[str]) -> TokenTable:
        """Return random token ids with the lengths of the shard that has this many texts."""
        table: TokenTable = token_table(self.lengths_by_count[len(texts)], vocabulary=self.vocabulary.size)
        return table

    def tokenize_queries(self, texts: Sequence[str]) -> TokenTable:
        """Return random token ids, QUERY_TOKENS for each query."""
        lengths_Q = np.full(len(texts), QUERY_TOKENS)
        table: TokenTable = token_table(lengths_Q, vocabulary=self.vocabulary.size)
        return table


def random_texts(
    encoder: Encoder,
    lengths_by_shard: Sequence[np.ndarray],
    *,
    kind: type[RandomTexts] = RandomTexts,
    **more: Any,
) -> RandomTexts:
    """Return an encoder like the given one that draws random token ids; `more` has the fields of a subclass."""
    known = {one.name: getattr(encoder, one.name) for one in dataclasses.fields(Encoder)}
    by_count = {len(lengths_N): lengths_N for lengths_N in lengths_by_shard}
    return kind(**known, lengths_by_count=by_count, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NullModel(RandomTexts):
    """An encoder that returns vectors from a pool."""

    pool: Mapping[int, Tensor]

    def vectors(self, batch: Any) -> dict[int, tuple[Tensor, Tensor]]:
        """Return one vector of the pool for each kept token id of the batch; nothing is computed."""
        return {dim: (self.pool[dim][: len(batch.kept_V)], batch.counts_B) for dim in self.heads}


@contextmanager
def no_kernel(*, hits: int) -> Iterator[None]:
    """Make searches nominate `hits` random documents per query with random scores; no products are computed."""
    from evalkit.maxsim import choice
    from evalkit.run import search

    generator = torch.Generator().manual_seed(0)

    def bind(_choice: str, documents: Any, **_: Any) -> choice.Kernel:
        count = len(documents.offsets_N) - 1

        def scores(queries: Any) -> Tensor:
            return torch.empty((len(queries.offsets_N) - 1, count), device="meta")

        def error_bound(queries: Any) -> Tensor:
            return torch.zeros(len(queries.offsets_N) - 1, dtype=torch.float64)

        def exact_scores(_queries: Any, query_H: Tensor, _document_H: Tensor) -> Tensor:
            return torch.rand(len(query_H), generator=generator) * QUERY_TOKENS

        return choice.Kernel("packed", scores, error_bound, exact_scores)

    def nominate(score_QN: Tensor, _bound_Q: Tensor, _floor_Q: Tensor, _depth: int) -> tuple[Tensor, Tensor]:
        queries, documents = score_QN.shape
        many = min(hits, documents)
        query_H = torch.arange(queries).repeat_interleave(many)
        step_Q = torch.randint(0, documents, (queries, 1), generator=generator)
        return query_H, ((step_Q + torch.arange(many) * (documents // many)) % documents).flatten()

    before = choice.bind, search._nominate  # noqa: SLF001 (nothing public replaces the nomination)
    choice.bind, search._nominate = bind, nominate  # type: ignore[assignment]  # noqa: SLF001 (as above)
    try:
        yield
    finally:
        choice.bind, search._nominate = before  # noqa: SLF001 (as above)
