"""Exact search of one shard: a fast kernel nominates documents, an exact one scores them.

Shapes: Q queries, N documents of a shard, X vectors of all texts, D dim, H hits (flat, of all queries together).

The fast kernel's scores, of 16 or 32 bits, only nominate: every document that could be among the best within the
kernel's proven error is scored again exactly. So the run depends on no batch, block, shard size, threads or device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalkit.config.settings import MaxsimKernel, Nomination
from evalkit.errors import DeviceError
from evalkit.kernels.trouble import first_line, is_out_of_memory, warn_once
from evalkit.maxsim import bounds, choice
from evalkit.ragged import Ragged
from evalkit.ranking import Hits, Ids, TieRule, best_of_shard, concatenated, id_array, merge, ranked_ids
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Hit

QUERY_BLOCK = 512
"""Queries per block of nomination: bounds the [block, N] score matrix."""
LEAST_BLOCK = 32
"""Queries per block below which a shard that does not fit memory is divided instead."""


class PreparedQueries(NamedTuple):
    """The query vectors, prepared once: on the device that searches, with the norms that the error bounds need."""

    queries: ShardVectors
    norms: Mapping[torch.dtype, bounds.QueryNorms]


def prepare_queries(queries: ShardVectors, device: torch.device) -> PreparedQueries:
    """Copy query vectors to a device and compute their norms, once for all shards; on a CPU nothing is prepared."""
    if device.type == "cpu":
        return PreparedQueries(queries, {})
    rows_XD = queries.vectors.rows_XD.to(device)
    half = choice.half_of(rows_XD.dtype)
    norms = {half: bounds.query_norms(rows_XD, dtype=half)}
    return PreparedQueries(queries._replace(vectors=queries.vectors._replace(rows_XD=rows_XD)), norms)


def search_shard(  # noqa: PLR0913 (two positional arguments; the options are keyword-only and become `_Options`)
    queries: ShardVectors | PreparedQueries,
    shard: ShardVectors,
    *,
    depth: int,
    floor_Q: np.ndarray,
    device: torch.device,
    precision: Nomination = "auto",
    maxsim: MaxsimKernel = "auto",
) -> Hits:
    """Return the exact best `depth` documents of a shard for every query, leaving out those below the query's floor.

    `floor_Q` [Q] is each query's floor: the depth-th best score of earlier shards, or -inf (`evalkit.ranking.floors`).
    `precision` and `maxsim` choose how documents are nominated; they do not change the hits. If memory runs out, blocks
    of queries are halved, then the shard; this does not change the hits either. Raises DeviceError if one document
    does not fit memory.
    """
    prepared = queries if isinstance(queries, PreparedQueries) else PreparedQueries(queries, {})
    return _within_memory(prepared, shard, _Options(depth, floor_Q, device, precision, maxsim))


class _Options(NamedTuple):
    """The options of `search_shard`."""

    depth: int
    floor_Q: np.ndarray
    device: torch.device
    precision: Nomination
    maxsim: MaxsimKernel


def _within_memory(prepared: PreparedQueries, shard: ShardVectors, options: _Options) -> Hits:
    """Search a shard; if memory runs out, halve the blocks of queries, then the shard."""
    while True:
        block = _FITTING_BLOCK.get(options.device, QUERY_BLOCK)
        try:
            return _search(prepared, shard, options, block=block)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)  # only its text: the error itself holds the tensors that fill the memory
        if options.device.type == "cuda":
            torch.cuda.empty_cache()
        if block > LEAST_BLOCK:
            if options.device not in _FITTING_BLOCK:
                warn_once(f"a search did not fit memory ({reason}): fewer queries, or documents, are taken at a time")
            _FITTING_BLOCK[options.device] = block // 2
            continue
        if len(shard.ids) == 1:
            msg = f"document {shard.ids[0]!r} does not fit memory with {LEAST_BLOCK} queries ({reason})"
            raise DeviceError(f"{msg}; wanted a larger device, or a lower max_tokens of the model")
        return merge([_within_memory(prepared, half, options) for half in _halves(shard)], depth=options.depth)


_FITTING_BLOCK: dict[torch.device, int] = {}
"""Queries per block that fit a device's memory, for devices on which QUERY_BLOCK did not fit."""


