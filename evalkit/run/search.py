"""Exact search of one shard, the merging of shards, and the tie rule.

Shapes: Q queries, N documents of a shard, H hits (flat, of all queries together).

The fast kernel's scores, of 16 or 32 bits, only nominate: every document that could be among the best within the
kernel's proven error is scored again exactly. So the run depends on no batch, block, shard size, threads or device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalkit.config.settings import MaxsimKernel, Nomination
from evalkit.maxsim import choice, packed
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Hit

QUERY_BLOCK = 512
"""Queries per block of nomination: bounds the [block, N] score matrix."""


TieRule = Literal["trec_eval", "anserini"]


class Hits(NamedTuple):
    """Hits of many queries as flat arrays: query position, document id (UTF-8 bytes), exact fp32 score."""

    query_H: np.ndarray
    id_H: np.ndarray
    score_H: np.ndarray


def no_hits() -> Hits:
    """Return an empty set of hits, the neutral element of `merge`."""
    return Hits(np.zeros(0, np.int32), np.zeros(0, "S1"), np.zeros(0, np.float32))


def merge(parts: Sequence[Hits], *, depth: int, ties: TieRule = "trec_eval") -> Hits:
    """Keep each query's best `depth` hits of several sets: score descending, then document id.

    Of equal fp32 scores trec_eval ranks the higher id first, by UTF-8 bytes; Anserini the lower
    (`evalkit.storage.trec` states the rule). Merging is associative, so shards may come in any grouping; the result
    is ordered by query and rank.
    """
    query_H = np.concatenate([part.query_H for part in parts])
    id_H = np.concatenate([part.id_H for part in parts])
    score_H = np.concatenate([part.score_H for part in parts])
    query_key_H = query_H.astype(np.int64)
    if ties == "trec_eval":
        order_H = np.lexsort((id_H, score_H, -query_key_H))[::-1]
    else:
        order_H = np.lexsort((id_H, -score_H, query_key_H))
    query_H, id_H, score_H = query_H[order_H], id_H[order_H], score_H[order_H]
    kept_H = _rank_within(query_H) < depth
    return Hits(query_H[kept_H], id_H[kept_H], score_H[kept_H])


def _rank_within(query_H: np.ndarray) -> np.ndarray:
    """Return each hit's rank within its query, for hits that stand query by query.

    >>> _rank_within(np.array([4, 4, 7])).tolist()
    [0, 1, 0]
    """
    place_H = np.arange(len(query_H))
    first_H = np.concatenate([[True], query_H[1:] != query_H[:-1]]) if len(query_H) else np.zeros(0, dtype=bool)
    return place_H - np.maximum.accumulate(np.where(first_H, place_H, 0)) if len(query_H) else place_H


def floors(best: Hits, *, queries: int, depth: int) -> np.ndarray:
    """Return per query the score that a further document must reach to be kept [Q]; -inf while there is room."""
    floor_Q = np.full(queries, -np.inf, dtype=np.float32)
    last_H = _rank_within(best.query_H) == depth - 1
    floor_Q[best.query_H[last_H]] = best.score_H[last_H]
    return floor_Q


def search_shard(  # noqa: PLR0913 (keyword-only behind the two sides)
    queries: ShardVectors,
    shard: ShardVectors,
    *,
    depth: int,
    floor_Q: np.ndarray,
    device: torch.device,
    precision: Nomination = "auto",
    maxsim: MaxsimKernel = "auto",
) -> Hits:
    """Return the exact best `depth` documents of a shard for every query, leaving out those below the query's floor.

    `precision` and `maxsim` are those of the nomination; the hits are the same for each.
    """
    query_packed = packed.pack(queries.vectors_XD, queries.lengths_N)
    documents = packed.pack(shard.vectors_XD, shard.lengths_N)
    kernel = choice.bind(maxsim, documents, device=device, precision=precision)
    ids_N = np.array([identifier.encode() for identifier in shard.ids])
    bound_Q = kernel.error_bound(query_packed)
    floor = torch.from_numpy(floor_Q).double()
    best = []
    for begin in range(0, len(queries.ids), QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, len(queries.ids))
        block = _block(query_packed, begin, end)
        query_H, document_H = _nominate(kernel.scores(block), bound_Q[begin:end], floor[begin:end], depth)
        score_H = kernel.exact_scores(block, query_H, document_H)
        reaching_H = score_H >= torch.from_numpy(floor_Q)[begin:end][query_H]
        hits = Hits(
            (query_H[reaching_H].numpy() + begin).astype(np.int32),
            ids_N[document_H[reaching_H].numpy()],
            score_H[reaching_H].numpy(),
        )
        best.append(merge([hits], depth=depth))
    return merge(best, depth=depth) if best else no_hits()


def _block(queries: packed.Packed, begin: int, end: int) -> packed.Packed:
    rows = slice(int(queries.starts_N[begin]), int(queries.starts_N[end]))
    return packed.Packed(queries.vectors_XD[rows], queries.starts_N[begin : end + 1] - queries.starts_N[begin])


def _nominate(score_QN: Tensor, bound_Q: Tensor, floor_Q: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the (query, document) pairs that may be among the best `depth`, given each score's error bound.

    The depth-th best exact score is at least the depth-th best nominating score minus the bound, and a document that
    reaches it has a nominating score at most one more bound below. All of it happens where the scores are: a GPU hands
    over the pairs alone, on the CPU.
    """
    bound_Q, floor_Q = bound_Q.to(score_QN.device), floor_Q.to(score_QN.device)
    kept = min(depth, score_QN.shape[1])
    last_Q = score_QN.topk(kept, dim=1).values[:, -1].double()
    threshold_Q = torch.maximum(last_Q - 2 * bound_Q, floor_Q - bound_Q) if kept == depth else floor_Q - bound_Q
    query_H, document_H = torch.nonzero(score_QN.double() >= threshold_Q.unsqueeze(1), as_tuple=True)
    return query_H.cpu(), document_H.cpu()


