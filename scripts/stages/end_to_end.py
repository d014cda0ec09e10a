"""The stage `end-to-end`: whole evaluations, each in a new process, with peak memory and NDCG@10."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from peers.rounds import Contender, TreePeak, Worker, WorkerError

from stages.figures import conditions, save
from stages.inputs import DEPTH, MODEL, collection, count, peer_model, token_lengths
from stages.measuring import CEILINGS, LEFT_OUT, left_out


def end_to_end(chosen: argparse.Namespace, work: Path) -> None:
    """Evaluate the corpus with each contender in a new process; save the figures after each contender."""
    inputs = collection(chosen, work, default=None)
    path = chosen.out / "end-to-end.json"
    documents, tokens = count(inputs), int(token_lengths(inputs).sum())
    known = json.loads(path.read_text(encoding="utf-8"))["cases"]["end-to-end"] if path.exists() else None
    wanted = {"documents": documents, "tokens": tokens, "model": MODEL}
    kept = known["contenders"] if known and not chosen.force and known["inputs"] == wanted else {}
    job = {"stage": "end-to-end", "inputs": str(inputs), "depth": DEPTH}
    words = [f"model={MODEL}"]
    half = [*words, "model.dtype=bfloat16", "engine.nominate=bfloat16"]
    peers = {**job, **peer_model(), "variant": "float32"}
    contenders = (
        Contender("evalkit fp32", "evalkit", {**job, "words": words}),
        Contender("evalkit bf16", "evalkit", {**job, "words": half}, "bf16"),
        Contender("sentence-transformers fp32", "sentence-transformers", peers),
        Contender("sentence-transformers bf16", "sentence-transformers", {**peers, "variant": "bfloat16"}, "bf16"),
        Contender("pylate and fast-plaid fp32", "pylate", {**peers, "index": "fast-plaid"}),
        Contender("pylate and PLAID fp32", "pylate", {**peers, "index": "stanford"}),
    )
    missing: dict[str, str] = {}
    for contender in contenders:
        if left_out(contender, chosen):
            missing[contender.name] = LEFT_OUT
            continue
        if contender.name in kept:
            print(f"end-to-end: {contender.name} has its figures (--force measures it again)", flush=True)
            continue
        print(f"end-to-end: {contender.name}", flush=True)
        try:
            kept[contender.name] = evaluated(contender, chosen, work, inputs)
        except WorkerError as error:
            missing[contender.name] = str(error)
        ours = kept.get("evalkit fp32", {}).get("wall_s")
        case = {
            "inputs": wanted,
            "unit": "documents/s",
            "reference": "evalkit fp32",
            "contenders": {one.name: kept[one.name] for one in contenders if one.name in kept},
            "evalkit fp32 is times": {
                name: round(of["wall_s"] / ours, 3) for name, of in kept.items() if ours and name != "evalkit fp32"
            },
            "not measured": missing,
        }
        save(path, {"stage": "end-to-end", "conditions": conditions(os.getloadavg()), "cases": {"end-to-end": case}})


def evaluated(contender: Contender, chosen: argparse.Namespace, work: Path, inputs: Path) -> dict[str, Any]:
    """Return a contender's wall time from its start to its run file, its peak memory, and its NDCG@10.

    The machine's ceilings are measured just before, in a process that ends first. Raises WorkerError.
    """
    options = {"environments_dir": chosen.envs, "work": work, "limit_s": chosen.limit_s}
    with Worker(CEILINGS, **options) as worker:
        ceilings = {name: round(rate, 1) for name, rate in worker.round(1)["ceilings"].items()}
    run_file = work / f"{contender.name}.trec"
    job = {**contender.job, "run": str(run_file)}
    if job.get("index") == "stanford":  # its first index compiles C++ for minutes, once per environment
        with Worker(contender._replace(job={**job, "stage": "warm-up"}), **options) as worker:
            worker.round(min(200, count(inputs)))
    load = os.getloadavg()
    with Worker(contender._replace(job=job), **options) as worker:
        peak = TreePeak(worker.process_id)
        answer = worker.round(count(inputs))
        wall_s = time.perf_counter() - worker.started
        tree_mib = peak.stop()
        facts, last = worker.facts, worker.finish()
    score = Contender("score", "evalkit", {"stage": "score", "inputs": str(inputs), "run": str(run_file)})
    with Worker(score, **options) as worker:
        scored = {"ndcg@10": worker.round(1)["ndcg@10"]}
    round_s = answer.pop("seconds")
    return {
        "library": contender.library,
        "environment": facts,
        "load_average_before": [round(value, 2) for value in load],
        "rounds": 1,
        "ceilings": ceilings,
        "wall_s": round(wall_s, 2),
        "of_it_starting_s": round(wall_s - round_s, 2),
        **{name: round(value, 2) for name, value in answer.items()},
        "rate": round(count(inputs) / wall_s, 2),
        "peak_tree_mib": max(tree_mib, last.get("peak_mib", 0.0)),
        **scored,
    }
