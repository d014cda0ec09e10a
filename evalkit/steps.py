"""The shard step, once for vectors and once for BM25: a shard of documents in, its exact top-k out, each checkpointed.

A step is idempotent: whatever of it is finished on disk is read, never redone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from evalkit import store
from evalkit.cells import Cell, Task
from evalkit.config import Bm25Config
from evalkit.datasets.survey import ShardRange
from evalkit.encode import encode
from evalkit.maxsim.packed import fastest_precision
from evalkit.models import bm25
from evalkit.models.analysis import Analyzer
from evalkit.models.encoder import DTYPES, Encoder
from evalkit.paths import shard_name, store_dir, topk_dir
from evalkit.progress import Advance
from evalkit.search import Hits, best_of, floors, hits_from_arrays, hits_to_arrays, merge, no_hits, search_shard
from evalkit.store import ShardVectors

BM25_QUERY_BLOCK = 64
"""Queries scored at a time: bounds the [block, N] score matrix, N being the documents of a shard."""


def encode_queries(task: Task, encoder: Encoder) -> dict[int, ShardVectors]:
    """Return the query vectors at every dim of an encoder, rounded as documents' are."""
    return encode(
        [query.id for query in task.dataset.queries],
        encoder.tokenize_queries([query.text for query in task.dataset.queries]),
        encoder,
        documents=False,
        batch_tokens=task.config.engine.batch_tokens,
        storage=DTYPES[task.config.store.dtype],
    )


def vector_step(
    task: Task, encoder: Encoder, cells: Mapping[int, Cell], best: Mapping[str, Hits], advance: Advance
) -> Callable[[ShardRange], dict[str, Hits]]:
    """Return the step for cells (by dim) that share a backbone: it takes a shard, and gives its hits by run id.

    `best` is read at each step: the best hits so far, which the caller merges. They only spare work: a document below
    a query's floor cannot enter the run, in whatever order shards come.
    """
    queries = encode_queries(task, encoder)
    cache = task.config.cache_dir
    chosen = task.config.engine.nominate
    precision = fastest_precision(task.device) if chosen == "auto" else chosen

    def step(shard: ShardRange) -> dict[str, Hits]:
        name = shard_name(shard.index)
        hits: dict[str, Hits] = {}
        embedded: dict[int, ShardVectors] = {}
        for dim, cell in cells.items():
            if (arrays := store.load(topk_dir(cache, cell.search_key), name)) is not None:
                hits[cell.run_id] = hits_from_arrays(arrays)
            elif (arrays := store.load(store_dir(cache, cell.store_key), name)) is not None:
                embedded[dim] = store.vectors_from_arrays(arrays)
        missing = [dim for dim, cell in cells.items() if cell.run_id not in hits and dim not in embedded]
        encode_s = {dim: _encode_s(store.finished(store_dir(cache, cells[dim].store_key), name)) for dim in embedded}
        if missing:
            started = time.monotonic()
            fresh = _encode_shard(task, encoder.only(missing), shard, advance)
            wall_s = round(time.monotonic() - started, 3)
            for dim, vectors in fresh.items():
                embedded[dim], encode_s[dim] = vectors, wall_s
                if task.config.store.keep == "embeddings":
                    folder = store_dir(cache, cells[dim].store_key)
                    facts = _facts(shard, cells[dim]) | {"encode_s": wall_s}
                    store.save(folder, name, store.vectors_to_arrays(vectors), facts)
        else:
            advance(shard.stop - shard.start, 0)
        for dim, vectors in embedded.items():
            cell = cells[dim]
            started = time.monotonic()
            floor_Q = floors(best[cell.run_id], queries=len(task.dataset.queries), depth=task.depth)
            found = search_shard(
                queries[dim],
                vectors,
                depth=task.depth,
                floor_Q=floor_Q,
                device=task.device,
                precision=precision,
            )
            cost = {"vectors": len(vectors.vectors_XD), "encode_s": encode_s[dim]}
            facts = _facts(shard, cell) | cost | {"search_s": round(time.monotonic() - started, 3)}
            store.save(topk_dir(cache, cell.search_key), name, hits_to_arrays(found), facts)
            hits[cell.run_id] = found
        return hits

    return step


def _encode_shard(task: Task, encoder: Encoder, shard: ShardRange, advance: Advance) -> dict[int, ShardVectors]:
    documents = list(task.dataset.corpus.documents(shard.start, shard.stop))
    return encode(
        [document.id for document in documents],
        encoder.tokenize_documents([document.joined() for document in documents]),
        encoder,
        documents=True,
        batch_tokens=task.config.engine.batch_tokens,
        storage=DTYPES[task.config.store.dtype],
        on_batch=advance,
    )


def bm25_count_step(
    task: Task, cell: Cell, terms: bm25.QueryTerms, analyzer: Analyzer
) -> Callable[[ShardRange], bm25.ShardCounts]:
    """Return BM25's first step: a shard's counts of the queries' terms."""
    model = task.config.model
    assert isinstance(model, Bm25Config)
    folder = topk_dir(task.config.cache_dir, cell.search_key)

    def step(shard: ShardRange) -> bm25.ShardCounts:
        name = shard_name(shard.index)
        if (arrays := store.load(folder, name)) is not None:
            return bm25.ShardCounts.from_arrays({key: array.numpy() for key, array in arrays.items()})
        counts = bm25.count_shard(
            task.dataset.corpus.documents(shard.start, shard.stop),
            vocabulary=terms.vocabulary,
            fields=model.fields,
            analyzer=analyzer,
        )
        tensors = {key: torch.from_numpy(array.copy()) for key, array in counts.to_arrays().items()}
        store.save(folder, name, tensors, _facts(shard, cell))
        return counts

    return step


def bm25_score_step(
    counts: bm25.ShardCounts,
    statistics: bm25.Statistics,
    settings: Bm25Config,
    queries: Sequence[Sequence[tuple[int, int]]],
    *,
    depth: int,
) -> Hits:
    """Return a shard's best hits under the whole corpus' statistics. Cheap beside counting, so not checkpointed."""
    best = [no_hits()]
    for begin in range(0, len(queries), BM25_QUERY_BLOCK):
        score_QN = bm25.score_block(counts, statistics, settings, queries[begin : begin + BM25_QUERY_BLOCK])
        best.append(best_of(score_QN, counts.document_ids, depth=depth, first_query=begin, ties=settings.ties))
    return merge(best, depth=depth, ties=settings.ties)


def costs(task: Task, cell: Cell) -> dict[str, float]:
    """Return what the shards of a cell with vectors cost, from their manifests: vectors, encode_s, search_s.

    Dims that shared a pass over the corpus each have the time of the whole pass.
    """
    folder = topk_dir(task.config.cache_dir, cell.search_key)
    found = [store.finished(folder, shard_name(shard.index)) or {} for shard in task.survey.shards]
    names = ("vectors", "encode_s", "search_s")
    return {name: sum(facts[name] for facts in found) for name in names if all(name in facts for facts in found)}


def _encode_s(facts: Mapping[str, Any] | None) -> float:
    """Return how long a checkpointed shard took to encode."""
    return float((facts or {}).get("encode_s", 0.0))


def _facts(shard: ShardRange, cell: Cell) -> dict[str, Any]:
    return {"start": shard.start, "stop": shard.stop, "protocol": cell.protocol}
