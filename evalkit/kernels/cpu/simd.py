"""MaxSim by the vector-unit kernel: fp32 or 16-bit integers to nominate documents, float64 to score them exactly.

Shapes: Q queries, N documents, D dim; H pairs; C distinct documents of the pairs; Y query vectors and X document
vectors, concatenated; M panels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from evalkit.kernels.compile_cache import with_cache_folder
from evalkit.kernels.cpu import cores, fixed_point, registers
from evalkit.kernels.trouble import warn_once
from evalkit.ragged import Ragged, offsets, ragged

BLOCK_BYTES = 1 << 19
"""Size of the document vectors of one kernel call; they stay in a core's level-2 cache while all queries are scored."""
EXACT_BLOCK_BYTES = 1 << 21
"""The same for exact scores. A document is paired with few queries there, so fewer calls matter more than the cache."""


def usable() -> bool:
    """Tell whether the kernels can be used here; log once why not, unless the processor has no AVX2."""
    found = problem()
    if found:
        warn_once(found)
    return registers.available() and not found


@cache
def problem() -> str:
    """Compile the kernels, score a few texts and compare with torch; return why they cannot be used, or "".

    It is also "" on a processor without AVX2, for which there is no kernel.
    """
    return registers.trial_problem("the vector-unit kernels of MaxSim", _give_torchs_scores)


def _give_torchs_scores() -> bool:
    generator = torch.Generator().manual_seed(0)
    vectors_XD = functional.normalize(torch.randn(12, 20, generator=generator)).half()
    texts = ragged(vectors_XD, torch.tensor([1, 4, 7]))
    query_H, document_H = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    parts = torch.split(vectors_XD.double(), texts.lengths_N.tolist())
    wanted_H = torch.stack([(query @ document.T).amax(1).sum() for query in parts for document in parts]).float()
    exact = torch.equal(exact_scores(texts, texts, query_H, document_H), wanted_H)
    pairs = registers.multiplies_pairs()  # `nominate=auto` then uses int16, so that path is tested
    near_QN = (
        fixed_point_scores(texts, texts, scale_Y=torch.full((12,), 30_000.0), scale=30_000.0)
        if pairs
        else scores(texts, texts)
    )
    return exact and torch.allclose(near_QN.flatten(), wanted_H, atol=1e-2 if pairs else 1e-5)


@cache
def _kernel() -> Any:
    """Return the module of the kernels; they are compiled at their first call."""

    def load() -> Any:
        from evalkit.kernels.cpu import simd_kernel

        return simd_kernel

    return with_cache_folder(load)


def scores(queries: Ragged, documents: Ragged) -> Tensor:
    """Return MaxSim scores [Q, N] in fp32, with the rounding error bound of `bounds.error_bound`.

    Every text must have at least one vector, and vectors must be finite.
    """
    unit_Y = torch.ones(len(queries.rows_XD))
    return _all_scores(_floats(queries.rows_XD), unit_Y, queries.offsets_N, documents, _floats, -torch.inf)


def fixed_point_scores(queries: Ragged, documents: Ragged, *, scale_Y: Tensor, scale: float) -> Tensor:
    """Return MaxSim scores [Q, N] in fp32 of vectors rounded to 16-bit integers; sums are exact and rounded once.

    `scale_Y` holds the query vectors' scales and `scale` is the scale of all documents, both from `fixed_point.scales`.
    Texts must be as for `scores`.
    """
    query_YD = _pairs(queries.rows_XD, scale_Y.unsqueeze(1))
    lowest = torch.iinfo(query_YD.dtype).min
    unit_Y = 1 / (scale_Y.double() * scale)
    return _all_scores(query_YD, unit_Y, queries.offsets_N, documents, lambda part: _pairs(part, scale), lowest)


def _all_scores(
    query_YD: Tensor,
    unit_Y: Tensor,
    offsets_Q: Tensor,
    documents: Ragged,
    numbers: Callable[[Tensor], Tensor],
    lowest: float,
) -> Tensor:
    """Score documents on all cores, in blocks that stay in the cache; return [Q, N] in fp32.

    `numbers` converts a block's vectors to the type of `query_YD`, `unit_Y` is the factor of each query vector's
    maximum, and `lowest` is the value at which maxima start.
    """
    simd_kernel = _kernel()
    panel_MDY = _panels(query_YD).numpy()
    offsets_N = documents.offsets_N
    out_NQ = torch.empty((len(offsets_N) - 1, len(offsets_Q) - 1))
    rows = BLOCK_BYTES // query_YD.element_size() // query_YD.shape[1]

    def score(begin: int, end: int) -> None:
        for first, stop in _blocks(offsets_N, begin, end, rows=rows):
            simd_kernel.all_scores(
                numbers(documents.rows_XD[offsets_N[first] : offsets_N[stop]]).numpy(),
                (offsets_N[first : stop + 1] - offsets_N[first]).numpy(),
                panel_MDY,
                offsets_Q.numpy(),
                unit_Y.numpy(),
                lowest,
                out_NQ[first:stop].numpy(),
            )

    cores.map_ranges(score, cores.equal_ranges(offsets_N[1:], cores=torch.get_num_threads()))
    return out_NQ.T


