"""Proven rounding error bounds of the approximate MaxSim scores that nominate documents for exact scoring.

Shapes: Q queries, D dim; X vectors; Y query vectors, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evalkit.kernels.cpu import fixed_point
from evalkit.ragged import Ragged

Precision = Literal["float32", "bfloat16"]
TENSOR_CORE_UNIT = 2.0**-22
"""Unit roundoff of one tensor-core addition, relative to the largest operand.

Tensor cores multiply fp16 and bf16 exactly. They align a group of g products and the running sum to the largest
exponent, truncate them to 24 bits, and truncate the sum once more (Fasi, Higham, Mikaitis, Pranesh 2021, Numerical
behavior of NVIDIA tensor cores). The error is at most (g + 2) · 2⁻²³ per g additions, hence at most 2⁻²² per addition
for g ≥ 2; hardware has g = 4, 8 or 16. Extra bits in newer chips reduce the error; the bound does not rely on them.
"""


def error_bound(
    queries: Ragged,
    documents: Ragged,
    *,
    precision: Precision | Literal["int16"] = "float32",
    document_norm: float | None = None,
) -> Tensor:
    """Return a rounding error bound per query [Q], float64: the largest |score - exact score| over all documents.

    The bound holds for any order of additions. With unit roundoff u = 2⁻²⁴ and γ(n) = n·u / (1 - n·u), a dot product
    of D terms has an error of at most γ(D)·‖q‖·‖d‖, and a sum of L maxima at most γ(L) times the sum of their absolute
    values (Higham, Accuracy and Stability, §3.1 and §4.2). One more term covers the rounding of the exact score to
    fp32, the type in which documents are ranked.

    Rounding q to q' and d to d' adds at most ‖q - q'‖·‖d‖ + ‖q'‖·‖d - d'‖ (Cauchy-Schwarz). The residuals of bf16 are
    measured. With `int16`, dot products are exact and a sum of maxima is rounded to fp32 once.

    Pass `document_norm`, the documents' `largest_norm`, where it is known, to avoid a pass over the documents.
    """
    lengths_Q = queries.offsets_N.diff()
    query_YD = queries.rows_XD
    dim = query_YD.shape[1]
    norm_Y = norms(query_YD)
    document_norm = largest_norm(documents.rows_XD) if document_norm is None else document_norm
    size_Y = norm_Y * document_norm
    gamma_sum = _gamma(int(lengths_Q.max()) + 1)
    if precision == "int16":
        residual_Y = fixed_point.residual_norm(dim, fixed_point.scales(norm_Y))
        document_residual = float(fixed_point.residual_norm(dim, fixed_point.scales(torch.tensor(document_norm))))
        error_Y = residual_Y * document_norm + (norm_Y + residual_Y) * document_residual
        gamma_sum = _gamma(3)  # two fp32 roundings, the sum's and the exact score's; a third covers those of fp64
    elif precision == "bfloat16":
        residual_Y = norms(_bfloat16_residual(query_YD))
        rounded_Y = norms(query_YD.bfloat16())
        document_residual = _largest(_bfloat16_residual, documents.rows_XD)
        rounding_Y = residual_Y * document_norm + rounded_Y * document_residual
        error_Y = rounding_Y + rounded_Y * (document_norm + document_residual) * _gamma(dim)
    else:
        error_Y = size_Y * _gamma(dim)
    owner = torch.repeat_interleave(torch.arange(len(lengths_Q)), lengths_Q)
    per_vector_Y = (error_Y + (size_Y + error_Y) * gamma_sum).cpu()
    return torch.zeros(len(lengths_Q), dtype=torch.float64).index_add_(0, owner, per_vector_Y)


def _bfloat16_residual(vectors_XD: Tensor) -> Tensor:
    """Return vectors minus their bf16 rounding, which fp32 represents exactly for fp16 and fp32 numbers."""
    return vectors_XD.float() - vectors_XD.bfloat16().float()


_BLOCK_ROWS = 1 << 12
_EXACT_BLOCK_ROWS = 1 << 18
"""Vectors whose norms are computed at a time, in fp32 and in float64."""
_SLACK = 1.001
"""Exceeds the relative rounding error of an fp32 norm of up to 8,000 terms: γ(8000) < 5e-4."""


def norms(vectors_XD: Tensor) -> Tensor:
    """Return an upper bound of each vector's norm [X], in fp64; the norms are computed in fp32."""
    norm_X: Tensor = torch.linalg.vector_norm(vectors_XD.float(), dim=1).double() * _SLACK
    return norm_X


