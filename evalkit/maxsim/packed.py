"""MaxSim in fp32 with torch's matrix products, on any device: the plain path without a compiled kernel.

Shapes: Q queries, N documents, D dim; Y query vectors and X document vectors, concatenated; P documents of one block.

Document vectors are sorted by their document's length and split into blocks of equal size, even inside a document. Each
block is one matrix product, and its documents of equal length are one reduction. If a document continues in the next
block, the maximum over its first rows is carried over. No document is padded, and all products have one shape, except
those with the last queries: native libraries keep a plan per shape, which costs time and memory. On the CPU each core
computes its own blocks (`evalkit.kernels.cpu.cores`), small enough that the product is still in the core's cache when
it is reduced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from evalkit.kernels.cpu import cores
from evalkit.kernels.fp32 import full_precision
from evalkit.maxsim.bounds import Precision
from evalkit.ragged import Ragged

DOCUMENT_VECTORS = 1024
"""Document vectors per matrix product."""
QUERY_VECTORS = 1600
"""Most query vectors per matrix product: many, for few calls, but few enough that a core's product takes 6 MiB."""


def scores(queries: Ragged, documents: Ragged, *, precision: Precision = "float32") -> Tensor:
    """Return MaxSim scores [Q, N] in fp32, with the rounding error bound of `bounds.error_bound`.

    Every text must have at least one vector. `bfloat16` rounds the vectors only. Products and sums stay in fp32,
    because adding the maxima in bf16 was measured to cost up to 2.2 NDCG points.
    """
    device = documents.rows_XD.device
    query_YD = queries.rows_XD.to(device=device, dtype=torch.float32)
    query_blocks = list(_query_blocks(queries.offsets_N))
    query_DY = [query_YD[block.vectors].T.contiguous() for block in query_blocks]
    lengths_N = documents.offsets_N.diff()
    order_N = torch.argsort(lengths_N, stable=True)
    offsets_N, lengths_N = documents.offsets_N[:-1][order_N], lengths_N[order_N]
    sorted_NQ = torch.empty((len(lengths_N), len(queries.offsets_N) - 1), device=device)

    @torch.inference_mode()
    def score(begin: int, end: int) -> None:
        products = _Products(documents.rows_XD, query_blocks)
        carried_Y = torch.empty(len(query_YD), device=device)
        for rows_X, reductions in _document_blocks(offsets_N[begin:end], lengths_N[begin:end]):
            products.take(rows_X.to(device))
            within = slice(begin + reductions[0].first, begin + reductions[-1].first + reductions[-1].documents)
            for block, block_DY in zip(query_blocks, query_DY, strict=True):
                best_PY = _maxima(products.with_queries(block_DY), reductions)
                if reductions[0].continues:
                    torch.maximum(best_PY[0], carried_Y[block.vectors], out=best_PY[0])
                carried_Y[block.vectors] = best_PY[-1]
                # If the last document continues in the next block, that block overwrites its scores.
                sorted_NQ[within, block.queries] = _sums(best_PY, block)

    count = torch.get_num_threads() if device.type == "cpu" else 1
    with full_precision(device, rounded_to_bf16=precision == "bfloat16"):
        cores.map_ranges(score, cores.equal_ranges(lengths_N.cumsum(0), cores=count))
    out_QN = torch.empty_like(sorted_NQ.T)
    out_QN[:, order_N.to(device)] = sorted_NQ.T
    return out_QN


class _Products:
    """Computes the product of a block of documents with a block of queries in buffers that are allocated once."""

    def __init__(self, document_XD: Tensor, query_blocks: Sequence[_QueryBlock]) -> None:
        widest = max(block.vectors.stop - block.vectors.start for block in query_blocks)
        self._document_XD = document_XD
        self._taken_XD = document_XD.new_empty((DOCUMENT_VECTORS, document_XD.shape[1]))
        self._block_XD = torch.empty_like(self._taken_XD, dtype=torch.float32)
        self._product = torch.empty(DOCUMENT_VECTORS * widest, device=document_XD.device)

    def take(self, rows_X: Tensor) -> None:
        """Load the document vectors of a block, given the DOCUMENT_VECTORS row numbers of its rows."""
        torch.index_select(self._document_XD, 0, rows_X, out=self._taken_XD)
        self._block_XD.copy_(self._taken_XD)

    def with_queries(self, query_DY: Tensor) -> Tensor:
        """Return the dot products [X, Y] of the block with query vectors; the next call overwrites them."""
        similarity_XY = self._product[: DOCUMENT_VECTORS * query_DY.shape[1]].view(DOCUMENT_VECTORS, -1)
        return torch.mm(self._block_XD, query_DY, out=similarity_XY)


