"""Exact search of one shard: a fast kernel nominates documents, an exact one scores them.

Shapes: Q queries, N documents of a shard, H hits (flat, of all queries together).

The fast kernel's scores, of 16 or 32 bits, only nominate: every document that could be among the best within the
kernel's proven error is scored again exactly. So the run depends on no batch, block, shard size, threads or device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evalkit.config.settings import MaxsimKernel, Nomination
from evalkit.maxsim import choice
from evalkit.ragged import Ragged
from evalkit.ranking import Hits, Ids, TieRule, best_of_shard, id_array, merge, no_hits, ranked_ids
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Hit

QUERY_BLOCK = 512
"""Queries per block of nomination: bounds the [block, N] score matrix."""


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
    kernel = choice.bind(maxsim, shard.vectors, device=device, precision=precision)
    ids = ranked_ids(shard.ids)
    bound_Q = kernel.error_bound(queries.vectors)
    floor = torch.from_numpy(floor_Q).double()
    best = []
    for begin in range(0, len(queries.ids), QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, len(queries.ids))
        block = _block(queries.vectors, begin, end)
        query_H, document_H = _nominate(kernel.scores(block), bound_Q[begin:end], floor[begin:end], depth)
        score_H = kernel.exact_scores(block, query_H, document_H)
        reaching_H = score_H >= torch.from_numpy(floor_Q)[begin:end][query_H]
        found = ((query_H[reaching_H].numpy() + begin).astype(np.int32), document_H[reaching_H].numpy())
        best.append(best_of_shard(*found, score_H[reaching_H].numpy(), ids, depth=depth))
    return merge(best, depth=depth) if best else no_hits()


def _block(queries: Ragged, begin: int, end: int) -> Ragged:
    rows = slice(int(queries.offsets_N[begin]), int(queries.offsets_N[end]))
    return Ragged(queries.rows_XD[rows], queries.offsets_N[begin : end + 1] - queries.offsets_N[begin])


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


def best_of(score_QN: np.ndarray, ids: Ids, *, depth: int, first_query: int, ties: TieRule) -> Hits:
    """Return the best hits of a matrix of final scores; -inf marks a document that is not retrieved at all."""
    kept = min(depth, score_QN.shape[1])
    last_Q = np.partition(score_QN, -kept, axis=1)[:, -kept]
    query_H, document_H = np.nonzero((score_QN >= last_Q[:, None]) & np.isfinite(score_QN))
    score_H = score_QN[query_H, document_H]
    return best_of_shard((query_H + first_query).astype(np.int32), document_H, score_H, ids, depth=depth, ties=ties)


def hits_to_arrays(hits: Hits) -> dict[str, Tensor]:
    """Return hits as named arrays for a checkpoint; ids become bytes and where each ends."""
    ids = hits.id_H.tolist()
    data = np.frombuffer(b"".join(ids), dtype=np.uint8)
    return {
        "query": torch.from_numpy(hits.query_H),
        "id_bytes": torch.from_numpy(data.copy()),
        "id_ends": torch.from_numpy(np.cumsum([len(one) for one in ids], dtype=np.int64)),
        "score": torch.from_numpy(hits.score_H),
    }


def hits_from_arrays(arrays: Mapping[str, Tensor]) -> Hits:
    """Undo `hits_to_arrays`; the ids of older checkpoints all have one width, filled up with NUL."""
    if "id" in arrays:
        id_HB = arrays["id"].numpy()
        ids = np.ascontiguousarray(id_HB).view(f"S{id_HB.shape[1]}").reshape(-1).tolist()
    else:
        data, ends = arrays["id_bytes"].numpy().tobytes(), arrays["id_ends"].tolist()
        ids = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return Hits(arrays["query"].numpy(), id_array(ids), arrays["score"].numpy())


def to_run(hits: Hits, query_ids: Sequence[str]) -> dict[str, list[Hit]]:
    """Return merged hits as a run: every query present, those without hits with an empty list."""
    run: dict[str, list[Hit]] = {query_id: [] for query_id in query_ids}
    for query, identifier, score in zip(hits.query_H.tolist(), hits.id_H.tolist(), hits.score_H.tolist(), strict=True):
        run[query_ids[query]].append(Hit(identifier.decode(), score))
    return run
