"""Run `evalkit run` on a GPU as a user does, and compare with the CPU: three precisions, a killed run, real weights.

    python scripts/gpu/runs.py --out DIR [--work DIR] [--carried .gpu] [--device cuda] [--documents 20000] [--warm]

Each command runs in its own process, up to six at a time. Their output goes to DIR/runs.log, and their figures to
DIR/runs.json as each ends. The exit code is 1 if one fails or a metric differs from the CPU's by more than LIMITS. It
is planned for 80 s on a GPU (README.md); --carried is the folder that carry.py wrote.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIMITS = {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
"""The largest allowed difference of a metric from the CPU's in fp32."""
DIMS = "dim=[128,96,64]"
SHARDS = "store.shard_tokens=125000"
PUBLISHED = 0.94357
"""NDCG@10 of MiniLM on XQuAD-en in mteb's results (results/published/mteb-ndcg.yaml)."""
AT_ONCE = 6


class Proof:
    """Runs commands and records their outcomes."""

    def __init__(self, out: Path, *, work: Path, device: str, documents: int, carried: Path, limit_s: float) -> None:
        """Take the folder of the figures, the folder of the runs, and the settings of the runs."""
        self.out, self.work, self.device, self.documents, self.carried = out, work, device, documents, carried
        self.limit_s = limit_s
        self.figures: dict[str, Any] = {}
        self.failed: list[str] = []
        self.lock = threading.Lock()
        out.mkdir(parents=True, exist_ok=True)

    def record(self, name: str, value: object, *, sound: bool = True) -> None:
        """Add a figure and save all figures; an unsound one is listed as failed."""
        with self.lock:
            self.figures[name] = value
            if not sound:
                self.failed.append(name)
            self.figures["failed"] = self.failed
            (self.out / "runs.json").write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")
        print(f"runs: {name}: {json.dumps(value)}{'' if sound else '   FAILED'}", flush=True)

    def place(self, name: str) -> Path:
        """Return the folder of a command, without commas and spaces, which have a meaning on the command line."""
        return self.work / re.sub(r"[^a-z0-9]+", "-", name.lower())

    def command(self, verb: str, place: str, words: Sequence[str]) -> list[str]:
        """Return an evalkit command that writes only below `place`."""
        folders = [f"results_dir={self.place(place) / 'results'}", f"cache_dir={self.place(place) / 'cache'}"]
        return [sys.executable, "-m", "evalkit", verb, *words, *folders]

    def run(self, name: str, words: Sequence[str], *, verb: str = "run") -> list[dict[str, Any]]:
        """Run a command and return the scores that it wrote; a failure is recorded with the end of its output."""
        start = time.monotonic()
        command = self.command(verb, name, words)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            self.record(name, {"problem": f"not done in {self.limit_s} s"}, sound=False)
            return []
        took = round(time.monotonic() - start, 1)
        with self.lock, (self.out / "runs.log").open("a", encoding="utf-8") as log:
            log.write(
                f"==== {name}: {' '.join(words)}: exit {done.returncode} in {took} s\n{done.stdout}{done.stderr}\n"
            )
        if done.returncode:
            self.record(name, {"exit": done.returncode, "said": (done.stdout + done.stderr)[-600:]}, sound=False)
            return []
        if verb != "run":
            self.record(
                name, {"s": took, "said": done.stdout.strip().splitlines()[-3:]}, sound="FAILED" not in done.stdout
            )
        found = sorted((self.place(name) / "results" / "runs").glob("*/scores.json"))
        return [{**json.loads(path.read_text()), "command_s": took, "path": str(path.parent)} for path in found]


def main() -> None:
    """Run all commands, the longest first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench/gpu"))
    parser.add_argument("--work", type=Path, help="folder of the runs; default: a new temporary folder")
    parser.add_argument("--carried", type=Path, default=Path(".gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--limit-s", type=float, default=90.0, help="time limit of one command")
    parser.add_argument("--warm", action="store_true", help="only compile the metrics' code into its cache")
    chosen = parser.parse_args()
    if chosen.warm:
        warm()
        return
    work = chosen.work or Path(tempfile.mkdtemp(prefix="evalkit-runs-"))
    facts = {"work": work, "device": chosen.device, "documents": chosen.documents, "carried": chosen.carried}
    proof = Proof(chosen.out, **facts, limit_s=chosen.limit_s)
    many = [f"dataset.demo.documents={chosen.documents}"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reference = pool.submit(proof.run, "many documents on the CPU", [DIMS, *many, "engine.device=cpu"])
        on_gpu = {
            dtype: pool.submit(
                proof.run,
                f"many documents in {dtype}",
                [DIMS, *many, f"engine.device={chosen.device}", f"model.dtype={dtype}", "store.keep=topk"],
            )
            for dtype in LIMITS
        }
        jobs: list[Future[Any]] = [
            pool.submit(guarded, proof, killed_and_resumed, many),
            pool.submit(guarded, proof, committed_demo),
            *(
                pool.submit(
                    proof.run,
                    f"check in {dtype}",
                    [f"engine.device={chosen.device}", f"model.dtype={dtype}"],
                    verb="check",
                )
                for dtype in LIMITS
            ),
            *(pool.submit(guarded, proof, minilm, name) for name in ("all-minilm-l6-v2", "all-minilm-l6-v2-late")),
        ]
        wanted = by_dim(reference.result())
        for dtype, scored in on_gpu.items():
            compare(proof, f"many documents in {dtype}", scored.result(), wanted, LIMITS[dtype])
        for job in jobs:
            job.result()
    sys.exit(1 if proof.failed else 0)


def guarded(proof: Proof, part: Any, *more: Any) -> None:
    """Run a part; its errors are recorded, and the other parts continue."""
    try:
        part(proof, *more)
    except Exception as error:  # noqa: BLE001 (recorded; the other parts continue)
        proof.record(f"{part.__name__} {more}", f"{type(error).__name__}: {error}", sound=False)


def by_dim(scores: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return scores by dim."""
    return {one["dim"]: one for one in scores}


