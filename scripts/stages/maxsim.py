"""The stage `maxsim`: only MaxSim, compared with libraries and plain torch."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from peers.rounds import Contender

from stages.inputs import COMPARED, DEPTH, QUERY_VECTORS, exact_maxsim, write_maxsim
from stages.measuring import Case


def maxsim(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Return two cases: queries of 32 vectors with documents of 160 vectors each, and of 20 to 300."""
    cases = []
    for name in ("uniform", "ragged"):
        inputs = work / f"inputs-{name}"
        lengths_N = write_maxsim(inputs, name, queries=chosen.maxsim_queries, documents=chosen.maxsim_documents)
        per_query = 2.0 * QUERY_VECTORS * int(lengths_N.sum()) * 128
        job = {"stage": "maxsim", "inputs": str(inputs), "depth": DEPTH}
        contenders = (
            *(
                Contender(f"{name}{short}", "evalkit", {**job, "variant": variant, "precision": precision}, short)
                for variant, name in (("product", "evalkit "), ("search", "evalkit exact search, "))
                for short, precision in (("fp32", "float32"), ("int16", "int16"), ("bf16", "bfloat16"))
            ),
            Contender("sentence-transformers fp32", "sentence-transformers", {**job, "variant": "float32"}),
            Contender("sentence-transformers bf16", "sentence-transformers", {**job, "variant": "bfloat16"}, "bf16"),
            Contender("maxsim-cpu", "maxsim-cpu", job),
            Contender("late-interaction-kernels", "late-interaction-kernels", job),
            Contender("torch padded einsum", "torch", {**job, "variant": "padded"}),
            Contender("torch chunked einsum", "torch", {**job, "variant": "chunked"}),
        )
        cases.append(
            Case(
                name=name,
                contenders=contenders,
                reference="evalkit fp32",
                size=chosen.maxsim_queries,
                size_of="queries",
                unit="GFLOP/s",
                work=partial(gflop, per_query),
                flops=partial(flop, per_query),
                probe=min(COMPARED, chosen.maxsim_queries),
                budget_s=chosen.budget_s,
                exact=partial(exact_maxsim, inputs),
                inputs={"documents": len(lengths_N), "document vectors": int(lengths_N.sum()), "dim": 128},
            )
        )
    return cases


def flop(per_query: float, queries: int) -> float:
    """Return the floating-point operations of this many queries."""
    return queries * per_query


def gflop(per_query: float, queries: int) -> float:
    """Return the operations of this many queries in units of 1e9."""
    return queries * per_query / 1e9