def _search(prepared: PreparedQueries, shard: ShardVectors, options: _Options, *, block: int) -> Hits:
    queries, depth, floor_Q = prepared.queries, options.depth, options.floor_Q
    kernel = choice.bind(
        options.maxsim, shard.vectors, device=options.device, precision=options.precision, known=prepared.norms
    )
    ids = ranked_ids(shard.ids)
    bound_Q = kernel.error_bound(queries.vectors)
    floor = torch.from_numpy(floor_Q).double()
    best = []
    for begin in range(0, len(queries.ids), block):
        end = min(begin + block, len(queries.ids))
        some = _block(queries.vectors, begin, end)
        query_H, document_H = _nominate(kernel.scores(some), bound_Q[begin:end], floor[begin:end], depth)
        score_H = kernel.exact_scores(some, query_H, document_H)
        reaching_H = score_H >= torch.from_numpy(floor_Q)[begin:end][query_H]
        found = ((query_H[reaching_H].numpy() + begin).astype(np.int32), document_H[reaching_H].numpy())
        best.append(best_of_shard(*found, score_H[reaching_H].numpy(), ids, depth=depth))
    return concatenated(best)


def _halves(shard: ShardVectors) -> tuple[ShardVectors, ShardVectors]:
    """Divide a shard into two with half of the documents each."""
    rows_XD, offsets_N = shard.vectors
    middle = len(shard.ids) // 2
    cut = int(offsets_N[middle])
    return (
        ShardVectors(shard.ids[:middle], Ragged(rows_XD[:cut], offsets_N[: middle + 1])),
        ShardVectors(shard.ids[middle:], Ragged(rows_XD[cut:], offsets_N[middle:] - cut)),
    )


def _block(queries: Ragged, begin: int, end: int) -> Ragged:
    """Return the vectors of the queries from `begin` to `end` (exclusive)."""
    rows = slice(int(queries.offsets_N[begin]), int(queries.offsets_N[end]))
    return Ragged(queries.rows_XD[rows], queries.offsets_N[begin : end + 1] - queries.offsets_N[begin])


def _nominate(score_QN: Tensor, bound_Q: Tensor, floor_Q: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the (query, document) pairs that may be among the best `depth`, given each score's error bound.

    The depth-th best exact score is at least the depth-th best nominating score minus the bound. A document that
    reaches it has a nominating score at most one more bound below. This is computed on the device of the scores; only
    the pairs are copied to the CPU.
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
    """Return hits as named arrays for a checkpoint. Ids are stored as concatenated bytes and the end offset of each."""
    ids = hits.id_H.tolist()
    data = np.frombuffer(b"".join(ids), dtype=np.uint8)
    return {
        "query": torch.from_numpy(hits.query_H),
        "id_bytes": torch.from_numpy(data.copy()),
        "id_ends": torch.from_numpy(np.cumsum([len(one) for one in ids], dtype=np.int64)),
        "score": torch.from_numpy(hits.score_H),
    }


def hits_from_arrays(arrays: Mapping[str, Tensor]) -> Hits:
    """Undo `hits_to_arrays`. Ids of older checkpoints have a fixed width and are padded with NUL."""
    if "id" in arrays:
        id_HB = arrays["id"].numpy()
        ids = np.ascontiguousarray(id_HB).view(f"S{id_HB.shape[1]}").reshape(-1).tolist()
    else:
        data, ends = arrays["id_bytes"].numpy().tobytes(), arrays["id_ends"].tolist()
        ids = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    return Hits(arrays["query"].numpy(), id_array(ids), arrays["score"].numpy())


def to_run(hits: Hits, query_ids: Sequence[str]) -> dict[str, list[Hit]]:
    """Return merged hits as a run. Every query is present; a query without hits has an empty list."""
    run: dict[str, list[Hit]] = {query_id: [] for query_id in query_ids}
    for query, identifier, score in zip(hits.query_H.tolist(), hits.id_H.tolist(), hits.score_H.tolist(), strict=True):
        run[query_ids[query]].append(Hit(identifier.decode(), score))
    return run
