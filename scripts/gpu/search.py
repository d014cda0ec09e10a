"""The section `search`: evalkit's MaxSim kernel compared with the GEMM rate, einsum and another library.

    PYTHONPATH=.:scripts python scripts/gpu/search.py --out OUT [--budget-s 100]     # --smoke: toy sizes on a CPU

It writes OUT/search.json and needs a CUDA device. The GEMM rate comes from ceilings.json in OUT, if it
exists. prove.sh runs all sections.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from shared import QUERY_VECTORS, Bench, document_lengths, run_section, vectors
from torch import Tensor

PEER: Final = "late-interaction-kernels"


def search(bench: Bench) -> None:
    """Time 256 queries at three dims on three kinds of passages, other numbers of queries, whole shards; then peers.

    Peers come last, because the other library tunes itself for some seconds on each shape; that time must not use up
    the budget of evalkit's figures. Among peers the largest dim comes first.
    """
    total = 400 if bench.smoke else 2_000_000
    many = 8 if bench.smoke else 256
    shapes = [(kind, dim) for dim in (128, 96, 64) for kind in ("ragged", "300", "80")]
    if bench.smoke:
        shapes = [("ragged", 128), ("ragged", 96), ("80", 128), ("300", 64)]
    for count in (many, 1, 2) if bench.smoke else (many, 1, 16, 7000):
        for kind, dim in shapes:
            if (kind == "ragged" or count == many) and bench.fits(f"search d={dim} Ld={kind}, {count} queries", 4):
                with bench.attempt(f"search d={dim} Ld={kind} Q={count}", "section"):
                    Shape(bench, dim, kind, count, total).measure()
    for count in (2,) if bench.smoke else (256, 7000):
        if bench.fits(f"a whole shard, {count} queries", 8):
            with bench.attempt("search end to end", f"{count} queries"):
                whole_search(bench, count, total)
    if bench.fits("every tiling", 10):
        with bench.attempt("tilings", "section"):
            tilings(bench, many, total)
    for kind, dim in shapes:
        if bench.fits(f"peers at d={dim} Ld={kind}", 6):
            with bench.attempt(f"search d={dim} Ld={kind} Q={many}", "peers"):
                Shape(bench, dim, kind, many, total).beside()


def texts(bench: Bench, dim: int, kind: str, count: int, total: int) -> tuple[Any, Any]:
    """Return random queries and documents on the device."""
    from evalkit.ragged import ragged

    lengths = document_lengths(kind, total)
    documents = ragged(vectors(int(lengths.sum()), dim, bench.device, seed=8), lengths)
    query_YD = vectors(count * QUERY_VECTORS, dim, bench.device, seed=9)
    return ragged(query_YD, torch.full((count,), QUERY_VECTORS)), documents


class Shape:
    """One set of inputs, some of their scores in float64, and the group of their figures."""

    def __init__(self, bench: Bench, dim: int, kind: str, count: int, total: int) -> None:
        """Draw the inputs."""
        self.bench, self.dim, self.kind, self.count = bench, dim, kind, count
        self.queries, self.documents = texts(bench, dim, kind, count, total)
        self.group = f"search d={dim} Ld={kind} Q={count}"
        self.some = min(count, 8), min(len(self.documents.offsets_N) - 1, 64)
        self.wanted_QN = by_definition(self.queries, self.documents, *self.some)

    def report(self, name: str, run: Callable[[], Tensor], *, limit: float) -> float:
        """Compare some scores with float64, time the computation of all, and return the seconds."""
        some_Q, some_N = self.some
        error = float((run()[:some_Q, :some_N].cpu().double() - self.wanted_QN).abs().max())
        self.bench.check(self.group, name, error=error, limit=limit)
        took = self.bench.median_s(run)
        rate = 2.0 * len(self.queries.rows_XD) * len(self.documents.rows_XD) * self.dim / took / 1e12
        ceiling = self.bench.gemm_rate("float16")
        share = round(rate / ceiling, 3) if ceiling else None
        facts = {"ms": round(took * 1e3, 3), "TFLOP/s": round(rate, 3), "share of GEMM": share}
        self.bench.record(self.group, name, facts)
        return took

    def measure(self) -> None:
        """Time evalkit's kernel."""
        from evalkit.kernels.gpu import pieces, tensor_core
        from evalkit.maxsim import bounds

        bound_Q = bounds.tensor_core_bound(self.queries, self.documents, dtype=torch.float16)
        laid = pieces.document_pieces(self.documents, piece=16)
        took = self.bench.median_s(lambda: pieces.document_pieces(self.documents, piece=16))
        self.bench.record(self.group, "laying documents out, once a shard, ms", round(took * 1e3, 3))
        best = tensor_core.fastest(laid, query_count=self.count, worth_timing=0)
        self.bench.record(self.group, "tiling of evalkit", {**best._asdict(), "piece": 16})
        run = functools.partial(tensor_core.scores, self.queries, laid, tiling=best)
        self.report("evalkit", run, limit=float(bound_Q[: self.some[0]].max()))

    def beside(self) -> None:
        """Time the other contenders, and record how many times faster evalkit was."""
        ours = self.bench.figures.get(self.group, {}).get("evalkit", {}).get("ms")
        for name, run in others(self.bench, self.queries, self.documents, self.kind, self.dim).items():
            if self.bench.fits(f"{self.group} {name}", 5):
                with self.bench.attempt(self.group, name, ours=False):
                    # Scores may be fp16 or summed in another order; a real error would be larger than 1.
                    took = self.report(name, run, limit=0.1)
                    if ours:
                        self.bench.record(self.group, f"evalkit is times {name}", round(took * 1e3 / ours, 2))


