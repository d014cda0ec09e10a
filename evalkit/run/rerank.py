"""Re-ranking: a model that reads query and document together scores the best documents of a run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from evalkit import datasets
from evalkit.config.settings import RunConfig
from evalkit.errors import ConfigError, ScoreError
from evalkit.models.reranker import Reranker, load_reranker
from evalkit.ranking import drop_self, rank_hits
from evalkit.run import environment
from evalkit.run.encode import batches
from evalkit.run.progress import Advance, documents_bar
from evalkit.scoring import metrics
from evalkit.storage import results, trec
from evalkit.types import Dataset, Hit, Run


class Reranked(NamedTuple):
    """A run file before and after re-ranking: the means of both, and the re-ranker's checkpoint."""

    dataset: Dataset
    before: Mapping[str, float]
    after: Mapping[str, float]
    checkpoint: str


def rerank_file(path: Path, config: RunConfig, out: Path, *, depth: int, console: Console) -> Reranked:
    """Score the first `depth` hits of a run file's queries with the config's re-ranker, and write the new run.

    Raises ConfigError without a re-ranker; ScoreError for a file that cannot be read or is a run on other documents.
    """
    if config.reranker is None:
        msg = "no re-ranker chosen; wanted reranker=NAME (evalkit ls rerankers)"
        raise ConfigError(msg)
    dataset = datasets.load(config.dataset)
    run = results.read_run(path)
    if dataset.drop_self:
        run, _ = drop_self(run, depth=max((len(hits) for hits in run.values()), default=0))
    device = environment.choose_device(config.engine.device)
    reranker = load_reranker(config.reranker, device=device)
    budget = environment.batch_tokens(config.engine.batch_tokens, device)
    pairs = sum(min(depth, len(run.get(query.id, ()))) for query in dataset.queries)
    with documents_bar(console, f"{reranker.config.name} on {dataset.name}", total=pairs) as advance:
        new = rerank(run, dataset, reranker, depth=depth, batch_tokens=budget, advance=advance)
    trec.write_run(new, out, tag=reranker.config.name)
    before, after = (metrics.score(scored, dataset.qrels, config.metrics).means for scored in (run, new))
    return Reranked(dataset, before, after, f"{reranker.checkpoint.origin}@{reranker.checkpoint.revision}")


def rerank(
    run: Run, dataset: Dataset, reranker: Reranker, *, depth: int, batch_tokens: int, advance: Advance
) -> dict[str, list[Hit]]:
    """Return each judged query's first `depth` hits in the re-ranker's order; hits beyond `depth` are left out.

    The corpus is read once, and only the documents of the run are held. Raises ScoreError for a document of the run
    that the corpus lacks.
    """
    asked = [query for query in dataset.queries if query.id in run]
    wanted = {hit.document_id for query in asked for hit in run[query.id][:depth]}
    texts = {document.id: document.joined() for document in dataset.corpus.documents() if document.id in wanted}
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