class _Reduction(NamedTuple):
    """Rows of a block that one reduction covers: whole documents of equal length, or some rows of one document."""

    first: int
    """Position of the first document when sorted by length."""
    documents: int
    length: int
    """Rows of each document."""
    continues: bool
    """Whether the document's first rows are in the previous block."""


def _document_blocks(offsets_N: Tensor, lengths_N: Tensor) -> Iterator[tuple[Tensor, list[_Reduction]]]:
    """Yield each block's row numbers and reductions, for documents sorted by length; the last block repeats a row."""
    ends_N = lengths_N.cumsum(0)
    sorted_ends, sorted_lengths = ends_N.tolist(), lengths_N.tolist()
    shift_N = offsets_N - (ends_N - lengths_N)
    document, done = 0, 0
    for begin in range(0, sorted_ends[-1], DOCUMENT_VECTORS):
        end = min(begin + DOCUMENT_VECTORS, sorted_ends[-1])
        position_X = torch.arange(begin, begin + DOCUMENT_VECTORS).clamp(max=end - 1)
        owner_X = torch.searchsorted(ends_N, position_X, right=True)
        reductions: list[_Reduction] = []
        row = begin
        while row < end:
            left = sorted_lengths[document] - done
            whole = left <= end - row
            length = left if whole else end - row
            last = reductions[-1] if reductions else None
            if last and whole and not last.continues and last.length == length:
                reductions[-1] = last._replace(documents=last.documents + 1)
            else:
                reductions.append(_Reduction(document, 1, length, done > 0))
            document, done = (document + 1, 0) if whole else (document, done + length)
            row += length
        yield position_X + shift_N[owner_X], reductions


def _maxima(similarity_XY: Tensor, reductions: Sequence[_Reduction]) -> Tensor:
    """Return the maximum over each document's rows [P, Y]."""
    best_PY = similarity_XY.new_empty((sum(reduction.documents for reduction in reductions), similarity_XY.shape[1]))
    begin = row = 0
    for reduction in reductions:
        end, row_end = begin + reduction.documents, row + reduction.documents * reduction.length
        # Reducing the middle axis of a row-major tensor is several times faster than reducing its last axis.
        rows_PRY = similarity_XY[row:row_end].view(reduction.documents, reduction.length, -1)
        torch.amax(rows_PRY, dim=1, out=best_PY[begin:end])
        begin, row = end, row_end
    return best_PY


class _QueryBlock(NamedTuple):
    """Consecutive queries of one matrix product: their positions, those of their vectors, and their lengths."""

    queries: slice
    vectors: slice
    lengths: tuple[int, ...]


def _query_blocks(offsets_Q: Tensor) -> Iterator[_QueryBlock]:
    """Group consecutive queries into blocks of at most QUERY_VECTORS vectors; a longer query is a block of its own."""
    edges = offsets_Q.tolist()
    begin = 0
    while begin < len(edges) - 1:
        end = begin + 1
        while end < len(edges) - 1 and edges[end + 1] - edges[begin] <= QUERY_VECTORS:
            end += 1
        lengths = tuple(after - before for before, after in pairwise(edges[begin : end + 1]))
        yield _QueryBlock(slice(begin, end), slice(edges[begin], edges[end]), lengths)
        begin = end


def _sums(best_PY: Tensor, block: _QueryBlock) -> Tensor:
    """Sum each query's maxima [P, Q]; for unequal lengths, multiply by a 0/1 matrix, which adds only exact zeros."""
    if len(set(block.lengths)) == 1:
        return best_PY.view(len(best_PY), -1, block.lengths[0]).sum(2)
    owner_YQ = torch.repeat_interleave(torch.eye(len(block.lengths)), torch.tensor(block.lengths), dim=0)
    return best_PY @ owner_YQ.to(best_PY.device)
