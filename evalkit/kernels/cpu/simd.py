"""Launch the vector-unit kernel: fp32 or 16-bit whole numbers to nominate, float64 to score exactly.

Shapes: Q queries, N documents, D dim; H pairs; Y query vectors and X document vectors, packed; M panels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.kernels.cpu import cores, fixed_point
from evalkit.maxsim.packed import Packed, norms

BLOCK_BYTES = 1 << 19
"""Document vectors that one call of the kernel takes: they stay in a core's second-level cache for all queries."""
EXACT_BLOCK_BYTES = 1 << 21
"""The same for exact scores, in which a document meets few queries: what counts there is the number of calls."""


def scores(queries: Packed, documents: Packed) -> Tensor:
    """Return MaxSim scores [Q, N] in fp32; `packed.error_bound` says how far from exact they can be.

    Every text must have at least one vector, and vectors must be finite.
    """
    unit_Y = torch.ones(len(queries.vectors_XD))
    return _all_scores(_floats(queries.vectors_XD), unit_Y, queries.starts_N, documents, _floats, -torch.inf)


def fixed_point_scores(queries: Packed, documents: Packed, *, scale: float) -> Tensor:
    """Return MaxSim scores [Q, N] of vectors rounded to 16-bit whole numbers, added exactly and rounded once to fp32.

    `scale` is the documents', of `fixed_point.scales`; each query vector has its own. Texts are as for `scores`.
    """
    scale_Y = fixed_point.scales(norms(queries.vectors_XD))
    query_YD = _pairs(queries.vectors_XD, scale_Y.unsqueeze(1))
    lowest = torch.iinfo(query_YD.dtype).min
    unit_Y = 1 / (scale_Y.double() * scale)
    return _all_scores(query_YD, unit_Y, queries.starts_N, documents, lambda part: _pairs(part, scale), lowest)


def _all_scores(  # noqa: PLR0913, PLR0917 (one call's worth of a kernel's arguments)
    query_YD: Tensor,
    unit_Y: Tensor,
    starts_Q: Tensor,
    documents: Packed,
    numbers: Callable[[Tensor], Tensor],
    lowest: float,
) -> Tensor:
    """Share documents among the cores, in blocks whose `numbers` stay in the cache; return scores [Q, N]."""
    from evalkit.kernels.cpu import simd_kernel

    panel_MDY = _panels(query_YD).numpy()
    starts_N = documents.starts_N
    out_NQ = torch.empty((len(starts_N) - 1, len(starts_Q) - 1))
    rows = BLOCK_BYTES // query_YD.element_size() // query_YD.shape[1]

    def score(begin: int, end: int) -> None:
        for first, behind in _blocks(starts_N, begin, end, rows=rows):
            simd_kernel.all_scores(
                numbers(documents.vectors_XD[starts_N[first] : starts_N[behind]]).numpy(),
                (starts_N[first : behind + 1] - starts_N[first]).numpy(),
                panel_MDY,
                starts_Q.numpy(),
                unit_Y.numpy(),
                lowest,
                out_NQ[first:behind].numpy(),
            )

    cores.map_ranges(score, cores.equal_ranges(starts_N[1:], cores=torch.get_num_threads()))
    return out_NQ.T


def _floats(vectors_XD: Tensor) -> Tensor:
    return _widened(vectors_XD.float())


def _pairs(vectors_XD: Tensor, scale: Tensor | float) -> Tensor:
    """Return rounded vectors, each pair of their numbers as one of 32 bits."""
    even_XD = functional.pad(vectors_XD, (0, vectors_XD.shape[1] % 2))
    return _widened(fixed_point.rounded(even_XD, scale).view(torch.int32))


