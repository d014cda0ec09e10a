"""Launch the Triton kernel: how a program cuts its work, by what fits and by one timing where that pays.

Shapes: Q queries, N documents, M query pieces of L = 32 vectors, D dim.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from evalkit.kernels.gpu.pieces import GRAIN, QUERY_PIECE, Documents, dim_parts, query_pieces, query_sums
from evalkit.kernels.gpu.triton_kernel import maxsim
from evalkit.kernels.trouble import first_line, is_out_of_memory, say_once
from evalkit.ragged import Ragged

WORTH_TIMING = 1e13
"""Operations, of all calls so far, from which timing the tilings pays: 30 ms of work against a second of compiling."""
FEW_PIECES = 4
"""Up to here a tiling of eight warps would score query pieces that are not there."""


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


TILINGS = (
    Tiling(64, 8, 3),
    Tiling(128, 8, 3),
    Tiling(128, 8, 2),
    Tiling(128, 4, 2),
    Tiling(64, 4, 3),
    Tiling(32, 4, 2),
)
"""In order of what is expected of them; where timing them does not pay, `expected` takes the first that suits.

Three stages hide the copy of the next tile behind the products of the one at work; two hide less, but let two programs
share a multiprocessor.
"""
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
    return bool(tilings(dim, piece=piece, shared_bytes=shared_bytes_of(device)))


def fastest(documents: Documents, *, query_count: int, worth_timing: float = WORTH_TIMING) -> Tiling:
    """Return the tiling for some work: by one timing per process and kind of work, as soon as that pays.

    `query_count` is that of query pieces. `worth_timing` counts the operations of all calls of this kind, so that a run
    over many small shards times the tilings too.
    """
    rows_RD = documents.rows_RD
    dim, device = rows_RD.shape[1], rows_RD.device
    fitting = tilings(dim, piece=documents.piece, shared_bytes=shared_bytes_of(device))
    guess = expected(fitting, query_count=query_count)
    if device.type != "cuda":
        return guess
    kind = (str(device), rows_RD.dtype, dim, documents.piece, query_count <= FEW_PIECES)
    if kind not in _TIMED:
        work = _WORK.get(kind, 0.0) + 2.0 * dim * len(rows_RD) * QUERY_PIECE * query_count
        _WORK[kind] = work
        if work < worth_timing:
            return guess
        _TIMED[kind] = _timed(documents, query_count, fitting)
    return _TIMED[kind]


def expected(fitting: Sequence[Tiling], *, query_count: int) -> Tiling:
    """Return the first tiling whose warps all have a query piece, else the first of those with the fewest warps.

    >>> [expected(TILINGS, query_count=count).warps for count in (1, 4, 5, 256)]
    [4, 4, 8, 8]
    """
    fewest = min(tiling.warps for tiling in fitting)
    return next(tiling for tiling in fitting if query_count > FEW_PIECES or tiling.warps == fewest)


_Kind: TypeAlias = tuple[str, torch.dtype, int, int, bool]
_TIMED: dict[_Kind, Tiling] = {}
_WORK: dict[_Kind, float] = {}


@functools.cache
def shared_bytes_of(device: torch.device) -> int:
    """Return the shared memory that one program may have on a device; in the interpreter, on Hopper."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    properties: Any = torch.cuda.get_device_properties(device)  # the stubs lack this attribute
    return int(properties.shared_memory_per_block_optin)


def _timed(documents: Documents, query_count: int, fitting: Sequence[Tiling]) -> Tiling:
    """Time tilings on some of the chunks, three times each, and return the fastest; one that cannot run is left out."""
    dim, device = documents.rows_RD.shape[1], documents.rows_RD.device
    some = documents._replace(chunk_documents=documents.chunk_documents[: 32 * 1024 // max(query_count, 32)])
    count = -(-query_count // 8) * 8
    query_MLD = torch.randn((count, QUERY_PIECE, dim), device=device).to(documents.rows_RD.dtype)
    best: tuple[float, Tiling] | None = None
    for tiling in fitting:
        try:
            launch(query_MLD, some, tiling)
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            for _ in range(3):
                launch(query_MLD, some, tiling)
            torch.cuda.synchronize(device)
            took = time.perf_counter() - started
        except Exception as error:  # a compiler's failures have classes of their own
            if is_out_of_memory(error):
                raise
            say_once(f"{tiling} cannot run here ({type(error).__name__}: {first_line(error)}): another is used")
            continue
        if best is None or took < best[0]:
            best = (took, tiling)
    return expected(fitting, query_count=query_count) if best is None else best[1]