def largest_norm(vectors_XD: Tensor) -> float:
    """Return an upper bound of the largest norm of any vector."""
    return _largest(Tensor.float, vectors_XD)


def _largest(part: Callable[[Tensor], Tensor], vectors_XD: Tensor) -> float:
    """Return an upper bound of the largest norm of `part(vectors)`, computed block by block to bound memory."""
    blocks = (vectors_XD[begin : begin + _BLOCK_ROWS] for begin in range(0, len(vectors_XD), _BLOCK_ROWS))
    return max(float(norms(part(block)).max()) for block in blocks)


def _gamma(terms: int, unit: float = 2.0**-24) -> float:
    """Return γ(n) = n·u / (1 - n·u), the relative rounding error bound of n additions with unit roundoff u."""
    return terms * unit / (1 - terms * unit)


class QueryNorms(NamedTuple):
    """Norms of the rounded query vectors and of their rounding errors [Y], in float64 on the CPU."""

    rounded_Y: Tensor
    rounding_Y: Tensor


def query_norms(query_YD: Tensor, *, dtype: torch.dtype) -> QueryNorms:
    """Return the norms that `tensor_core_bound` needs of query vectors rounded to `dtype`; all shards share them."""
    exact_YD = query_YD.double()
    rounded_YD = exact_YD.to(dtype).double()
    return QueryNorms(rounded_YD.norm(dim=1).cpu(), (exact_YD - rounded_YD).norm(dim=1).cpu())


def tensor_core_bound(
    queries: Ragged, documents: Ragged, *, dtype: torch.dtype, known: QueryNorms | None = None
) -> Tensor:
    """Return a bound per query [Q], float64: the largest |score - exact score| of MaxSim on tensor cores.

    The bound holds for any order of additions.

    Vectors are rounded to `dtype`, multiplied exactly, and added in a tensor core with unit roundoff TENSOR_CORE_UNIT;
    maxima are added in fp32 with unit roundoff 2⁻²⁴. No term and no partial sum exceeds ‖q‖·‖d‖ (Cauchy-Schwarz), so a
    dot product of D terms has an error of at most γ(D)·‖q‖·‖d‖ with γ(n) = n·u / (1 - n·u). Rounding q to q' and d to
    d' adds ‖q - q'‖·‖d‖ + ‖q'‖·‖d - d'‖; both residuals are measured, and are zero if vectors are stored in `dtype`.
    Rounding the exact score to fp32 adds 2⁻²⁴ of it: documents with equal fp32 scores are ranked by id, so all of them
    must be nominated.

    `known` are the queries' norms if they were computed before.
    """
    document_norm = _exact_largest_norm(documents.rows_XD)
    rounded_norm, residual_norm = document_norm, 0.0
    if documents.rows_XD.dtype != dtype:
        rounded_norm = _exact_largest_norm(documents.rows_XD, to=dtype)
        residual_norm = _exact_largest_norm(documents.rows_XD, less=dtype)
    rounded_Y, residual_Y = known or query_norms(queries.rows_XD, dtype=dtype)
    rounding_Y = residual_Y * document_norm + rounded_Y * residual_norm
    size_Y = rounded_Y * rounded_norm
    lengths_Q = queries.offsets_N.diff()
    dot_Y = size_Y * _gamma(queries.rows_XD.shape[1], TENSOR_CORE_UNIT)
    # One more than the additions, for the rounding of the exact score, whose terms are products of unrounded vectors.
    sums = _gamma(int(lengths_Q.max()) + 1, 2.0**-24)
    per_vector_Y = rounding_Y + dot_Y + (size_Y + rounding_Y + dot_Y) * sums
    owner_Y = torch.repeat_interleave(torch.arange(len(lengths_Q)), lengths_Q)
    return torch.zeros(len(lengths_Q), dtype=torch.float64).index_add_(0, owner_Y, per_vector_Y) * (1 + 1e-9)


def _exact_largest_norm(vectors_XD: Tensor, *, to: torch.dtype | None = None, less: torch.dtype | None = None) -> float:
    """Return the largest float64 norm of the vectors, of the vectors rounded `to` a type, or of their rounding errors.

    The rounding errors are the vectors `less` their values in that type.
    """
    largest = 0.0
    for begin in range(0, len(vectors_XD), _EXACT_BLOCK_ROWS):
        piece_XD = vectors_XD[begin : begin + _EXACT_BLOCK_ROWS]
        read_XD = piece_XD.double()
        if to is not None:
            read_XD = read_XD.to(to).double()
        if less is not None:
            read_XD = read_XD - read_XD.to(less).double()
        largest = max(largest, float(read_XD.norm(dim=1).max()))
    return largest