def best_of(score_QN: np.ndarray, ids: Sequence[str], *, depth: int, first_query: int, ties: TieRule) -> Hits:
    """Return the best hits of a matrix of final scores; -inf marks a document that is not retrieved at all."""
    ids_N = np.array([identifier.encode() for identifier in ids])
    kept = min(depth, score_QN.shape[1])
    last_Q = np.partition(score_QN, -kept, axis=1)[:, -kept]
    query_H, document_H = np.nonzero((score_QN >= last_Q[:, None]) & np.isfinite(score_QN))
    found = Hits((query_H + first_query).astype(np.int32), ids_N[document_H], score_QN[query_H, document_H])
    return merge([found], depth=depth, ties=ties)


def separate_ties(hits: Hits) -> Hits:
    """Lower every score that is not below its predecessor's to the next fp32 number beneath it.

    A run in Anserini's order then keeps that order under trec_eval's tie rule; Anserini does the same with 1e-6.
    """
    score_H = hits.score_H.copy()
    for place in np.flatnonzero(hits.query_H[1:] == hits.query_H[:-1]) + 1:
        if score_H[place] >= score_H[place - 1]:
            score_H[place] = np.nextafter(score_H[place - 1], np.float32(-np.inf))
    return hits._replace(score_H=score_H)


def self_hits(run: Mapping[str, list[Hit]]) -> int:
    """Count the hits whose document id is the query's own.

    >>> self_hits({"q": [Hit("q", 2.0), Hit("d", 1.0)], "r": [Hit("d", 1.0)]})
    1
    """
    return sum(hit.document_id == query for query, hits in run.items() for hit in hits)


def drop_self(run: Mapping[str, list[Hit]], *, depth: int) -> tuple[dict[str, list[Hit]], int]:
    """Drop each query's own document (BEIR's rule where ids overlap), keep `depth` hits, and count the dropped.

    >>> drop_self({"q": [Hit("q", 2.0), Hit("d", 1.0)]}, depth=1)
    ({'q': [Hit(document_id='d', score=1.0)]}, 1)
    """
    kept = {query: [hit for hit in hits if hit.document_id != query][:depth] for query, hits in run.items()}
    return kept, sum(any(hit.document_id == query for hit in hits) for query, hits in run.items())


def hits_to_arrays(hits: Hits) -> dict[str, Tensor]:
    """Return hits as named arrays for a checkpoint."""
    width = hits.id_H.dtype.itemsize
    return {
        "query": torch.from_numpy(hits.query_H),
        "id": torch.from_numpy(np.ascontiguousarray(hits.id_H).view(np.uint8).reshape(-1, width)),
        "score": torch.from_numpy(hits.score_H),
    }


def hits_from_arrays(arrays: Mapping[str, Tensor]) -> Hits:
    """Undo `hits_to_arrays`."""
    id_HB = arrays["id"].numpy()
    id_H = np.ascontiguousarray(id_HB).view(f"S{id_HB.shape[1]}").reshape(-1)
    return Hits(arrays["query"].numpy(), id_H, arrays["score"].numpy())


def to_run(hits: Hits, query_ids: Sequence[str]) -> dict[str, list[Hit]]:
    """Return merged hits as a run: every query present, those without hits with an empty list."""
    run: dict[str, list[Hit]] = {query_id: [] for query_id in query_ids}
    for query, identifier, score in zip(hits.query_H.tolist(), hits.id_H.tolist(), hits.score_H.tolist(), strict=True):
        run[query_ids[query]].append(Hit(identifier.decode(), score))
    return run
