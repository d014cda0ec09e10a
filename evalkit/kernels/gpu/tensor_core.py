"""Launch the Triton kernel for MaxSim, and choose its tiling: the expected one, or for much work the fastest measured.

Shapes: Q queries, N documents, M query pieces of L = 32 vectors, D dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from evalkit.kernels.gpu.pieces import GRAIN, QUERY_PIECE, Documents, dim_parts, query_pieces, query_sums
from evalkit.kernels.gpu.triton_kernel import maxsim
from evalkit.kernels.trouble import first_line, is_out_of_memory, warn_once
from evalkit.ragged import Ragged

WORTH_TIMING = 1e13
"""Floating-point operations of all calls so far from which timing pays off: compiling the tilings takes a second."""
FEW_PIECES = 4
"""Up to this number of query pieces, a tiling of four warps is used: half or more of eight would have no piece."""


class Tiling(NamedTuple):
    """How one program divides its work."""

    rows: int
    """Document rows of a tile."""
    warps: int
    """Number of warps and of query pieces: each warp has one piece."""
    stages: int
    """Tiles in shared memory: the current one and those that are prefetched."""

    def shared_bytes(self, dim: int) -> int:
        """Return the bytes of shared memory for queries and tiles, with a margin for what the compiler adds."""
        return 2 * dim * (QUERY_PIECE * self.warps + self.rows * self.stages) + 1024


TILINGS = (
    Tiling(64, 8, 3),
    Tiling(128, 8, 3),
    Tiling(128, 8, 2),
    Tiling(128, 4, 2),
    Tiling(64, 4, 3),
    Tiling(32, 4, 2),
)
"""Sorted by expected speed; if timing does not pay off, `expected` returns the first suitable one.

With three stages, the copy of the next tile overlaps with the products of the current one. With two it overlaps less,
but two programs can share a multiprocessor.
"""
HOPPER_SHARED_BYTES = 232_448
"""Largest shared memory of one program on compute capability 9.0."""


def scores(queries: Ragged, documents: Documents, *, tiling: Tiling | None = None) -> Tensor:
    """Return MaxSim scores [Q, N] in fp32 on the documents' device, with the error bound of `tensor_core_bound`.

    Queries are rounded to the documents' type, fp16 or bf16. `tiling` is chosen by `fastest` unless given.
    """
    device, dtype = documents.rows_RD.device, documents.rows_RD.dtype
    if tiling is None:
        count = int(((queries.offsets_N.diff() + QUERY_PIECE - 1) // QUERY_PIECE).sum())
        tiling = fastest(documents, query_count=count)
    laid = query_pieces(queries, multiple=tiling.warps, device=device, dtype=dtype)
    return query_sums(launch(laid.rows_MLD, documents, tiling), laid)


def launch(query_MLD: Tensor, documents: Documents, tiling: Tiling) -> Tensor:
    """Return the scores of query pieces [M, N] in fp32; M is a multiple of the tiling's warps."""
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
    """Return the tilings that are valid for a dim and a piece, the most promising first."""
    return [
        tiling
        for tiling in TILINGS
        if 2 <= tiling.rows // piece <= 8 and tiling.shared_bytes(sum(dim_parts(dim))) <= shared_bytes
    ]


def fits(dim: int, device: torch.device, *, piece: int) -> bool:
    """Tell whether any tiling fits the device's shared memory; on Hopper one does for dims of up to 512."""
    return bool(tilings(dim, piece=piece, shared_bytes=shared_bytes_of(device)))


def fastest(documents: Documents, *, query_count: int, worth_timing: float = WORTH_TIMING) -> Tiling:
    """Return the tiling for these documents. As soon as it pays off, tilings are timed once per process and kind.

    A kind is one device, type, dim, piece, and few or many queries. `query_count` is the number of query pieces.
    `worth_timing` applies to the operations of all calls of a kind, so that many small shards are enough too.
    """
    rows_RD = documents.rows_RD
    dim, device = rows_RD.shape[1], rows_RD.device
    fitting = tilings(dim, piece=documents.piece, shared_bytes=shared_bytes_of(device))
    guess = expected(fitting, query_count=query_count)
    if device.type != "cuda":
        return guess
    kind = (str(device), rows_RD.dtype, dim, documents.piece, query_count <= FEW_PIECES)
    if kind not in _TIMED:
        operations = _OPERATIONS.get(kind, 0.0) + 2.0 * dim * len(rows_RD) * QUERY_PIECE * query_count
        _OPERATIONS[kind] = operations
        if operations < worth_timing:
            return guess
        _TIMED[kind] = _time_tilings(documents, query_count, fitting)
    return _TIMED[kind]


def expected(fitting: Sequence[Tiling], *, query_count: int) -> Tiling:
    """Return the first tiling in which every warp has a query piece, else the first one with the fewest warps.

    >>> [expected(TILINGS, query_count=count).warps for count in (1, 4, 5, 256)]
    [4, 4, 8, 8]
    """
    fewest = min(tiling.warps for tiling in fitting)
    return next(tiling for tiling in fitting if query_count > FEW_PIECES or tiling.warps == fewest)


TIMED_CALLS = 5
"""How often a tiling is timed."""
_Kind: TypeAlias = tuple[str, torch.dtype, int, int, bool]
_TIMED: dict[_Kind, Tiling] = {}
"""The fastest tiling of each kind that was timed."""
_OPERATIONS: dict[_Kind, float] = {}
"""The operations of all calls of each kind so far."""


@functools.cache
def shared_bytes_of(device: torch.device) -> int:
    """Return the largest shared memory of one program on a device, in bytes; in Triton's interpreter, Hopper's."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    properties: Any = torch.cuda.get_device_properties(device)  # the stubs lack this attribute
    return int(properties.shared_memory_per_block_optin)


def _least_ms(call: Callable[[], object], device: torch.device) -> float:
    """Return the least time of a call in milliseconds, measured on the current stream.

    Another stream may be encoding the next shard: waiting for the whole device would measure that too, and the least of
    several times is the one that it disturbed least.
    """
    stream, least = torch.cuda.current_stream(device), math.inf
    for _ in range(TIMED_CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        least = min(least, start.elapsed_time(end))
    return least


def _time_tilings(documents: Documents, query_count: int, fitting: Sequence[Tiling]) -> Tiling:
    """Run each tiling on some of the chunks and return the fastest; those that fail are left out."""
    dim, device = documents.rows_RD.shape[1], documents.rows_RD.device
    sample = documents._replace(chunk_documents=documents.chunk_documents[: 32 * 1024 // max(query_count, 32)])
    count = -(-query_count // 8) * 8
    query_MLD = torch.randn((count, QUERY_PIECE, dim), device=device).to(documents.rows_RD.dtype)
    best: tuple[float, Tiling] | None = None
    for tiling in fitting:
        try:
            launch(query_MLD, sample, tiling)
            took = _least_ms(functools.partial(launch, query_MLD, sample, tiling), device)
        except Exception as error:  # compilers raise many kinds of errors
            if is_out_of_memory(error):
                raise
            warn_once(f"{tiling} cannot run here ({type(error).__name__}: {first_line(error)}): another is used")
            continue
        if best is None or took < best[0]:
            best = (took, tiling)
    return expected(fitting, query_count=query_count) if best is None else best[1]
