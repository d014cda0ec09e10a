"""MaxSim of packed queries against packed documents in fp32, with a proven bound on its error.

Shapes: Q queries, N documents, D dim; Y query vectors and X document vectors, packed; G documents of one group.

Documents are grouped by length and a group is padded to its longest by repeating each document's last vector: a
repeated vector cannot change a maximum, so no mask is needed and a padded zero can never beat a negative similarity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]
GROUP_VECTORS = 1024
"""Document vectors per GEMM."""
QUERY_VECTORS = 2048
"""Query vectors per GEMM; both sizes were chosen from 512 to 2,048 on a busy machine, so not settled."""


def fastest_precision(device: torch.device) -> Precision:
    """Return bfloat16 on a CPU with matrix units for it, else float32.

    It is the faster product only while oneDNN may keep its kernels; results/bench/maxsim.json has both rates.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if device.type == "cpu" and capabilities.get("amx_bf16") else "float32"


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


def scores(queries: Packed, documents: Packed, *, precision: Precision = "float32") -> Tensor:
    """Return MaxSim scores [Q, N] in fp32; `error_bound` says how far from exact they can be.

    Every text must have at least one vector. `bfloat16` rounds the vectors, never a product or a sum: maxima are added
    in fp32 whatever the precision, because a bf16 sum over query vectors has been measured to cost up to 2.2 NDCG
    points.
    """
    device = documents.vectors_XD.device
    query_YD = queries.vectors_XD.to(device=device, dtype=torch.float32)
    blocks = list(_query_blocks(queries.starts_N))
    groups = list(_groups(documents.starts_N))
    sorted_NQ = torch.empty((len(documents.starts_N) - 1, len(queries.starts_N) - 1), device=device)
    begin = 0
    for group in groups:
        end = begin + len(group.documents_G)
        document_XD = documents.vectors_XD[group.rows_X.to(device)].float()
        for block in blocks:
            with _matmul_precision(precision):
                similarity_XY = document_XD @ query_YD[block.vectors].T
            # Reducing the middle axis of a row-major product is several times faster than its last.
            best_GY = similarity_XY.view(end - begin, group.width, -1).amax(1)
            sorted_NQ[begin:end, block.queries] = _sums(best_GY, block)
        begin = end
    out_QN = torch.empty_like(sorted_NQ.T)
    out_QN[:, torch.cat([group.documents_G for group in groups]).to(device)] = sorted_NQ.T
    return out_QN


class _QueryBlock(NamedTuple):
    queries: slice
    vectors: slice
    lengths: tuple[int, ...]


def _query_blocks(starts_Q: Tensor) -> Iterator[_QueryBlock]:
    """Cut queries, in order, into blocks of about QUERY_VECTORS vectors."""
    starts = starts_Q.tolist()
    begin = 0
    while begin < len(starts) - 1:
        end = begin + 1
        while end < len(starts) - 1 and starts[end + 1] - starts[begin] <= QUERY_VECTORS:
            end += 1
        lengths = tuple(after - before for before, after in pairwise(starts[begin : end + 1]))
        yield _QueryBlock(slice(begin, end), slice(starts[begin], starts[end]), lengths)
        begin = end


def _sums(best_GY: Tensor, block: _QueryBlock) -> Tensor:
    """Add up each query's maxima [G, Q]; ragged queries by a product with a matrix of 0 and 1, which is exact in 0."""
    if len(set(block.lengths)) == 1:
        return best_GY.view(len(best_GY), -1, block.lengths[0]).sum(2)
    owner_YQ = torch.repeat_interleave(torch.eye(len(block.lengths)), torch.tensor(block.lengths), dim=0)
    return best_GY @ owner_YQ.to(best_GY.device)


@contextmanager
def _matmul_precision(precision: Precision) -> Iterator[None]:
    """Let fp32 matrix products round their inputs to bf16 and keep fp32 sums and outputs, on CPUs that can.

    On CUDA products stay in full fp32: TF32 would break the error bound.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set up at import, unknown to the stubs
    before, before_cuda = settings.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    settings.fp32_precision = "bf16" if precision == "bfloat16" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
        torch.backends.cuda.matmul.fp32_precision = before_cuda


def error_bound(queries: Packed, documents: Packed, *, precision: Precision = "float32") -> Tensor:
    """Return per query the largest possible |score - exact score| [Q], for any order of the additions.

    With unit roundoff u = 2⁻²⁴ and γ(n) = n·u / (1 - n·u): a dot product of D terms is off by at most γ(D)·‖q‖·‖d‖,
    a sum of L maxima by at most γ(L) of the sum of their sizes (Higham, Accuracy and Stability, §3.1 and §4.2).
    Rounding q to q' and d to d' adds at most ‖q - q'‖·‖d‖ + ‖q'‖·‖d - d'‖, by Cauchy and Schwarz; both residuals are
    measured, not estimated.
    """
    lengths_Q = queries.starts_N.diff()
    longest = int(lengths_Q.max())
    query_YD, document_XD = queries.vectors_XD, documents.vectors_XD
    pieces = [document_XD[i : i + _PIECE] for i in range(0, len(document_XD), _PIECE)]
    document_norm = max(float(_norms(piece).max()) for piece in pieces)
    gamma_dim, gamma_sum = _gamma(query_YD.shape[1]), _gamma(longest)
    size_Y = _norms(query_YD).cpu() * document_norm
    error_Y = size_Y * gamma_dim
    if precision == "bfloat16":
        document_residual = max(float(_norms(_residual(piece)).max()) for piece in pieces)
        rounded_Y = _norms(query_YD.bfloat16()).cpu()
        rounded_norm = document_norm + document_residual
        rounding_Y = _norms(_residual(query_YD)).cpu() * document_norm + rounded_Y * document_residual
        error_Y = rounding_Y + rounded_Y * rounded_norm * gamma_dim
    owner = torch.repeat_interleave(torch.arange(len(lengths_Q)), lengths_Q)
    per_vector_Y = error_Y + (size_Y + error_Y) * gamma_sum
    return torch.zeros(len(lengths_Q), dtype=torch.float64).index_add_(0, owner, per_vector_Y)


def _residual(vectors_XD: Tensor) -> Tensor:
    """Return what rounding to bf16 takes away; fp32 holds the difference of an fp16 or fp32 number and its bf16."""
    return vectors_XD.float() - vectors_XD.bfloat16().float()


_PIECE = 1 << 14
_SLACK = 1.001
"""Above what fp32 can lose in the norm of up to 8,000 terms: γ(8000) < 5e-4."""


def _norms(vectors_XD: Tensor) -> Tensor:
    """Return an upper bound of every vector's norm, computed in fp32."""
    norms: Tensor = torch.linalg.vector_norm(vectors_XD.float(), dim=1).double() * _SLACK
    return norms


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
