"""The section `fused`: shards are encoded at three dims and searched while the next one is encoded, as in a run.

    PYTHONPATH=.:scripts python scripts/gpu/fused.py --out OUT [--budget-s 100]     # --smoke: toy sizes on a CPU

It writes OUT/fused.json and needs a CUDA device. prove.sh runs all sections.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from null_parts import cells_of, random_texts, task_of
from peers.random_encoder import Shape, encoder_of
from shared import Bench, busy_share, joules, run_section

from evalkit.models.encoder import Encoder

DIMS = (128, 96, 64)
PASSAGES = 1_000_000
"""Passages of the main measurement; the budget reduces their number, at the expected rate always."""
SHARD_PASSAGES = 47_000
"""About 4 million tokens, half a GPU run's shard, which doubles the share of the host's work per shard."""
SMALL_SHARDS = 6
"""Shards of a quarter of that, with and without keeping embeddings, which are written while the next is encoded."""


def fused(bench: Bench) -> None:
    """Time whole shards as in `evalkit run`, with and without keeping embeddings, and measure the GPU's busy share."""
    smoke = bench.smoke
    layers, hidden, vocabulary = (1, 64, 1000) if smoke else (24, 1024, 250_002)
    queries, passages, in_shard = (2, 4, 2) if smoke else (6_980, PASSAGES, SHARD_PASSAGES)
    dtype = torch.float32 if smoke else torch.bfloat16
    path: Literal["sdpa", "varlen", "flash"] = "varlen"
    if not smoke:
        from evalkit.config.compose import compose
        from evalkit.config.settings import EncoderConfig
        from evalkit.models import attention

        config = compose(["model=jina-colbert-v2", "model.dtype=bfloat16"]).model
        assert isinstance(config, EncoderConfig)
        path = attention.choose("auto", config=config, device=bench.device).path
    shape = Shape(layers=layers, hidden=hidden, vocabulary=vocabulary)
    encoder = encoder_of(bench.device, **shape, dims=DIMS, dtype=dtype, attention=path, fused=not smoke)
    small = in_shard // 4 + 1
    warm_s = shards(bench, encoder, "warm-up", [small], queries, keep="topk")
    if not warm_s:
        return
    most = 0.3 * bench.left_s() / (warm_s * in_shard / small)
    counts = [in_shard] * int(min(passages / in_shard, max(2, most)))
    shards(bench, encoder, "top-k alone is kept", counts, queries, keep="topk")
    if bench.fits("embeddings kept", 2.5 * SMALL_SHARDS * warm_s):
        few = [small] * (2 if smoke else SMALL_SHARDS)
        plain_s, kept_s = (
            shards(bench, encoder, f"small shards, {keep} kept", few, queries, keep=keep)
            for keep in ("topk", "embeddings")
        )
        if plain_s and kept_s:
            bench.record("fused", "embeddings kept, times top-k alone", round(kept_s / plain_s, 3))
    if bench.device.type == "cuda" and bench.fits("GPU busy share", 10):
        with bench.attempt("fused", "GPU busy share"):
            few = [small] * 4
            share = busy_share(lambda: shards(bench, encoder, "profiled", few, queries, keep="topk"))
            bench.record("fused", "GPU busy over four small shards", share)


def shards(bench: Bench, encoder: Encoder, name: str, counts: list[int], queries: int, *, keep: str) -> float | None:
    """Run shards with `counts` passages; return the seconds from the end of the queries' encoding to the last shard.

    Writing that continues after the last shard is recorded separately: with more shards it would overlap with them.
    """
    from evalkit.engines.local import map_shards
    from evalkit.ranking import no_hits
    from evalkit.run.background import Merger
    from evalkit.run.shard_step import vector_step

    folder = Path(tempfile.mkdtemp(prefix="evalkit-fused-"))
    lengths = [bench.passage_lengths(count, seed=count) for count in counts]
    words = [f"store.keep={keep}", *(["engine.maxsim=triton"] if bench.smoke else [])]
    task = task_of(folder, device=bench.device, lengths_by_shard=lengths, queries=queries, words=words)
    cells = cells_of(DIMS)
    best = {cell.run_id: no_hits() for cell in cells.values()}
    model = random_texts(encoder, lengths)
    found: float | None = None
    try:
        with bench.attempt("fused", name), vector_step(task, model, cells, best, lambda *_: None) as step:
            bench.synchronize()
            before_j, start = joules(bench.device), time.perf_counter()
            with Merger(best, depth=100, threaded=bench.device.type == "cuda") as merger:
                for hits in map_shards(step.run, task.survey.shards, ahead=step.ahead):
                    merger.add(hits)
            bench.synchronize()
            took = time.perf_counter() - start
            step.writer.wait()
            behind = time.perf_counter() - start - took
            after_j = joules(bench.device)
            tokens = int(sum(lengths_N.sum() for lengths_N in lengths))
            facts = {
                "passages": sum(counts),
                "shards": len(counts),
                "s": round(took, 2),
                "s, written behind": round(behind, 2),
                "tokens/s": round(tokens / took),
            }
            if before_j is not None and after_j is not None:
                facts["J per million tokens"] = round((after_j - before_j) / tokens * 1e6, 1)
            bench.record("fused", name, facts)
            found = took
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


if __name__ == "__main__":
    run_section("fused", fused)
