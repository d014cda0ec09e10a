"""Exact MaxSim side by side: evalkit's kernels, whoever else is installed, and the machine's own ceilings.

    python scripts/bench_maxsim.py --out results/bench/maxsim.json

One process, one set of inputs (queries of 32 vectors against ragged documents), every contender in turn, the best of
several rounds, GFLOP/s of useful work: 2 · query vectors · document vectors · dim. What is not installed is said to be
so. evalkit's figures are for the nominating product; `search` is the whole exact search of the top 100, rescoring
included, at either precision, and both give the same hits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize, pad

from evalkit.maxsim import packed
from evalkit.search import floors, no_hits, search_shard
from evalkit.store import ShardVectors


def best_s(run: Callable[[], object], rounds: int) -> float:
    """Return the shortest time of some rounds, after one that is not counted."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--longest", type=int, default=300, help="document lengths are uniform from 20 to this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    lengths = torch.randint(20, chosen.longest + 1, (chosen.documents,))
    query_YD = normalize(torch.randn(chosen.queries * 32, chosen.dim), dim=1).half()
    document_XD = normalize(torch.randn(int(lengths.sum()), chosen.dim), dim=1).half()
    queries = ShardVectors(tuple(f"q{i}" for i in range(chosen.queries)), torch.full((chosen.queries,), 32), query_YD)
    shard = ShardVectors(tuple(f"d{i}" for i in range(chosen.documents)), lengths, document_XD)
    query, documents = packed.pack(query_YD, queries.lengths_N), packed.pack(document_XD, lengths)
    work = 2 * len(query_YD) * len(document_XD) * chosen.dim
    open_Q = floors(no_hits(), queries=chosen.queries, depth=100)

    def search(precision: packed.Precision) -> object:
        return search_shard(queries, shard, depth=100, floor_Q=open_Q, device=torch.device("cpu"), precision=precision)

    contenders: dict[str, Callable[[], object]] = {
        "evalkit fp32": lambda: packed.scores(query, documents),
        "evalkit bf16": lambda: packed.scores(query, documents, precision="bfloat16"),
        "evalkit search fp32": lambda: search("float32"),
        "evalkit search bf16": lambda: search("bfloat16"),
        "torch padded einsum": padded_einsum(query_YD.float(), document_XD.float(), lengths, chosen.queries),
        **peers(query_YD.float(), document_XD.float(), lengths, chosen.queries),
    }
    square = torch.randn(2048, 2048)
    ceiling = 2 * 2048**3 / best_s(lambda: square @ square, chosen.rounds) / 1e9
    big = np.ones(1 << 26, dtype=np.uint8)
    copy = 2 * len(big) / best_s(big.copy, chosen.rounds) / 1e9
    rates = {name: work / best_s(run, chosen.rounds) / 1e9 for name, run in contenders.items()}
    figures = {
        "command": " ".join(["python", "scripts/bench_maxsim.py", *sys.argv[1:]]),
        "machine": {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "inputs": {
            "queries": chosen.queries,
            "documents": chosen.documents,
            "vectors": len(document_XD),
            "dim": chosen.dim,
        },
        "ceilings": {"fp32 GEMM GFLOP/s": round(ceiling), "copy GB/s": round(copy, 1)},
        "GFLOP/s": {name: round(rate, 1) for name, rate in rates.items()},
        "share of the fp32 ceiling": {name: round(rate / ceiling, 3) for name, rate in rates.items()},
        "evalkit fp32 is times": {name: round(rates["evalkit fp32"] / rate, 2) for name, rate in rates.items()},
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(f"{text}\n", encoding="utf-8")


def padded_einsum(
    query_YD: torch.Tensor, document_XD: torch.Tensor, lengths: torch.Tensor, queries: int
) -> Callable[[], object]:
    """Return the textbook way: documents padded to the longest, one einsum per query, padding masked with -inf."""
    texts = torch.split(document_XD, lengths.tolist())
    longest = int(lengths.max())
    document_NTD = torch.stack([pad(text, (0, 0, 0, longest - len(text))) for text in texts])
    padding_NT = torch.arange(longest) >= lengths.unsqueeze(1)

    def run() -> list[torch.Tensor]:
        return [
            torch.einsum("ld,ntd->nlt", query_LD, document_NTD)
            .masked_fill(padding_NT.unsqueeze(1), -torch.inf)
            .amax(2)
            .sum(1)
            for query_LD in query_YD.view(queries, 32, -1)
        ]

    return run


def peers(
    query_YD: torch.Tensor, document_XD: torch.Tensor, lengths: torch.Tensor, queries: int
) -> dict[str, Callable[[], object]]:
    """Return the other libraries that are installed, each called as its own documentation does."""
    found: dict[str, Callable[[], object]] = {}
    texts = list(torch.split(document_XD, lengths.tolist()))
    query_QLD = query_YD.view(queries, 32, -1)
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers.util import maxsim

        found["sentence-transformers maxsim"] = lambda: maxsim(list(query_QLD), texts)
    if importlib.util.find_spec("maxsim_cpu"):
        import maxsim_cpu

        arrays = [text.numpy() for text in texts]
        found["maxsim-cpu"] = lambda: [maxsim_cpu.maxsim_scores_variable(query.numpy(), arrays) for query in query_QLD]
    for name in ("sentence_transformers", "maxsim_cpu"):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and is left out", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