def by_definition(queries: Any, documents: Any, some_Q: int, some_N: int) -> Tensor:
    """Return the first scores in float64, document by document on the CPU."""
    query_YD = queries.rows_XD[: some_Q * QUERY_VECTORS].double().cpu()
    spans = list(pairwise(documents.offsets_N[: some_N + 1].tolist()))
    document_XD = documents.rows_XD[: spans[-1][1]].double().cpu()
    best_NY = torch.stack([(document_XD[a:b] @ query_YD.T).amax(0) for a, b in spans])
    return best_NY.view(some_N, some_Q, QUERY_VECTORS).sum(2).T


def others(bench: Bench, queries: Any, documents: Any, kind: str, dim: int) -> dict[str, Callable[[], Tensor]]:
    """Return the other contenders: einsum over padded documents, and late-interaction-kernels if installed."""
    lengths = documents.offsets_N.diff()
    longest = int(lengths.max())
    begins = documents.offsets_N[:-1].to(bench.device)
    step = torch.arange(longest, device=bench.device)
    row = begins.unsqueeze(1) + torch.minimum(step, lengths.to(bench.device).unsqueeze(1) - 1)
    document_NTD = documents.rows_XD[row]  # padded with the last vector, so that einsum needs no mask
    query_QLD = queries.rows_XD.view(-1, QUERY_VECTORS, dim)
    each = max(1, (1 << 31) // (len(queries.rows_XD) * longest))  # the product of one call is at most 4 GiB

    def einsum() -> Tensor:
        return torch.cat(
            [
                torch.einsum("qld,ntd->qnlt", query_QLD, part).amax(3).float().sum(2)
                for part in document_NTD.split(each)
            ],
            dim=1,
        )

    found: dict[str, Callable[[], Tensor]] = {"torch einsum, padded, fp16 scores": einsum}
    if importlib.util.find_spec("late_interaction_kernels") and bench.device.type == "cuda":
        from late_interaction_kernels import maxsim

        from evalkit.maxsim import choice

        mask = None if kind != "ragged" else step.unsqueeze(0) < lengths.to(bench.device).unsqueeze(1)
        many = choice.ELEMENT_LIMIT // (longest * dim)  # it indexes elements with 32 bits

        def padded() -> Tensor:
            masks = [None] * len(document_NTD) if mask is None else mask.split(many)
            parts = zip(document_NTD.split(many), masks, strict=False)
            return torch.cat([maxsim(query_QLD, part, d_mask=kept) for part, kept in parts], dim=1)

        found[f"{PEER}, padded"] = padded
        if kind == "ragged":
            bound = choice.bind(PEER, documents, device=bench.device)
            found[f"{PEER}, packed"] = lambda: bound.scores(queries)
    return found


def tilings(bench: Bench, count: int, total: int) -> None:
    """Time every tiling of the kernel at dim 128 on ragged passages."""
    from evalkit.kernels.gpu import pieces, tensor_core

    queries, documents = texts(bench, 128, "ragged", count, total)
    work = 2.0 * len(queries.rows_XD) * len(documents.rows_XD) * 128
    for piece in (16, 8):
        laid = pieces.document_pieces(documents, piece=piece)
        for tiling in tensor_core.tilings(128, piece=piece)[: 1 if bench.smoke else None]:
            name = f"rows {tiling.rows}, warps {tiling.warps}, stages {tiling.stages}, piece {piece}"
            if bench.fits(f"tiling {name}", 3):
                with bench.attempt("tilings", name):
                    run = functools.partial(tensor_core.scores, queries, laid, tiling=tiling)
                    rate = work / bench.median_s(run) / 1e12
                    bench.record("tilings", name, {"TFLOP/s": round(rate, 3)})


def whole_search(bench: Bench, count: int, total: int) -> None:
    """Time the exact search of one shard as in a run: vectors from the host, bound, top 100, exact scores, ids."""
    from evalkit.ragged import ragged
    from evalkit.ranking import floors, no_hits
    from evalkit.run.search import prepare_queries, search_shard
    from evalkit.storage.shard_files import ShardVectors

    cpu = torch.device("cpu")
    lengths = document_lengths("ragged", total)
    rows_XD = vectors(int(lengths.sum()), 128, bench.device).cpu()
    shard = ShardVectors(tuple(f"d{i}" for i in range(len(lengths))), ragged(rows_XD, lengths))
    query_lengths = torch.full((count,), QUERY_VECTORS)
    queries = ShardVectors(
        tuple(f"q{i}" for i in range(count)), ragged(vectors(int(query_lengths.sum()), 128, cpu, seed=1), query_lengths)
    )
    ready = prepare_queries(queries, bench.device)
    maxsim: Literal["triton", "auto"] = "triton" if bench.smoke else "auto"
    search_once = functools.partial(search_shard, ready, shard, depth=100, device=bench.device, maxsim=maxsim)
    first_floor_Q = floors(no_hits(), queries=count, depth=100)
    hits = search_once(floor_Q=first_floor_Q)
    later_floor_Q = floors(hits, queries=count, depth=100)
    for name, floor_Q in (("first shard", first_floor_Q), ("later shard", later_floor_Q)):
        took = bench.median_s(functools.partial(search_once, floor_Q=floor_Q))
        rate = 2.0 * len(queries.vectors.rows_XD) * len(rows_XD) * 128 / took / 1e12
        facts = {"s": round(took, 4), "TFLOP/s": round(rate, 2), "documents": len(lengths)}
        bench.record("search end to end", f"{name}, {count} queries, exact top 100", facts)


if __name__ == "__main__":
    run_section("search", search)
