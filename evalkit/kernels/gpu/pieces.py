"""The layout of vectors for a tiled kernel: documents in pieces of 8 or 16 rows, queries in pieces of 32, no masks.

Shapes: Q queries, N documents, X vectors, concatenated, R rows of the layout, D dim; C chunks, M query pieces of L = 32
vectors, Y query vectors, concatenated.

A document fills whole pieces: its last vector is repeated up to the next multiple of the piece, which does not change a
maximum. On average that adds 3.5 rows per document (pieces of 8) or 7.5 (of 16); padding 85-vector documents to 128
would add 43. A query is filled up with zero vectors, whose maxima are 0, so its sum does not change either. So the
kernel needs no mask, and all its loads are contiguous. A chunk consists of whole documents; one program processes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from evalkit.ragged import Ragged, offsets

GRAIN = 128
"""Rows of the largest tile; every chunk is filled up to a multiple of it."""
CHUNK_ROWS = 4096
"""Approximate rows of a chunk. A program loads its 256 query vectors once per chunk: 6 % of all its loads."""
LEAST_CHUNK_ROWS = 512
"""Fewest rows of a chunk, for small shards; with 256, loading the queries would take as long as loading the rows."""
CHUNKS_WANTED = 264
"""Chunks that occupy a Hopper GPU: two programs for each of its 132 multiprocessors, if each processes all queries."""
QUERY_PIECE = 32
"""Vectors of a query piece: ColBERT's query length, and two 16-row slabs of a tensor-core instruction."""
DIM_PARTS = 3
"""The kernel splits a dim into at most this number of powers of two: 96 is 64 + 32, so it is not padded to 128."""


class Documents(NamedTuple):
    """A shard's documents on a device, in pieces."""

    rows_RD: Tensor
    ends: Tensor
    """For each GRAIN of rows, one int32 whose bit i says that a document ends with piece i."""
    chunk_grains: Tensor
    """Offsets of the chunks, in grains; C + 1 entries, int64."""
    chunk_documents: Tensor
    """First document of each chunk; int64."""
    piece: int
    """Rows of a piece."""
    total: int
    """Number of documents."""


class Queries(NamedTuple):
    """Queries on a device, in pieces."""

    rows_MLD: Tensor
    first_Q: Tensor
    """Each query's first piece; on the CPU."""
    pieces_Q: Tensor
    """The number of pieces of each query; on the CPU."""


