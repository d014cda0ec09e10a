"""Measure the host's work for a shard on a GPU: model and kernel are replaced by ones that compute nothing.

    PYTHONPATH=.:scripts python scripts/bench_host_share.py --out results/bench/host-share.json

For shards of 125 thousand, 1 million and 8 million tokens it measures the CPU seconds to assemble batches and store
their vectors, to search at three dims, and to merge. It lists them with the seconds that a GPU would take for the same
tokens at an assumed rate. On a GPU all three run in threads of their own while the model computes, so the GPU can wait
only for the longest. CPU seconds are independent of other work on the machine. The figures go to --out. It takes less
than a minute and needs no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from null_parts import NullModel, RandomTexts, no_kernel, random_texts
from peers.random_encoder import encoder_of

DIMS = (128, 96, 64)
DEPTH = 100
GPU_TOKENS_PER_S = 750_000
"""The assumed rate of the GPU: what evalkit aims at on an H200, not a measurement."""


def main() -> None:
    """Measure each size and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench/host-share.json"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[125_000, 1_000_000, 8_000_000])
    parser.add_argument("--queries", type=int, default=6_980)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures = [measure(tokens, queries=chosen.queries) for tokens in chosen.tokens]
    for figure in figures:
        print(json.dumps(figure))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"assumed GPU tokens/s": GPU_TOKENS_PER_S, "queries": chosen.queries, "dims": DIMS, "depth": DEPTH}
    text = json.dumps({**facts, "shards": figures}, indent=2) + "\n"
    chosen.out.write_text(text, encoding="utf-8")


def measure(tokens: int, *, queries: int) -> dict[str, Any]:
    """Return the host's CPU seconds for a shard of about `tokens` tokens: the first of a run, and a later one."""
    from evalkit.ranking import floors, merge, merge_new, no_hits
    from evalkit.run.encode import Encoding, encode
    from evalkit.run.search import search_shard

    lengths_N = passage_lengths(tokens // 85)
    encoder = null_model(lengths_N)
    ids = tuple(f"d{place:09d}" for place in range(len(lengths_N)))
    table = encoder.tokenize_documents(ids)
    of_documents = Encoding(documents=True, batch_tokens=32_768, storage=torch.float16)
    shards, encode_s = timed(lambda: encode(ids, table, encoder, of_documents))
    asked = encode(
        [f"q{place}" for place in range(queries)],
        encoder.tokenize_queries([""] * queries),
        encoder,
        dataclasses.replace(of_documents, documents=False),
    )
    figure: dict[str, Any] = {"tokens": int(lengths_N.sum()), "documents": len(ids), "encode host s": encode_s}
    best = dict.fromkeys(DIMS, no_hits())
    for name, hits in (("first", DEPTH + 20), ("later", 1)):
        searched = merged = sorted_again = 0.0
        with no_kernel(hits=hits):
            for dim in DIMS:
                floor_Q = floors(no_hits(), queries=queries, depth=DEPTH)
                search = partial(search_shard, depth=DEPTH, floor_Q=floor_Q, device=torch.device("cpu"))
                found, took = timed(partial(search, asked[dim], shards[dim]))
                searched += took
                some = (
                    found._replace(**{key: getattr(found, key)[::20] for key in found._fields}) if hits == 1 else found
                )
                _, took = timed(partial(merge, [best[dim], some], depth=DEPTH))
                sorted_again += took
                best[dim], took = timed(partial(merge_new, best[dim], some, depth=DEPTH))
                merged += took
        figure[f"{name} shard, search host s"] = round(searched, 3)
        figure[f"{name} shard, merge s"] = round(merged, 3)
        figure[f"{name} shard, merge by sorting all s"] = round(sorted_again, 3)
    figure["GPU s at the assumed rate"] = round(figure["tokens"] / GPU_TOKENS_PER_S, 3)
    figure["encode host s"] = round(encode_s, 3)
    return figure


def null_model(lengths_N: np.ndarray) -> RandomTexts:
    """Return an encoder that computes nothing."""
    pool = {dim: torch.nn.functional.normalize(torch.randn(300_000, dim), dim=1) for dim in DIMS}
    small = encoder_of(
        torch.device("cpu"), layers=1, vocabulary=1000, dtype=torch.float32, attention="varlen", dims=DIMS
    )
    small = dataclasses.replace(small, attention="varlen")
    return random_texts(small, [lengths_N], kind=NullModel, pool=pool)


def passage_lengths(count: int) -> np.ndarray:
    """Return lengths like those of web passages: about 85 tokens on average, from 12 to 300."""
    drawn = np.random.default_rng(0).lognormal(mean=4.35, sigma=0.42, size=count)
    return np.clip(drawn, 12, 300).astype(np.int64)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a call's result and the CPU seconds that it took, summed over all threads."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
