"""MaxSim of packed queries against packed documents in fp32, with a proven bound on its error.

Shapes: Q queries, N documents, D dim; Y query vectors and X document vectors, packed; G documents of one group.

Documents are grouped by length and a group is padded to its longest by repeating each document's last vector: a
repeated vector cannot change a maximum, so no mask is needed and a padded zero can never beat a negative similarity.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GROUP_VECTORS = 512
"""Document vectors per GEMM: with 1,024 query vectors the similarities (2 MB) stay in a core's cache."""
QUERY_VECTORS = 1024


class Packed(NamedTuple):
    """Vectors of several texts one behind the other, and where each text starts (N + 1 entries)."""

    vectors_XD: Tensor
    starts_N: Tensor


def pack(vectors_XD: Tensor, lengths_N: Tensor) -> Packed:
    """Return packed vectors with their starts."""
    return Packed(vectors_XD, torch.cat([torch.zeros(1, dtype=torch.int64), lengths_N.to(torch.int64).cumsum(0)]))


class _Group(NamedTuple):
    documents_G: Tensor
    rows_X: Tensor
    """Rows of the packed vectors, [G * width], padded by repeating each document's last."""
    width: int


def _groups(starts_N: Tensor) -> Iterator[_Group]:
    """Cut documents, sorted by length, into groups of about GROUP_VECTORS padded vectors."""
    lengths_N = starts_N.diff()
    order_N = torch.argsort(lengths_N, descending=True, stable=True)
    sorted_lengths = lengths_N[order_N].tolist()
    begin = 0
    while begin < len(sorted_lengths):
        width = max(sorted_lengths[begin], 1)
        end = min(begin + max(1, GROUP_VECTORS // width), len(sorted_lengths))
        documents_G = order_N[begin:end]
        step_GW = torch.minimum(torch.arange(width), lengths_N[documents_G].unsqueeze(1) - 1)
        yield _Group(documents_G, (starts_N[documents_G].unsqueeze(1) + step_GW).flatten(), width)
        begin = end


def scores(queries: Packed, documents: Packed) -> Tensor:
    """Return fp32 MaxSim scores [Q, N]; `error_bound` says how far from exact they can be.

    Every text must have at least one vector. Products and sums are fp32 whatever the vectors' dtype: a bf16 sum over
    query vectors has been measured to cost up to 2.2 NDCG points.
    """
    device = documents.vectors_XD.device
    query_YD = queries.vectors_XD.to(device=device, dtype=torch.float32)
    out_QN = torch.empty((len(queries.starts_N) - 1, len(documents.starts_N) - 1), dtype=torch.float32, device=device)
    blocks = list(_query_blocks(queries.starts_N, query_YD))
    for group in _groups(documents.starts_N):
        rows_X = group.rows_X.to(device)
        document_XD = documents.vectors_XD[rows_X].float()
        documents_G = group.documents_G.to(device)
        for begin, end, block_YD, owner_YQ in blocks:
            best_GY = (document_XD @ block_YD.T).view(len(documents_G), group.width, -1).amax(1)
            out_QN[begin:end, documents_G] = (best_GY @ owner_YQ).T
    return out_QN


def _query_blocks(starts_Q: Tensor, query_YD: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield (first query, end, vectors, owner matrix of 0 and 1 [Y, Q]) for about QUERY_VECTORS vectors at a time.

    Multiplying by the owner matrix sums each query's maxima: adding exact zeros keeps the error bound.
    """
    starts = starts_Q.tolist()
    begin = 0
    while begin < len(starts) - 1:
        end = begin + 1
        while end < len(starts) - 1 and starts[end + 1] - starts[begin] <= QUERY_VECTORS:
            end += 1
        lengths = starts_Q[begin : end + 1].diff()
        owner_YQ = torch.repeat_interleave(torch.eye(end - begin), lengths, dim=0).to(query_YD.device)
        yield begin, end, query_YD[starts[begin] : starts[end]], owner_YQ
        begin = end


def error_bound(queries: Packed, documents: Packed) -> Tensor:
    """Return per query the largest possible |fp32 score - exact score| [Q], for any order of the additions.

    With unit roundoff u = 2⁻²⁴ and γ(n) = n·u / (1 - n·u): a dot product of D terms is off by at most γ(D)·‖q‖·‖d‖,
    a sum of L maxima by at most γ(L) of the sum of their sizes (Higham, Accuracy and Stability, §3.1 and §4.2).
    """
    dim = queries.vectors_XD.shape[1]
    query_norm_Y = torch.linalg.vector_norm(queries.vectors_XD, dim=1, dtype=torch.float64).cpu()
    document_norm = float(torch.linalg.vector_norm(documents.vectors_XD, dim=1, dtype=torch.float64).max())
    lengths_Q = queries.starts_N.diff()
    owner = torch.repeat_interleave(torch.arange(len(lengths_Q)), lengths_Q)
    total_Q = torch.zeros(len(lengths_Q), dtype=torch.float64).index_add_(0, owner, query_norm_Y) * document_norm
    longest = int(lengths_Q.max()) if len(lengths_Q) else 0
    return total_Q * (_gamma(dim) + _gamma(longest) * (1 + _gamma(dim)))


def _gamma(terms: int) -> float:
    unit = 2.0**-24
    return terms * unit / (1 - terms * unit)


def exact_scores(queries: Packed, documents: Packed, query_H: Tensor, document_H: Tensor) -> Tensor:
    """Return the exact MaxSim, rounded once to fp32 [H], of chosen (query, document) pairs; both sides on the CPU.

    fp16 numbers are multiples of 2⁻²⁴, so products are multiples of 2⁻⁴⁸, and with unit vectors every partial sum is
    below 32 for up to 32 query vectors: float64 holds each of them without rounding. The result is then the same on
    every machine, in any order of the additions. For fp32 vectors or longer queries it is float64-accurate.
    """
    query_YD = queries.vectors_XD.double().numpy()
    document_XD, document_starts = documents.vectors_XD.numpy(), documents.starts_N.tolist()
    query_starts, query_lengths = queries.starts_N.numpy()[:-1], queries.starts_N.diff().numpy()
    order_H = np.argsort(document_H.numpy(), kind="stable")
    out_H = np.empty(len(query_H), dtype=np.float32)
    chosen, first = np.unique(document_H.numpy()[order_H], return_index=True)
    edges = pairwise([*first.tolist(), len(order_H)])
    for document, (begin, end) in zip(chosen.tolist(), edges, strict=True):
        pairs_H = order_H[begin:end]
        document_TD = document_XD[document_starts[document] : document_starts[document + 1]].astype(np.float64)
        asked_H = query_H.numpy()[pairs_H]
        lengths = query_lengths[asked_H]
        ends = lengths.cumsum()
        rows = np.arange(ends[-1]) + np.repeat(query_starts[asked_H] - ends + lengths, lengths)
        best_Y = (query_YD[rows] @ document_TD.T).max(axis=1)
        out_H[pairs_H] = np.add.reduceat(best_Y, ends - lengths)
    return torch.from_numpy(out_H)