def document_pieces(documents: Ragged, *, piece: int) -> Documents:
    """Lay documents out in pieces of 8, 16 or 32 rows, on the device of their vectors."""
    device = documents.rows_XD.device
    lengths_N = documents.offsets_N.diff()
    pieces_N = (lengths_N + piece - 1) // piece
    ends_N = pieces_N.cumsum(0)
    begins_N = ends_N - pieces_N
    # A document belongs to the chunk in whose rows it begins; a long document makes its chunk longer. Chunks in which
    # no document begins are removed.
    slot_N = begins_N * piece // chunk_rows(int(ends_N[-1]) * piece)
    is_first_N = torch.ones_like(slot_N, dtype=torch.bool)
    is_first_N[1:] = slot_N[1:] != slot_N[:-1]
    chunk_documents = is_first_N.nonzero().flatten()
    chunk_of_N = is_first_N.long().cumsum(0) - 1
    chunk_begins_C = begins_N[chunk_documents]
    chunk_pieces_C = torch.cat([chunk_begins_C[1:], ends_N[-1:]]) - chunk_begins_C
    grains_C = (chunk_pieces_C * piece + GRAIN - 1) // GRAIN
    chunk_grains = offsets(grains_C)
    row_N = chunk_grains[:-1][chunk_of_N] * GRAIN + (begins_N - chunk_begins_C[chunk_of_N]) * piece
    last_piece_N = row_N // piece + pieces_N - 1
    per_grain = GRAIN // piece
    ends = np.zeros(int(chunk_grains[-1]), dtype=np.int32)
    np.bitwise_or.at(ends, (last_piece_N // per_grain).numpy(), (1 << (last_piece_N % per_grain)).int().numpy())
    vector_R = _vectors_of_rows(row_N.to(device), documents.offsets_N.to(device), int(chunk_grains[-1]) * GRAIN)
    rows_RD = _widened(documents.rows_XD)[vector_R] if len(vector_R) else documents.rows_XD
    return Documents(
        rows_RD.contiguous(),
        torch.from_numpy(ends).to(device),
        chunk_grains.to(device),
        chunk_documents.to(device),
        piece,
        len(lengths_N),
    )


def chunk_rows(rows: int) -> int:
    """Return the rows of a chunk, given those of the shard. A small shard has smaller chunks, to occupy the whole GPU.

    >>> chunk_rows(8_000_000), chunk_rows(600_000), chunk_rows(1_000)
    (4096, 2048, 512)
    """
    size = CHUNK_ROWS
    while size > LEAST_CHUNK_ROWS and rows < size * CHUNKS_WANTED:
        size //= 2
    return size


def _vectors_of_rows(row_N: Tensor, offsets_N: Tensor, count: int) -> Tensor:
    """Return for each of `count` rows of the layout the index of its vector [R], given each document's first row."""
    row_R = torch.arange(count, device=row_N.device)
    owner_R = torch.searchsorted(row_N, row_R, right=True) - 1
    return torch.minimum(offsets_N[owner_R] + row_R - row_N[owner_R], offsets_N[owner_R + 1] - 1)


def query_pieces(queries: Ragged, *, multiple: int, device: torch.device, dtype: torch.dtype) -> Queries:
    """Lay queries out in pieces [M, 32, D], filled up with zero vectors; M is a multiple of `multiple`."""
    lengths_Q = queries.offsets_N.diff()
    pieces_Q = (lengths_Q + QUERY_PIECE - 1) // QUERY_PIECE
    first_Q = pieces_Q.cumsum(0) - pieces_Q
    count = -(-int(pieces_Q.sum()) // multiple) * multiple
    vectors_YD = _widened(queries.rows_XD.to(device=device, dtype=dtype))
    shift_Q = first_Q * QUERY_PIECE - queries.offsets_N[:-1]
    row_Y = torch.arange(len(vectors_YD)) + torch.repeat_interleave(shift_Q, lengths_Q)
    rows = vectors_YD.new_zeros((count * QUERY_PIECE, vectors_YD.shape[1]))
    rows[row_Y.to(device)] = vectors_YD
    return Queries(rows.view(count, QUERY_PIECE, -1), first_Q, pieces_Q)


def query_sums(partial_MN: Tensor, queries: Queries) -> Tensor:
    """Add the scores of each query's pieces [M, N] in a fixed order, so that the sums [Q, N] are reproducible."""
    if bool((queries.pieces_Q == 1).all()):
        return partial_MN[: len(queries.pieces_Q)]
    device = partial_MN.device
    out_QN = partial_MN[queries.first_Q.to(device)]
    for step in range(1, int(queries.pieces_Q.max())):
        longer_Q = (queries.pieces_Q > step).nonzero().flatten()
        out_QN[longer_Q.to(device)] += partial_MN[(queries.first_Q[longer_Q] + step).to(device)]
    return out_QN


def dim_parts(dim: int) -> tuple[int, int, int]:
    """Return the powers of two, each at least 16, whose sum is the computed dim; 0 if fewer than three are needed.

    Any other dim is filled up with zeros to the next dim with such a sum, which does not change dot products.

    >>> dim_parts(128), dim_parts(96), dim_parts(384), dim_parts(100)
    ((128, 0, 0), (64, 32, 0), (256, 128, 0), (64, 32, 16))
    """
    width = max(16, -(-dim // 16) * 16)
    while (width // 16).bit_count() > DIM_PARTS:
        width += 16
    parts = [1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1]
    first, second, third = [*parts, 0, 0][:DIM_PARTS]
    return first, second, third


def _widened(vectors_XD: Tensor) -> Tensor:
    """Fill vectors up with zeros to the computed dim."""
    missing = sum(dim_parts(vectors_XD.shape[1])) - vectors_XD.shape[1]
    return pad(vectors_XD, (0, missing)) if missing else vectors_XD
