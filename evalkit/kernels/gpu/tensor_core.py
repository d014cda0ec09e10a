"""Launch the Triton kernel: how a program cuts its work, by what fits and by one timing where that pays.

Shapes: Q queries, N documents, M query pieces of L = 32 vectors, D dim.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evalkit.kernels.gpu.pieces import GRAIN, QUERY_PIECE, Documents, dim_parts, query_pieces, query_sums
from evalkit.kernels.gpu.triton_kernel import maxsim
from evalkit.ragged import Ragged

WORTH_TIMING = 1e13
"""Operations from which it pays to time the tilings: some 30 ms of work against a second or two of compiling."""


class Tiling(NamedTuple):
    """How one program cuts its work."""

    rows: int
    """Document rows of a tile."""
    warps: int
    """Warps, and query pieces: each warp has one."""
    stages: int
    """Tiles that are loaded ahead, and the one at work."""

    def shared_bytes(self, dim: int) -> int:
        """Return the shared memory that queries and tiles take, with room for what the compiler adds."""
        return 2 * dim * (QUERY_PIECE * self.warps + self.rows * self.stages) + 1024


TILINGS = (Tiling(64, 8, 3), Tiling(128, 8, 2), Tiling(128, 4, 2), Tiling(64, 4, 3), Tiling(32, 4, 2))
"""In order of what is expected of them; the first that fits is taken where timing them does not pay."""
HOPPER_SHARED_BYTES = 232_448
"""Shared memory that one program may have on compute capability 9.0."""


def scores(queries: Ragged, documents: Documents, *, tiling: Tiling | None = None) -> Tensor:
    """Return MaxSim scores [Q, N] in fp32 on the documents' device; `kernels.tensor_core_bound` bounds their error.

    Queries are rounded to the documents' type, fp16 or bf16. `tiling` is chosen by `fastest` unless given.
    """
    device, dtype = documents.rows_RD.device, documents.rows_RD.dtype
    if tiling is None:
        count = int(((queries.offsets_N.diff() + QUERY_PIECE - 1) // QUERY_PIECE).sum())
        tiling = fastest(documents, query_count=count)
    laid = query_pieces(queries, multiple=tiling.warps, device=device, dtype=dtype)
    return query_sums(launch(laid.rows_MLD, documents, tiling), laid)


def launch(query_MLD: Tensor, documents: Documents, tiling: Tiling) -> Tensor:
    """Return the scores of query pieces [M, N]; M is a multiple of the tiling's warps."""
    out_MN = torch.empty((len(query_MLD), documents.total), device=query_MLD.device)
    dim = query_MLD.shape[2]
    dim0, dim1, dim2 = dim_parts(dim)
    rows_RD = documents.rows_RD
    if rows_RD.device.type == "cpu" and rows_RD.dtype == torch.bfloat16:
        # Triton's interpreter would multiply bf16 bit patterns as integers; fp32 holds the same numbers.
        query_MLD, rows_RD = query_MLD.float(), rows_RD.float()
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(out_MN):  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        maxsim[(len(query_MLD) // tiling.warps, len(documents.chunk_documents))](
            query_MLD,
            rows_RD,
            documents.ends,
            documents.chunk_grains,
            documents.chunk_documents,
            out_MN,
            out_MN.stride(0),
            dim=dim,
            dim0=dim0,
            dim1=dim1,
            dim2=dim2,
            rows=tiling.rows,
            piece=documents.piece,
            grain=GRAIN,
            warps=tiling.warps,
            stages=tiling.stages,
            num_warps=tiling.warps,
        )
    return out_MN


def tilings(dim: int, *, piece: int, shared_bytes: int = HOPPER_SHARED_BYTES) -> list[Tiling]:
    """Return the tilings that a dim and a piece admit, the most promising first."""
    return [
        tiling
        for tiling in TILINGS
        if 2 <= tiling.rows // piece <= 8 and tiling.shared_bytes(sum(dim_parts(dim))) <= shared_bytes
    ]


def fits(dim: int, device: torch.device, *, piece: int) -> bool:
    """Tell whether any tiling fits the device's shared memory: on Hopper, up to 512 numbers a vector do."""
    return bool(tilings(dim, piece=piece, shared_bytes=_shared_bytes(device)))


def fastest(documents: Documents, *, query_count: int, worth_timing: float = WORTH_TIMING) -> Tiling:
    """Return the tiling for some work: the fastest of those that fit by one timing per process, where that pays.

    `query_count` is that of query pieces; `worth_timing` the operations from which it pays.
    """
    rows_RD = documents.rows_RD
    dim, device = rows_RD.shape[1], rows_RD.device
    work = 2.0 * dim * len(rows_RD) * QUERY_PIECE * query_count
    if device.type != "cuda" or work < worth_timing:
        return tilings(dim, piece=documents.piece, shared_bytes=_shared_bytes(device))[0]
    key = (str(device), rows_RD.dtype, dim, documents.piece)
    if key not in _TIMED:
        _TIMED[key] = _timed(documents, query_count)
    return _TIMED[key]


_TIMED: dict[tuple[str, torch.dtype, int, int], Tiling] = {}


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    properties: Any = torch.cuda.get_device_properties(device)  # the stubs lack this attribute
    return int(properties.shared_memory_per_block_optin)


def _timed(documents: Documents, query_count: int) -> Tiling:
    """Time every tiling that fits on some of the chunks, three times each, and return the fastest."""
    dim, device = documents.rows_RD.shape[1], documents.rows_RD.device
    some = documents._replace(chunk_documents=documents.chunk_documents[: 32 * 1024 // max(query_count, 32)])
    count = -(-query_count // 8) * 8
    query_MLD = torch.randn((count, QUERY_PIECE, dim), device=device).to(documents.rows_RD.dtype)
    best: tuple[float, Tiling] | None = None
    for tiling in tilings(dim, piece=documents.piece, shared_bytes=_shared_bytes(device)):
        launch(query_MLD, some, tiling)
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(3):
            launch(query_MLD, some, tiling)
        torch.cuda.synchronize(device)
        took = time.perf_counter() - started
        if best is None or took < best[0]:
            best = (took, tiling)
    assert best is not None  # `fits` was asked before
    return best[1]