def compare(proof: Proof, name: str, scores: Sequence[dict[str, Any]], wanted: dict[int, Any], limit: float) -> None:
    """Record each dim's metrics, the run's times, and the largest difference from the CPU's metrics."""
    for one in scores:
        reference = wanted.get(one["dim"], {}).get("metrics", {})
        apart = max(
            (abs(value - reference[key]) for key, value in one["metrics"].items() if key in reference), default=None
        )
        given_up = {key: text for key, text in one["environment"].items() if "given_up" in key}
        facts = {
            "ndcg@10": round(one["metrics"]["ndcg@10"], 5),
            "furthest from the CPU's": None if apart is None else round(apart, 5),
            "limit": limit,
            "attention": one["protocol"].get("attention"),
            "seconds": one["wall_s"],
            "command s": one["command_s"],
            **given_up,
        }
        proof.record(f"{name}, dim {one['dim']}", facts, sound=apart is not None and apart <= limit and not given_up)


def committed_demo(proof: Proof) -> None:
    """Run the default demo and compare with the committed scores, which were measured on a CPU."""
    kept = [json.loads(path.read_text()) for path in Path("results/runs").glob("demo.test.demo-*/scores.json")]
    found = proof.run("the demo in float32", [DIMS, f"engine.device={proof.device}"])
    compare(proof, "the demo in float32", found, by_dim(kept), LIMITS["float32"])


def killed_and_resumed(proof: Proof, many: Sequence[str]) -> None:
    """Kill a run after some shards; the same command must keep these shards and give an undisturbed run's bytes."""
    words = ["dim=128", *many, SHARDS, f"engine.device={proof.device}"]
    whole = proof.run("unkilled", words)
    process = subprocess.Popen(
        proof.command("run", "killed", words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder, deadline = proof.place("killed") / "cache" / "topk", time.monotonic() + proof.limit_s
    while process.poll() is None and time.monotonic() < deadline and len(list(folder.glob("*/*.json"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    resumed = proof.run("killed", words)
    if not whole or not resumed:
        return
    runs = [gzip.decompress((Path(scores[0]["path"]) / "run.trec.gz").read_bytes()) for scores in (whole, resumed)]
    kept = all(path.stat().st_mtime_ns == then for path, then in before.items())
    facts = {"exit of the killed run": code, "shards before the kill": len(before), "of": whole[0]["counts"]["shards"]}
    facts |= {"those shards left alone": kept, "same bytes": runs[0] == runs[1]}
    # A run that ended before it could be killed proves nothing.
    proof.record("killed and resumed", facts, sound=kept and runs[0] == runs[1] and code == -signal.SIGKILL)


def minilm(proof: Proof, model: str) -> None:
    """Run MiniLM on XQuAD-en with the carried weights, on the device and on the CPU."""
    weights, data = proof.carried / "minilm", proof.carried / "xquad-en"
    if not (weights / "model.safetensors").exists() or not data.exists():
        proof.record(f"{model} on XQuAD-en", "left out: no weights or data were carried")
        return
    words = [f"model={model}", f"+model.checkpoints.384.path={weights.resolve()}", "dataset=xquad/en"]
    words += [f"dataset.path={data.resolve()}"]
    wanted = by_dim(proof.run(f"{model} on the CPU", [*words, "engine.device=cpu"]))
    for dtype in ("float32", "bfloat16"):
        name = f"{model} in {dtype}"
        found = proof.run(name, [*words, f"engine.device={proof.device}", f"model.dtype={dtype}"])
        compare(proof, name, found, wanted, LIMITS[dtype])
        if model == "all-minilm-l6-v2" and found:
            apart = abs(found[0]["metrics"]["ndcg@10"] - PUBLISHED)
            proof.record(f"{name}, from the published {PUBLISHED}", round(apart, 5), sound=apart <= LIMITS[dtype])


def warm() -> None:
    """Score a run of two queries, so that ranx compiles its code, which takes most of a minute, and caches it."""
    from evalkit.scoring import metrics
    from evalkit.types import Hit

    run = {query: [Hit("a", 2.0), Hit("b", 1.0)] for query in ("p", "q")}
    print(metrics.score(run, {"p": {"a": 1}, "q": {"b": 1}}).means)


if __name__ == "__main__":
    main()