def exact_scores(queries: Packed, documents: Packed, query_H: Tensor, document_H: Tensor) -> Tensor:
    """Return the exact MaxSim, rounded once to fp32 [H], of chosen (query, document) pairs.

    fp16 numbers are multiples of 2⁻²⁴, so products are multiples of 2⁻⁴⁸, and with unit vectors every partial sum is
    below 32 for up to 32 query vectors: float64 holds each of them without rounding. The result is then the same on
    every machine, in any order of the additions. For fp32 vectors or longer queries it is float64-accurate.
    """
    from evalkit.kernels.cpu import simd_kernel

    if not len(query_H):
        return torch.zeros(0)
    query_YD = _widened(queries.vectors_XD.double())
    turned = [query_LD.T.flatten() for query_LD in torch.split(query_YD, queries.starts_N.diff().tolist())]
    query_numbers, starts_Q = torch.cat(turned).numpy(), queries.starts_N.numpy()

    order_H = torch.argsort(document_H, stable=True)
    asked_H = query_H[order_H]
    chosen_C, pairs_C = torch.unique_consecutive(document_H[order_H], return_counts=True)
    pair_starts_C, lengths_C = _starts(pairs_C), documents.starts_N.diff()[chosen_C]
    starts_C = _starts(lengths_C)
    shift_C = documents.starts_N[chosen_C] - starts_C[:-1]
    vectors_C = _starts(queries.starts_N.diff()[asked_H])[pair_starts_C].diff()
    width = simd_kernel.panel_vectors(query_YD.element_size())
    panels = -(-int(vectors_C.max()) // width)
    sorted_H = torch.empty(len(query_H), dtype=torch.float64)

    def score(begin: int, end: int) -> None:
        panel_MDY = torch.zeros((panels, query_YD.shape[1], width), dtype=torch.float64)
        for first, behind in _blocks(starts_C, begin, end, rows=EXACT_BLOCK_BYTES // 8 // query_YD.shape[1]):
            row_X = torch.arange(int(starts_C[first]), int(starts_C[behind]))
            row_X += torch.repeat_interleave(shift_C[first:behind], lengths_C[first:behind])
            pairs = slice(int(pair_starts_C[first]), int(pair_starts_C[behind]))
            simd_kernel.pair_scores(
                _widened(documents.vectors_XD.index_select(0, row_X).float().double()).numpy(),
                (starts_C[first : behind + 1] - starts_C[first]).numpy(),
                query_numbers,
                starts_Q,
                asked_H[pairs].numpy(),
                (pair_starts_C[first : behind + 1] - pair_starts_C[first]).numpy(),
                panel_MDY.numpy(),
                sorted_H[pairs].numpy(),
            )

    cores.map_ranges(score, cores.equal_ranges((lengths_C * vectors_C).cumsum(0), cores=torch.get_num_threads()))
    out_H = torch.empty(len(query_H))
    out_H[order_H] = sorted_H.float()
    return out_H


def _starts(lengths_N: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths_N.cumsum(0)])


def _blocks(starts_N: Tensor, begin: int, end: int, *, rows: int) -> list[tuple[int, int]]:
    """Cut documents `begin` to `end` into blocks of at most some rows, or of one document that is longer alone."""
    blocks = []
    while begin < end:
        behind = int(torch.searchsorted(starts_N, int(starts_N[begin]) + rows, right=True)) - 1
        behind = min(max(behind, begin + 1), end)
        blocks.append((begin, behind))
        begin = behind
    return blocks


def _panels(query_YD: Tensor) -> Tensor:
    """Return query vectors, of widened numbers, in panels side by side [M, D, Y], the last filled up with zeros."""
    from evalkit.kernels.cpu import simd_kernel

    width = simd_kernel.panel_vectors(query_YD.element_size())
    filled_YD = functional.pad(query_YD, (0, 0, 0, -len(query_YD) % width))
    return filled_YD.view(-1, width, filled_YD.shape[1]).transpose(1, 2).contiguous()


def _widened(vectors_XD: Tensor) -> Tensor:
    """Fill vectors up with zeros, which add nothing, to a multiple of the numbers that the kernel takes at a time."""
    from evalkit.kernels.cpu import register_code

    missing = -vectors_XD.shape[1] % register_code.UNROLLED
    return functional.pad(vectors_XD, (0, missing)) if missing else vectors_XD.contiguous()