def _floats(vectors_XD: Tensor) -> Tensor:
    """Return vectors in fp32, padded for the kernel."""
    return _widened(vectors_XD.float())


def _pairs(vectors_XD: Tensor, scale: Tensor | float) -> Tensor:
    """Return vectors rounded to 16-bit integers, with each pair of numbers viewed as one 32-bit integer."""
    even_XD = functional.pad(vectors_XD, (0, vectors_XD.shape[1] % 2))
    return _widened(fixed_point.rounded(even_XD, scale).view(torch.int32))


def exact_scores(queries: Ragged, documents: Ragged, query_H: Tensor, document_H: Tensor) -> Tensor:
    """Return the exact MaxSim, rounded once to fp32 [H], of chosen (query, document) pairs.

    fp16 numbers are multiples of 2⁻²⁴, so their products are multiples of 2⁻⁴⁸. With unit vectors and at most 32 query
    vectors, every partial sum is below 32, so float64 represents it exactly. The result is then identical on every
    machine and for any order of additions. For fp32 vectors or longer queries it has float64 accuracy.
    """
    if not len(query_H):
        return torch.zeros(0)
    simd_kernel = _kernel()
    query_YD = _widened(queries.rows_XD.double())
    transposed = [query_LD.T.flatten() for query_LD in torch.split(query_YD, queries.offsets_N.diff().tolist())]
    query_numbers, offsets_Q = torch.cat(transposed).numpy(), queries.offsets_N.numpy()

    # The kernel takes pairs grouped by document.
    order_H = torch.argsort(document_H, stable=True)
    sorted_query_H = query_H[order_H]
    chosen_C, pairs_C = torch.unique_consecutive(document_H[order_H], return_counts=True)
    pair_offsets_C, lengths_C = offsets(pairs_C), documents.offsets_N.diff()[chosen_C]
    offsets_C = offsets(lengths_C)
    shift_C = documents.offsets_N[chosen_C] - offsets_C[:-1]
    # The number of query vectors of each document's pairs.
    vectors_C = offsets(queries.offsets_N.diff()[sorted_query_H])[pair_offsets_C].diff()
    width = simd_kernel.panel_vectors(query_YD.element_size())
    panels = -(-int(vectors_C.max()) // width)
    sorted_H = torch.empty(len(query_H), dtype=torch.float64)

    def score(begin: int, end: int) -> None:
        panel_MDY = torch.zeros((panels, query_YD.shape[1], width), dtype=torch.float64)
        for first, stop in _blocks(offsets_C, begin, end, rows=EXACT_BLOCK_BYTES // 8 // query_YD.shape[1]):
            row_X = torch.arange(int(offsets_C[first]), int(offsets_C[stop]))
            row_X += torch.repeat_interleave(shift_C[first:stop], lengths_C[first:stop])
            pairs = slice(int(pair_offsets_C[first]), int(pair_offsets_C[stop]))
            simd_kernel.pair_scores(
                _widened(documents.rows_XD.index_select(0, row_X).float().double()).numpy(),
                (offsets_C[first : stop + 1] - offsets_C[first]).numpy(),
                query_numbers,
                offsets_Q,
                sorted_query_H[pairs].numpy(),
                (pair_offsets_C[first : stop + 1] - pair_offsets_C[first]).numpy(),
                panel_MDY.numpy(),
                sorted_H[pairs].numpy(),
            )

    cores.map_ranges(score, cores.equal_ranges((lengths_C * vectors_C).cumsum(0), cores=torch.get_num_threads()))
    out_H = torch.empty(len(query_H))
    out_H[order_H] = sorted_H.float()
    return out_H


def _blocks(offsets_N: Tensor, begin: int, end: int, *, rows: int) -> list[tuple[int, int]]:
    """Split documents `begin` to `end` into blocks of at most `rows` rows, or of one longer document."""
    blocks = []
    while begin < end:
        stop = int(torch.searchsorted(offsets_N, int(offsets_N[begin]) + rows, right=True)) - 1
        stop = min(max(stop, begin + 1), end)
        blocks.append((begin, stop))
        begin = stop
    return blocks


def _panels(query_YD: Tensor) -> Tensor:
    """Return widened query vectors in panels [M, D, Y], the last one padded with zeros."""
    width = _kernel().panel_vectors(query_YD.element_size())
    filled_YD = functional.pad(query_YD, (0, 0, 0, -len(query_YD) % width))
    return filled_YD.view(-1, width, filled_YD.shape[1]).transpose(1, 2).contiguous()


def _widened(vectors_XD: Tensor) -> Tensor:
    """Pad vectors with zeros, which do not change scores, to the multiple of UNROLLED that the kernel needs."""
    from evalkit.kernels.cpu import register_code

    missing = -vectors_XD.shape[1] % register_code.UNROLLED
    return functional.pad(vectors_XD, (0, missing)) if missing else vectors_XD.contiguous()
