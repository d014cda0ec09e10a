"""Exact search and encoding on one GPU: correctness first, then speed beside the card's own ceilings, in one run.

    PYTHONPATH=. python scripts/bench_gpu.py                 # results/bench/gpu/gpu.json and gpu.png, in 9 minutes
    PYTHONPATH=. python scripts/bench_gpu.py --smoke --out DIR   # every path at toy sizes, without a GPU: no figures

Needs Python 3.12, torch, transformers, triton, safetensors, einops and numpy alone; late-interaction-kernels,
flash-attn and matplotlib are used where they are installed (bench_gpu_plot.py draws later what it could not). Figures
are written as they are measured, so a run that is cut off keeps those it has; `--budget-s` bounds the run, and what did
not fit it is listed under "left out".

Operations are the useful ones: 2 · query vectors · document vectors · dim for a search, whatever a contender pads.
Weights and vectors are random: the arithmetic does not depend on them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.random_encoder import encoder_of, token_table
from torch import Tensor
from torch.nn.functional import normalize, pad

QUERY_VECTORS = 32
ENCODER_LAYER_FLOP = 2 * 12 * 1024 * 1024
"""Per token and layer of jina-colbert-v2: four products of 1024 by 1024, and two of 1024 by 4096."""
LAYERS = 24
TARGETS = {
    "search d=128 TFLOP/s": 350,
    "search times late-interaction-kernels": 2,
    "search d=96 time over d=128's": 0.8,
    "encoding tokens/s": 750_000,
    "encoding times padded arrival order": 3,
    "GPU busy share": 0.9,
}


@dataclass
class Bench:
    """What a section needs: device, sizes, time left, and the figures so far, saved with every new one."""

    device: torch.device
    smoke: bool
    out: Path
    budget_s: float
    started: float = field(default_factory=time.monotonic)
    figures: dict[str, Any] = field(default_factory=dict)
    reserved_s: float = 0.0
    """Kept for the sections behind this one."""

    def left_s(self) -> float:
        """Return the seconds left of the budget."""
        return self.budget_s - (time.monotonic() - self.started)

    def record(self, section: str, name: str, value: object) -> None:
        """Keep a figure, print it and save all."""
        self.figures.setdefault(section, {})[name] = value
        print(f"[{time.monotonic() - self.started:5.0f} s] {section}: {name}: {json.dumps(value)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / ".gpu.json.tmp"
        temporary.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.out / "gpu.json")

    def fits(self, what: str, needs_s: float) -> bool:
        """Tell whether the budget has some seconds left for a measurement; note it as left out where not."""
        if self.left_s() - self.reserved_s >= needs_s:
            return True
        self.figures.setdefault("left out", []).append(what)
        return False

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_s(self, run: Callable[[], object], *, least_s: float = 0.3, most: int = 50) -> float:
        """Return the median time of a call: one warm-up, then for `least_s` seconds, but 3 to `most` times."""
        run()
        self.synchronize()
        times: list[float] = []
        while len(times) < (1 if self.smoke else 3) or (sum(times) < least_s and len(times) < most):
            if self.smoke and times:
                break
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


# ---------------------------------------------------------------- inputs


def vectors(count: int, dim: int, device: torch.device, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return random unit vectors [count, dim]."""
    generator = torch.Generator(device).manual_seed(seed)
    parts = [
        normalize(torch.randn(min(1 << 20, count - begin), dim, device=device, generator=generator), dim=1).to(dtype)
        for begin in range(0, count, 1 << 20)
    ]
    return torch.cat(parts)


def passage_lengths(count: int, *, seed: int = 0) -> np.ndarray:
    """Return lengths like those of web passages: about 85 tokens on average, from 12 to 300."""
    drawn = np.random.default_rng(seed).lognormal(mean=4.35, sigma=0.42, size=count)
    return np.clip(drawn, 12, 300).astype(np.int64)


