# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy"]
# ///
"""MaxSim in plain torch, as it is often written, and measurements of the machine's ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peers.worker import Prepared, read_maxsim, serve
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64
"""Documents per einsum in the chunked variant."""
SQUARES = (2048, 3072)
KERNEL_SHAPE = (2048, 128, 4096)
"""The shape of one matrix product of the packed kernel: document vectors, dim 128, query vectors."""
COPIED_BYTES = 1 << 28


def maxsim(job: Mapping[str, Any]) -> Prepared:
    """Prepare `padded` (one einsum per query on all documents) or `chunked` (all queries on CHUNK documents each)."""
    query, documents, lengths_N = (torch.from_numpy(array) for array in read_maxsim(job))
    chunk = CHUNK if job["variant"] == "chunked" else len(lengths_N)
    texts = torch.split(documents, lengths_N.tolist())
    chunks = [_padded(texts[begin : begin + chunk]) for begin in range(0, len(texts), chunk)]
    step = len(query) if job["variant"] == "chunked" else 1

    def run(queries: int) -> Tensor:
        return torch.cat(
            [
                torch.cat([_scores(query[begin : begin + step], *part) for part in chunks], dim=1)
                for begin in range(0, queries, step)
            ]
        )

    return Prepared(lambda queries: run(queries)[:queries], array=Tensor.numpy)


def _padded(texts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    """Return documents padded to their longest [N, T, D], and which positions are padding [N, T], or None if none."""
    lengths_N = torch.tensor([len(text) for text in texts])
    longest = int(lengths_N.max())
    document_NTD = torch.stack([pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    padding_NT = torch.arange(longest) >= lengths_N.unsqueeze(1)
    return document_NTD, padding_NT if bool(padding_NT.any()) else None


def _scores(query_QLD: Tensor, document_NTD: Tensor, padding_NT: Tensor | None) -> Tensor:
    similarity_QNLT = torch.einsum("qld,ntd->qnlt", query_QLD, document_NTD)
    if padding_NT is not None:
        similarity_QNLT.masked_fill_(padding_NT[None, :, None, :], -torch.inf)
    return similarity_QNLT.amax(3).sum(2)


def ceilings(_job: Mapping[str, Any]) -> Prepared:
    """Prepare the ceilings: GEMM rates in fp32 and bf16 for the best square and the kernel's shape, and copy rate."""

    def run(_size: int) -> dict[str, float]:
        rates = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            squares = [_gemm_rate(size, size, size, dtype) for size in SQUARES]
            rates[f"{name} GEMM GFLOP/s"] = max(squares)
            rates[f"{name} GEMM GFLOP/s, {' x '.join(map(str, KERNEL_SHAPE))}"] = _gemm_rate(*KERNEL_SHAPE, dtype)
        source = torch.ones(COPIED_BYTES // 4)
        target = torch.empty_like(source)
        rates["copy GB/s"] = 2 * COPIED_BYTES / _best_s(lambda: target.copy_(source)) / 1e9
        return rates

    return Prepared(run, facts=lambda rates: {"ceilings": rates})


def _gemm_rate(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    return 2 * rows * inner * columns / _best_s(lambda: torch.mm(left, right, out=out)) / 1e9


def _best_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the shortest time of `repeats` calls, in seconds, after one warm-up call."""
    work()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    with torch.inference_mode():
        serve({"maxsim": maxsim, "ceilings": ceilings}, packages=("torch", "numpy"))
