"""Re-ranking: a model that reads query and document together scores the best documents of a run again."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.datasets.survey import ContentHash
from evalkit.errors import ScoreError
from evalkit.models.reranker import Reranker
from evalkit.ranking import rank_hits
from evalkit.run.batching import batches
from evalkit.run.progress import Advance
from evalkit.types import Dataset, Hit, Run


def rerank(  # noqa: PLR0913 (keyword-only after the first three)
    run: Run,
    dataset: Dataset,
    reranker: Reranker,
    *,
    depth: int,
    batch_tokens: int,
    advance: Advance,
    corpus: str | None = None,
) -> dict[str, list[Hit]]:
    """Return each judged query's first `depth` hits in the re-ranker's order; hits beyond `depth` are left out.

    The corpus is read once, and only the documents of the run are kept in memory. `corpus` is the checksum of the
    corpus that the run was made with, if known. Raises ScoreError if the corpus has another checksum or lacks a
    document of the run.
    """
    asked = [query for query in dataset.queries if query.id in run]
    wanted = {hit.document_id for query in asked for hit in run[query.id][:depth]}
    content = ContentHash()
    texts: dict[str, str] = {}
    for document in dataset.corpus.documents():
        content.add(document)
        if document.id in wanted:
            texts[document.id] = document.joined()
    if corpus is not None and content.hexdigest() != corpus:
        msg = f"{dataset.name}: got a corpus of checksum {content.hexdigest()} from {dataset.source}, wanted {corpus}"
        raise ScoreError(f"{msg}, over which the run was made; give the same copy (dataset.path, dataset.sources)")
    if absent := sorted(wanted - set(texts)):
        msg = f"{len(absent)} documents of the run are not in {dataset.name}, {absent[0]!r} first; wanted its own run"
        raise ScoreError(msg)
    reranked = {}
    for query in asked:
        ids = [hit.document_id for hit in run[query.id][:depth]]
        scores = _scores(reranker, query.text, [texts[name] for name in ids], batch_tokens=batch_tokens)
        reranked[query.id] = rank_hits(Hit(name, score) for name, score in zip(ids, scores, strict=True))
        advance(len(ids), 0)
    return reranked


def _scores(reranker: Reranker, query: str, documents: Sequence[str], *, batch_tokens: int) -> list[float]:
    pairs = reranker.pairs(query, documents)
    scores = [0.0] * len(pairs)
    for batch in batches([len(pair) for pair in pairs], batch_tokens=batch_tokens):
        for place, score in zip(batch, reranker.scores([pairs[place] for place in batch]), strict=True):
            scores[place] = score
    return scores