def document_lengths(kind: str, total: int) -> Tensor:
    """Return document lengths of about `total` vectors: all of one length, or ragged as passages are."""
    if kind == "ragged":
        return torch.from_numpy(passage_lengths(max(1, total // 85)))
    return torch.full((max(1, total // int(kind)),), int(kind), dtype=torch.int64)


# ---------------------------------------------------------------- correctness


def correctness(bench: Bench) -> None:
    """Check every GPU path; a False among these figures makes the run fail."""
    checks = (check_kernel, check_far_offsets, check_run_files, check_packed_attention, check_resident)
    for check in (*checks, check_elementwise):
        try:
            check(bench)
        except Exception as error:  # noqa: BLE001 (the other checks are still worth having)
            traceback.print_exc()
            bench.record("correctness", f"{check.__name__} ran", False)  # noqa: FBT003 (a figure)
            bench.record("errors", check.__name__, f"{type(error).__name__}: {str(error)[:500]}")


def check_kernel(bench: Bench) -> None:
    """Compare kernel scores with exact ones at every dim and type, at two dims in every tiling, and rescoring."""
    from evalkit.kernels.gpu import pieces, tensor_core
    from evalkit.maxsim import choice as kernels
    from evalkit.maxsim import rescore
    from evalkit.ragged import ragged

    generator = torch.Generator().manual_seed(0)
    count, queries_count = (12, 3) if bench.smoke else (300, 40)
    lengths = torch.randint(1, 40 if bench.smoke else 301, (count,), generator=generator)
    lengths[:4] = torch.tensor([1, 16, 17, 80])
    query_lengths = torch.randint(1, 71, (queries_count,), generator=generator)
    pairs = torch.cartesian_prod(torch.arange(queries_count), torch.arange(count))
    for dim in (128, 96) if bench.smoke else (128, 96, 64, 384, 48):
        for dtype in (torch.float16, torch.bfloat16):
            cpu = torch.device("cpu")
            queries = ragged(vectors(int(query_lengths.sum()), dim, cpu, seed=1, dtype=dtype), query_lengths)
            documents = ragged(vectors(int(lengths.sum()), dim, cpu, seed=2, dtype=dtype), lengths)
            there = documents._replace(rows_XD=documents.rows_XD.to(bench.device))
            bound = kernels.tensor_core_bound(queries, there, dtype=dtype).unsqueeze(1)
            exact = rescore.exact_scores(queries, there, pairs[:, 0], pairs[:, 1]).cpu()
            # bf16 products need more bits than float64 sums have: there the two may differ in a last bit.
            wanted = by_definition(queries, documents).flatten().float()
            same = torch.equal(exact, wanted) if dtype == torch.float16 else torch.allclose(exact, wanted, rtol=1e-6)
            worst, sound, repeatable = 0.0, True, True
            every = dtype == torch.float16 and dim in (128, 96)
            for piece in (8, 16, 32) if every else (16,):
                laid = pieces.document_pieces(there, piece=piece)
                for tiling in tensor_core.tilings(dim, piece=piece)[: None if every else 1]:
                    scores = tensor_core.scores(queries, laid, tiling=tiling)
                    repeatable &= torch.equal(scores, tensor_core.scores(queries, laid, tiling=tiling))
                    error = (scores.cpu().double() - wanted.view(queries_count, count).double()).abs()
                    worst = max(worst, float((error / bound).max()))
                    sound &= bool((error <= bound).all())
            name = f"d={dim} {str(dtype).removeprefix('torch.')}"
            facts = {"within the bound": sound, "largest error over bound": round(worst, 5), "repeatable": repeatable}
            bench.record("correctness", name, {**facts, "rescoring equals the CPU's": same})


def by_definition(queries: Any, documents: Any) -> Tensor:
    """Return every score in float64 [Q, N], document by document on the CPU."""
    query_YD = queries.rows_XD.double()
    bounds = pairwise(documents.offsets_N.tolist())
    best_NY = torch.stack([(documents.rows_XD[a:b].double() @ query_YD.T).amax(0) for a, b in bounds])
    return torch.stack([best_NY[:, a:b].sum(1) for a, b in pairwise(queries.offsets_N.tolist())])


def check_far_offsets(bench: Bench) -> None:
    """Score the last documents of a layout with more than 2³¹ numbers."""
    from evalkit.kernels.gpu import pieces, tensor_core
    from evalkit.maxsim import rescore
    from evalkit.ragged import ragged

    if bench.smoke:
        return
    lengths = torch.full(((1 << 31) // 128 // 128 + 64,), 128, dtype=torch.int64)
    documents = ragged(vectors(int(lengths.sum()), 128, bench.device, seed=3), lengths)
    queries = ragged(vectors(8 * QUERY_VECTORS, 128, torch.device("cpu"), seed=4), torch.full((8,), QUERY_VECTORS))
    laid = pieces.document_pieces(documents, piece=16)
    assert laid.rows_RD.numel() > 1 << 31
    scores = tensor_core.scores(queries, laid, tiling=tensor_core.TILINGS[0])
    last = torch.arange(len(lengths) - 32, len(lengths))
    pairs = torch.cartesian_prod(torch.arange(8), last)
    exact = rescore.exact_scores(queries, documents, pairs[:, 0], pairs[:, 1]).view(8, 32)
    bench.record("correctness", "offsets beyond 2^31", bool((scores[:, last] - exact).abs().max() < 1e-3))
    del documents, laid
    torch.cuda.empty_cache()


def check_run_files(bench: Bench) -> None:
    """Search a synthetic shard with many ties: the CPU and every kernel on the device must give the same hits."""
    from evalkit.ragged import ragged
    from evalkit.ranking import floors, no_hits
    from evalkit.run.search import search_shard
    from evalkit.storage.shard_files import ShardVectors

    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(5)
    count, queries_count = (20, 4) if bench.smoke else (3000, 60)
    pool = vectors(500, 128, cpu, seed=6)
    lengths = torch.from_numpy(passage_lengths(count))
    query_lengths = torch.full((queries_count,), QUERY_VECTORS)
    shard = ShardVectors(
        tuple(f"d{i:05d}" for i in range(count)),
        ragged(pool[torch.randint(0, 500, (int(lengths.sum()),), generator=generator)], lengths),
    )
    queries = ShardVectors(
        tuple(f"q{i}" for i in range(queries_count)),
        ragged(pool[torch.randint(0, 500, (int(query_lengths.sum()),), generator=generator)], query_lengths),
    )
    floor_Q = floors(no_hits(), queries=queries_count, depth=100)
    wanted = search_shard(queries, shard, depth=100, floor_Q=floor_Q, device=cpu, maxsim="packed")
    names = ["packed", "triton"]
    if importlib.util.find_spec("late_interaction_kernels"):
        names.append("late-interaction-kernels")
    for name in names:
        found = search_shard(queries, shard, depth=100, floor_Q=floor_Q, device=bench.device, maxsim=name)
        same = all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
        bench.record("correctness", f"hits of {name} equal the CPU's to the bit", same)


def check_packed_attention(bench: Bench) -> None:
    """Packed attention in half precision is no further from a padded fp32 pass than padded half precision is."""
    from evalkit.models.attention import choose

    half = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    table = token_table(passage_lengths(6 if bench.smoke else 200, seed=7), vocabulary=1000)
    reference = encoder_of(bench.device, layers=2, vocabulary=1000, dtype=torch.float32, attention="sdpa")
    padded = encoder_of(bench.device, layers=2, vocabulary=1000, dtype=half, attention="sdpa")
    wanted = encoded(reference, table, storage=torch.float32)
    padded_error = float((encoded(padded, table, storage=torch.float32) - wanted).norm(dim=1).max())
    for path in ("varlen", "flash"):
        chosen = choose(path, config=padded.config, device=bench.device)
        if chosen.path != path:
            bench.record("encoding", f"attention {path}", chosen.problem)
            continue
        packing = encoder_of(bench.device, layers=2, vocabulary=1000, dtype=half, attention=path)
        error = float((encoded(packing, table, storage=torch.float32) - wanted).norm(dim=1).max())
        facts = {"error": error, "padded error": padded_error, "sound": error <= 2 * padded_error + 1e-5}
        bench.record("correctness", f"packed attention ({path})", facts)


def check_resident(bench: Bench) -> None:
    """Vectors that stay on the device, some texts several times, and the hits among them: those that the host has."""
    from evalkit.ranking import floors, no_hits
    from evalkit.run.encode import encode
    from evalkit.run.search import search_shard

    dtype = torch.float32 if bench.device.type == "cpu" else torch.bfloat16
    encoder = encoder_of(bench.device, layers=2, vocabulary=1000, dtype=dtype, attention="sdpa", dims=(128, 64))
    some = token_table(passage_lengths(6 if bench.smoke else 300, seed=10), vocabulary=1000)
    texts = [*some, *some[:3]]
    ids = [f"d{place:03d}" for place in range(len(texts))]
    options = {"documents": True, "batch_tokens": 4096, "storage": torch.float16}
    host, device = (encode(ids, texts, encoder, **options, resident=resident) for resident in (False, True))
    same = all(torch.equal(device[dim].rows_XD.cpu(), of_dim.rows_XD) for dim, of_dim in host.items())
    there = all(of_dim.rows_XD.device.type == bench.device.type for of_dim in device.values())
    queries = encode(ids[:4], texts[:4], encoder, **{**options, "documents": False})
    floor_Q = floors(no_hits(), queries=4, depth=100)
    hits = [
        search_shard(queries[128], shards[128], depth=100, floor_Q=floor_Q, device=bench.device)
        for shards in (host, device)
    ]
    equal = all(np.array_equal(one, other) for one, other in zip(*hits, strict=True))
    facts = {"vectors equal the host's to the bit": same, "they stay": there, "hits equal": equal}
    bench.record("correctness", "vectors that stay on the device", facts)


def check_elementwise(bench: Bench) -> None:
    """RoPE, residuals and norms in one pass: no further from an fp32 pass than torch's own calls are."""
    from evalkit.models.elementwise import probe

    for name in ("float32", "float16", "bfloat16"):
        problem = probe(bench.device, name)
        facts = {"sound": not problem, **({"problem": problem} if problem else {})}
        bench.record("correctness", f"elementwise kernels on a few numbers, {name}", facts)
    table = token_table(passage_lengths(3 if bench.smoke else 200, seed=9), vocabulary=1000)

    def at_once(*, dtype: torch.dtype, fused: bool) -> Tensor:
        shape = {"layers": 2, "vocabulary": 1000, "attention": "sdpa"}
        encoder = encoder_of(bench.device, dtype=dtype, fused=fused, **shape)
        found: Tensor = encoder.vectors(encoder.batch(table, skip_punctuation=False))[128][0]
        return found

    wanted = at_once(dtype=torch.float32, fused=False)
    for dtype in (torch.float32,) if bench.smoke else (torch.float32, torch.bfloat16):
        own, of_torch = (
            float((at_once(dtype=dtype, fused=fused) - wanted).norm(dim=1).max()) for fused in (True, False)
        )
        facts = {"error": own, "error of torch's": of_torch, "sound": own <= 2 * of_torch + 1e-5}
        bench.record("correctness", f"elementwise kernels in a model, {str(dtype).removeprefix('torch.')}", facts)


# ---------------------------------------------------------------- ceilings


def ceilings(bench: Bench) -> None:
    """Measure the card's own rates, on random data: large matrix products and a copy."""
    size = 256 if bench.smoke else 8192
    for dtype in (torch.bfloat16, torch.float16):
        one, other = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        took = bench.median_s(lambda one=one, other=other: one @ other, least_s=1.0, most=200)
        name = f"{str(dtype).removeprefix('torch.')} GEMM TFLOP/s"
        bench.record("ceilings", name, round(2 * size**3 / took / 1e12, 1))
    source = torch.empty(1 << (20 if bench.smoke else 32), dtype=torch.uint8, device=bench.device).random_(0, 255)
    target = torch.empty_like(source)
    took = bench.median_s(lambda: target.copy_(source))
    bench.record("ceilings", "copy GB/s, read and written", round(2 * len(source) / took / 1e9))


# ---------------------------------------------------------------- search


def search(bench: Bench) -> None:
    """Exact scores of 256 queries at d = 128, 96 and 64 over documents of 80, 300 and ragged lengths."""
    queries_count = 8 if bench.smoke else 256
    total = 400 if bench.smoke else 2_000_000
    for kind in ("300", "80", "ragged"):
        for dim in (128, 96, 64):
            if bench.fits(f"search d={dim} Ld={kind}", 25):
                measure_search(bench, dim, kind, queries_count, total)
    if bench.fits("search end to end", 20):
        whole_search(bench, queries_count, total)


def measure_search(bench: Bench, dim: int, kind: str, queries_count: int, total: int) -> None:
    """Time evalkit's kernel, each way of cutting it, and the others on one set of inputs."""
    from evalkit.kernels.gpu import pieces, tensor_core
    from evalkit.ragged import ragged

    lengths = document_lengths(kind, total)
    documents = ragged(vectors(int(lengths.sum()), dim, bench.device, seed=8), lengths)
    query_lengths = torch.full((queries_count,), QUERY_VECTORS)
    query_YD = vectors(queries_count * QUERY_VECTORS, dim, bench.device, seed=9)
    queries = ragged(query_YD, query_lengths)
    work = 2.0 * len(query_YD) * len(documents.rows_XD) * dim
    ceiling = bench.figures.get("ceilings", {}).get("float16 GEMM TFLOP/s")
    section = f"search d={dim} Ld={kind}"

    def report(name: str, run: Callable[[], object]) -> float:
        took = bench.median_s(run)
        rate = work / took / 1e12
        share = round(rate / ceiling, 3) if ceiling else None
        bench.record(section, name, {"ms": round(took * 1e3, 3), "TFLOP/s": round(rate, 3), "share of GEMM": share})
        return took

    ours_s = 0.0
    for piece in (8, 16):
        laid = pieces.document_pieces(documents, piece=piece)
        if piece == 16:
            took = bench.median_s(lambda: pieces.document_pieces(documents, piece=16))
            bench.record(section, "laying documents out, once a shard, ms", round(took * 1e3, 3))
            best = tensor_core.fastest(laid, query_count=queries_count, worth_timing=0)
            run = functools.partial(tensor_core.scores, queries, laid, tiling=best)
            ours_s = report("evalkit", run)
            bench.record(section, "tiling of evalkit", {**best._asdict(), "piece": 16})
        if dim != 128 or bench.smoke or not bench.fits(f"{section} tilings, pieces of {piece}", 15):
            continue
        for tiling in tensor_core.tilings(dim, piece=piece):
            name = f"rows {tiling.rows}, warps {tiling.warps}, stages {tiling.stages}, piece {piece}"
            report(name, lambda tiling=tiling, laid=laid: tensor_core.scores(queries, laid, tiling=tiling))
    for name, run in others(bench, query_YD, documents, kind, dim).items():
        if bench.fits(f"{section} {name}", 15):
            try:
                took = report(name, run)
            except Exception as error:  # noqa: BLE001 (another library's failure is a finding, not ours)
                bench.record(section, name, {"failed": f"{type(error).__name__}: {str(error)[:200]}"})
                continue
            bench.record(section, f"evalkit is times {name}", round(took / ours_s, 2))


def others(bench: Bench, query_YD: Tensor, documents: Any, kind: str, dim: int) -> dict[str, Callable[[], object]]:
    """Return the other ways: einsum over padded documents, and late-interaction-kernels where it is installed."""
    lengths = documents.offsets_N.diff()
    longest = int(lengths.max())
    starts = documents.offsets_N[:-1].to(bench.device)
    step = torch.arange(longest, device=bench.device)
    row = starts.unsqueeze(1) + torch.minimum(step, lengths.to(bench.device).unsqueeze(1) - 1)
    document_NTD = documents.rows_XD[row]  # padded by repeating the last vector, which spares einsum its mask
    query_QLD = query_YD.view(-1, QUERY_VECTORS, dim)
    # The product of one call is at most 4 GiB.
    each = max(1, (1 << 31) // (len(query_YD) * longest))

    def einsum() -> Tensor:
        return torch.cat(
            [
                torch.einsum("qld,ntd->qnlt", query_QLD, part).amax(3).float().sum(2)
                for part in document_NTD.split(each)
            ],
            dim=1,
        )

    found: dict[str, Callable[[], object]] = {"torch einsum, padded, fp16 scores": einsum}
    if importlib.util.find_spec("late_interaction_kernels") and bench.device.type == "cuda":
        from late_interaction_kernels import maxsim

        from evalkit.maxsim import choice as kernels
        from evalkit.ragged import ragged

        mask = None if kind != "ragged" else step.unsqueeze(0) < lengths.to(bench.device).unsqueeze(1)
        # It counts numbers in 32 bits.
        many = kernels.ELEMENT_LIMIT // (longest * dim)

        def padded() -> Tensor:
            masks = [None] * len(document_NTD) if mask is None else mask.split(many)
            parts = zip(document_NTD.split(many), masks, strict=False)
            return torch.cat([maxsim(query_QLD, part, d_mask=kept) for part, kept in parts], dim=1)

        found["late-interaction-kernels, padded"] = padded
        if kind == "ragged":
            bound = kernels.bind("late-interaction-kernels", documents, device=bench.device)

            queries = ragged(query_YD, torch.full((len(query_QLD),), QUERY_VECTORS))
            found["late-interaction-kernels, packed"] = lambda: bound.scores(queries)
    return found


def whole_search(bench: Bench, queries_count: int, total: int) -> None:
    """Time the exact search of one shard as a run has it: vectors from the host, bound, top 100, exact scores, ids."""
    from evalkit.ragged import ragged
    from evalkit.ranking import floors, no_hits
    from evalkit.run.search import search_shard
    from evalkit.storage.shard_files import ShardVectors

    cpu = torch.device("cpu")
    lengths = document_lengths("ragged", total)
    shard = ShardVectors(
        tuple(f"d{i}" for i in range(len(lengths))),
        ragged(vectors(int(lengths.sum()), 128, bench.device).cpu(), lengths),
    )
    query_lengths = torch.full((queries_count,), QUERY_VECTORS)
    queries = ShardVectors(
        tuple(f"q{i}" for i in range(queries_count)),
        ragged(vectors(int(query_lengths.sum()), 128, cpu, seed=1), query_lengths),
    )
    floor_Q = floors(no_hits(), queries=queries_count, depth=100)
    choice = "triton" if bench.smoke else "auto"

    def run() -> object:
        return search_shard(queries, shard, depth=100, floor_Q=floor_Q, device=bench.device, maxsim=choice)

    took = bench.median_s(run)
    rate = 2.0 * len(queries.rows_XD) * len(shard.rows_XD) * 128 / took / 1e12
    facts = {"s": round(took, 4), "TFLOP/s": round(rate, 2), "documents": len(lengths), "queries": queries_count}
    bench.record("search end to end", "one shard, exact top 100", facts)


# ---------------------------------------------------------------- encoding


def encoded(encoder: Any, table: Any, *, storage: torch.dtype, batch_tokens: int = 4096) -> Tensor:
    """Return the first dim's vectors of all texts, as evalkit encodes them."""
    from evalkit.run.encode import encode

    ids = [str(place) for place in range(len(table))]
    out = encode(ids, table, encoder, documents=True, batch_tokens=batch_tokens, storage=storage)
    return next(iter(out.values())).rows_XD


def encoding(bench: Bench) -> None:
    """Measure a full-size jina-colbert-v2 of random weights against its floor and against padded arrival order."""
    from evalkit.models import attention, elementwise

    layers, hidden, vocabulary = (1, 64, 1000) if bench.smoke else (LAYERS, 1024, 250_002)
    shape = {"layers": layers, "hidden": hidden, "vocabulary": vocabulary}
    dtype = torch.float32 if bench.smoke else torch.bfloat16
    lengths = passage_lengths(2 if bench.smoke else 30_000, seed=11)
    table = token_table(lengths, vocabulary=vocabulary)
    probe = encoder_of(bench.device, layers=1, vocabulary=100, dtype=dtype, attention="sdpa")
    path = attention.choose("varlen" if bench.smoke else "auto", config=probe.config, device=bench.device).path
    fused, problem = elementwise.choose("triton", config=probe.config, device=bench.device)
    attention_flop = 4 * 1024 * LAYERS * float((lengths.astype(float) ** 2).sum() / lengths.sum())
    per_token = ENCODER_LAYER_FLOP * LAYERS + attention_flop
    gemm = bench.figures.get("ceilings", {}).get("bfloat16 GEMM TFLOP/s")
    floor = None if bench.smoke or not gemm else gemm * 1e12 / per_token
    facts = {"passages": len(table), "mean tokens": round(float(lengths.mean()), 1)}
    bench.record("encoding", "inputs", {**facts, "MFLOP per token": round(per_token / 1e6, 1)})
    how = {"attention": path, "elementwise work": "Triton's kernels" if fused else problem}
    bench.record("encoding", "how", how)
    bench.record("encoding", "floor, tokens/s at the GEMM rate", floor and round(floor))

    def report(name: str, took: float, tokens: int) -> float:
        rate = tokens / took
        share = round(rate / floor, 3) if floor else None
        bench.record("encoding", name, {"tokens/s": round(rate), "share of floor": share, "s": round(took, 2)})
        return rate

    def timed(encoder: Any, texts: Any, batch_tokens: int) -> float:
        start = time.perf_counter()
        encoded(encoder, texts, storage=torch.float16, batch_tokens=batch_tokens)
        bench.synchronize()
        return time.perf_counter() - start

    own = {**shape, "dtype": dtype, "attention": path, "fused": fused}
    ours = encoder_of(bench.device, **own)
    some = table[: max(1, len(table) // 10)]
    timed(ours, some, 16_384)  # warm-up: libraries load, memory pools fill
    rates = {}
    for batch_tokens in (16_384, 32_768, 65_536):
        if bench.fits(f"encoding with {batch_tokens} tokens a batch", 20):
            took = timed(ours, table, batch_tokens)
            rates[batch_tokens] = report(f"evalkit, {batch_tokens} tokens a batch", took, int(lengths.sum()))
    chosen = max(rates, key=lambda size: rates[size], default=16_384)
    if fused and rates:
        unfused(bench, own, lambda encoder: timed(encoder, table, chosen), int(lengths.sum()) / rates[chosen])
    padded_rates(bench, table, shape, report, rates.get(chosen))
    if bench.fits("three dims in one pass", 20):
        three_dims(bench, own, ours, lambda encoder: timed(encoder, table, chosen))
    if bench.device.type == "cuda" and bench.fits("GPU busy share", 20):
        bench.record("encoding", "GPU busy share", busy_share(lambda: timed(ours, table[:10_000], chosen)))
    if not bench.smoke and bench.fits("encoding a longer slice", 30):
        passages = int(min(1_000_000, (bench.left_s() - 15) * rates.get(chosen, 1e5) / 85))
        long_lengths = passage_lengths(passages, seed=12)
        took = timed(ours, token_table(long_lengths, vocabulary=vocabulary), chosen)
        report(f"evalkit, {passages} passages", took, int(long_lengths.sum()))


def three_dims(bench: Bench, own: dict[str, Any], one: Any, timed: Callable[[Any], float]) -> None:
    """Time the same batches with the heads of three dims, and with one."""
    three = encoder_of(bench.device, **own, dims=(128, 96, 64))
    timed(three)
    bench.record("encoding", "three dims over one", round(timed(three) / timed(one), 3))


def unfused(bench: Bench, own: dict[str, Any], timed: Callable[[Any], float], ours_s: float) -> None:
    """Time the same batches with torch's own calls for RoPE, residuals and norms."""
    if not bench.fits("encoding with torch's elementwise calls", 20):
        return
    encoder = encoder_of(bench.device, **{**own, "fused": False})
    timed(encoder)
    took = timed(encoder)
    bench.record("encoding", "torch's elementwise calls", {"s": round(took, 2)})
    bench.record("encoding", "evalkit is times torch's elementwise calls", round(took / ours_s, 2))


def padded_rates(
    bench: Bench, table: Any, shape: dict[str, int], report: Callable[[str, float, int], float], ours: float | None
) -> None:
    """Time padded arrival order in half precision, its best, and in fp32, PyLate's default."""
    for dtype in (torch.float32,) if bench.smoke else (torch.bfloat16, torch.float32):
        name = f"padded arrival order, {str(dtype).removeprefix('torch.')}"
        if not bench.fits(f"encoding, {name}", 20):
            continue
        encoder = encoder_of(bench.device, **shape, dtype=dtype, attention="sdpa")
        few = table[: 8 if bench.smoke else 3200]
        arrival_order(encoder, few[:64])
        start = time.perf_counter()
        arrival_order(encoder, few)
        rate = report(name, time.perf_counter() - start, int(few.lengths_N.sum()))
        if ours:
            bench.record("encoding", f"evalkit is times {name}", round(ours / rate, 2))


@torch.inference_mode()
def arrival_order(encoder: Any, table: Any) -> list[Tensor]:
    """Encode as PyLate's defaults do, tokenising aside: 32 texts as they come, padded; mask and copy by document."""
    (head_DH,) = list(encoder.heads.values())[:1]
    out = []
    for begin in range(0, len(table), 32):
        texts = table[begin : begin + 32]
        width = int(texts.lengths_N.max())
        rows = [pad(torch.tensor(text.ids), (0, width - len(text.ids)), value=1) for text in texts]
        ids_BT = torch.stack(rows).to(encoder.device)
        mask_BT = torch.arange(width, device=encoder.device) < torch.from_numpy(texts.lengths_N).to(
            encoder.device
        ).unsqueeze(1)
        hidden_BTH = encoder.module(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        vectors_BTD = normalize((hidden_BTH @ head_DH.T).float(), dim=-1)
        out += [vectors_TD[kept_T].cpu() for vectors_TD, kept_T in zip(vectors_BTD, mask_BT, strict=True)]
    return out


def busy_share(run: Callable[[], object]) -> float | str:
    """Return the share of the time from the first to the last kernel in which one was running."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    if not spans:
        return "the profiler saw no kernels"
    busy, until = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return round(busy / (until - spans[0][0]), 3)


# ---------------------------------------------------------------- the run


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "correctness": correctness,
    "ceilings": ceilings,
    "search": search,
    "encoding": encoding,
}


SHARES = {"search": 0.35, "encoding": 0.35}
"""Parts of the budget that earlier sections leave to these."""


def machine(bench: Bench) -> dict[str, Any]:
    """Return what the figures were made with."""
    import triton

    facts: dict[str, Any] = {
        "command": " ".join(["python", "scripts/bench_gpu.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "installed": [name for name in ("late_interaction_kernels", "flash_attn") if importlib.util.find_spec(name)],
    }
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        facts |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return facts


def measured(bench: Bench) -> Iterator[tuple[str, object]]:
    """Yield what was measured for each target; None where the run did not reach it."""
    figures, encoding_ = bench.figures, bench.figures.get("encoding", {})
    searches = {name.removeprefix("search "): value for name, value in figures.items() if name.startswith("search d=")}
    rates = {name: value["evalkit"]["TFLOP/s"] for name, value in searches.items() if "evalkit" in value}
    times = {name: value["evalkit"]["ms"] for name, value in searches.items() if "evalkit" in value}
    peer = "evalkit is times late-interaction-kernels"
    busy = encoding_.get("GPU busy share")
    fastest = [value["tokens/s"] for name, value in encoding_.items() if name.startswith("evalkit, ")]
    padded = {name: value for name, value in encoding_.items() if name.startswith("evalkit is times padded")}
    narrower = {
        name: round(times[name] / times[name.replace("d=96", "d=128")], 3)
        for name in times
        if name.startswith("d=96") and name.replace("d=96", "d=128") in times
    }
    values = (
        {name: rate for name, rate in rates.items() if name.startswith("d=128")} or None,
        {
            f"{section}: {name.rpartition(', ')[2]}": value
            for section, entries in searches.items()
            for name, value in entries.items()
            if name.startswith(peer)
        }
        or None,
        narrower or None,
        max(fastest, default=None),
        padded or None,
        busy,
    )
    yield from zip(TARGETS, values, strict=True)


def failures(figures: object, path: str = "") -> Iterator[str]:
    """Yield the names of all checks that came out False."""
    if figures is False:
        yield path
    elif isinstance(figures, dict):
        for name, value in figures.items():
            yield from failures(value, f"{path} / {name}" if path else str(name))


def main() -> None:
    """Run the sections in order, each within what is left of the budget; exit 1 when a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "results/bench/gpu"))
    parser.add_argument("--budget-s", type=float, default=500.0)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--smoke", action="store_true", help="toy sizes on the CPU, in Triton's interpreter; no figures"
    )
    chosen = parser.parse_args()
    if chosen.smoke and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton reads the switch when it is first imported, which some imports above may have done.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})  # noqa: S606 (this very script)
    if not chosen.smoke and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; wanted one, or --smoke, which runs every path at toy sizes on the CPU")
    device = torch.device("cpu" if chosen.smoke else "cuda")
    if chosen.smoke:
        torch.set_num_threads(1)  # Triton's interpreter is for one thread
    bench = Bench(device=device, smoke=chosen.smoke, out=chosen.out, budget_s=chosen.budget_s)
    for name, value in machine(bench).items():
        bench.record("machine", name, value)
    broken = False
    for name in chosen.only:
        behind = chosen.only[chosen.only.index(name) + 1 :]
        bench.reserved_s = chosen.budget_s * sum(SHARES.get(section, 0.0) for section in behind)
        if not bench.fits(f"section {name}", 10):
            continue
        try:
            SECTIONS[name](bench)
        except Exception as error:  # noqa: BLE001 (the other sections' figures are still worth having)
            traceback.print_exc()
            bench.record("errors", name, f"{type(error).__name__}: {str(error)[:500]}")
            broken = True
        if device.type == "cuda":
            torch.cuda.empty_cache()
    failed = list(failures(bench.figures))
    bench.record("summary", "checks that failed", failed)
    bench.record("summary", "targets", {name: {"wanted": TARGETS[name], "measured": v} for name, v in measured(bench)})
    bench.record("summary", "s", round(time.monotonic() - bench.started))
    with suppress(ImportError):
        import bench_gpu_plot

        bench_gpu_plot.draw(chosen.out)
    sys.exit(1 if broken or failed else 0)


if __name__ == "__main__":
    main()
