"""Measure what Ray's workers gain over one process, and how many shards a driver handles if its workers do nothing.

    python scripts/bench.py --stages engines --corpus DIR --out results/bench      # DIR is a BEIR-format nfcorpus

The contenders (one process, one worker and two workers, of one thread each) run in their own processes and take turns.
Each round encodes the same documents with an empty cache. Ratios are medians over paired rounds; the start of Ray is
measured separately. The stage writes OUT/engines.json. With 1,800 documents and 3 rounds it takes about 20 minutes on
two cores, which should be otherwise idle. Needs evalkit[ray].
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

CONTENDERS = {
    "local, one thread": ["engine=local", "engine.threads=1"],
    "ray, one worker": ["engine=ray", "engine.workers=1"],
    "ray, two workers": ["engine=ray", "engine.workers=2"],
}
REFERENCE = "ray, one worker"
MODEL = ["model=all-minilm-l6-v2-late", "dataset=beir/nfcorpus", "dataset.verify=false"]
SHARD_TOKENS = 20_000
BIG_SHARD_TOKENS = 8_000_000
H200_SHARD_S = 10.0
"""Seconds that one H200 is assumed to need for a shard of 8 M tokens; nothing here measures it."""


def measure(chosen: argparse.Namespace, work: Path, conditions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the stage's figures after each part, so that they can be saved: the parts take minutes."""
    found: dict[str, Any] = {"stage": "engines", "conditions": conditions}
    yield (found := {**found, "driver with null workers": null_workers(chosen.corpus)})
    yield (found := {**found, "workers": workers(chosen, work)})
    for documents in (10_000, 100_000, 1_000_000):
        known = found.get("driver's memory", [])
        yield (found := {**found, "driver's memory": [*known, null_memory(documents)]})


def workers(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the times of one process, one worker and two workers in paired rounds."""
    documents = chosen.documents or 600
    corpus, queries = thinned(chosen.corpus, work / "corpus", documents)
    contenders = {name: Server(name, words, corpus, work) for name, words in CONTENDERS.items()}
    rounds: list[dict[str, float]] = []
    load = []
    try:
        for server in contenders.values():
            server.round()  # not counted: loads weights and compiles kernels
        names = list(contenders)
        for number in range(chosen.rounds):
            order = names[number % len(names) :] + names[: number % len(names)]
            load.append(round(os.getloadavg()[0], 2))
            rounds.append({name: contenders[name].round() for name in order})
    finally:
        facts = {name: server.close() for name, server in contenders.items()}
    share = statistics.median(one["ray, one worker"] / one["local, one thread"] for one in rounds)
    return {
        "documents": documents,
        "queries": queries,
        "shards": facts[REFERENCE]["shards"],
        "load average of each round": load,
        "rounds_s": [{name: round(seconds, 3) for name, seconds in one.items()} for one in rounds],
        f"speed over {REFERENCE}": {
            name: round(statistics.median(one[REFERENCE] / one[name] for one in rounds), 3) for name in contenders
        },
        "one Ray worker's time over one process'": round(share, 3),
        "identical runs": len({facts[name]["run_checksum"] for name in contenders}) == 1,
        "contenders": facts,
    }


def thinned(source: Path, folder: Path, documents: int) -> tuple[Path, int]:
    """Write evenly spaced documents of a BEIR folder, all of its queries, and the judgements of these documents.

    Returns the folder and the number of judged queries.
    """
    (folder / "qrels").mkdir(parents=True)
    lines = (source / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    kept = lines[:: max(1, len(lines) // documents)][:documents]
    (folder / "corpus.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    queries = (source / "queries.jsonl").read_text(encoding="utf-8")
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    ids = {json.loads(line)["_id"] for line in kept}
    head, *rows = (source / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    judged = [row for row in rows if row.split("\t")[1] in ids]
    (folder / "qrels" / "test.tsv").write_text("\n".join([head, *judged]) + "\n", encoding="utf-8")
    return folder, len({row.split("\t")[0] for row in judged})


# ---- the contender's process


class Server:
    """A contender in its own process, which runs the cell once for each line that it reads."""

    def __init__(self, name: str, words: Sequence[str], corpus: Path, work: Path) -> None:
        """Start the process and wait until its workers are ready."""
        folder = work / name.replace(", ", "-").replace(" ", "-")
        job = json.dumps({"words": [*MODEL, f"dataset.path={corpus}", *words], "folder": str(folder)})
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def round(self) -> float:
        """Run the cell with an empty cache and return the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.facts |= self._answer()
        return float(self.facts["seconds"])

    def close(self) -> dict[str, Any]:
        """End the process and return its facts."""
        self._process.communicate(timeout=120)
        return self.facts

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a contender ended without an answer")
        return dict(json.loads(line))


def serve(job: dict[str, Any]) -> None:
    """Run the cell once for each line of standard input, from a prepared dataset and an empty cache."""
    import xxhash
    from rich.console import Console

    from evalkit.config.compose import compose
    from evalkit.engines import ray as engine
    from evalkit.run import cells, distributed, loaded, pipeline

    loaded.keep()
    quiet = Console(quiet=True)
    folder = Path(job["folder"])
    words = [*job["words"], f"store.shard_tokens={SHARD_TOKENS}", "store.keep=topk"]
    config = compose([*words, f"results_dir={folder}", f"cache_dir={folder / 'survey'}"])
    started = time.perf_counter()
    if config.engine.name == "ray":
        import torch

        engine.pool(distributed.resources(config, torch.device("cpu")))
    facts = {"start_s": round(time.perf_counter() - started, 2), "words": job["words"][-2:]}
    answer(facts)
    for number, _ in enumerate(sys.stdin):
        config = compose([*words, f"results_dir={folder}", f"cache_dir={folder / str(number)}"])
        task = pipeline.prepare(config, console=quiet)
        planned = cells.plan(task)
        cpu_before, started = time.process_time(), time.perf_counter()
        best = pipeline.search(task, planned)
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_before
        (hits,) = best.values()
        digest = xxhash.xxh3_64_hexdigest(
            b"".join([hits.query_H.tobytes(), b"\0".join(hits.id_H.tolist()), hits.score_H.tobytes()])
        )
        shards = len(task.survey.shards)
        answer({"seconds": seconds, "run_checksum": digest, "shards": shards, "driver_busy": round(cpu_s / seconds, 3)})
    engine.close()


def answer(facts: dict[str, Any]) -> None:
    """Print one line of facts, which `Server` reads."""
    print(json.dumps(facts), flush=True)


# ---- a driver with workers that do nothing


@dataclass(frozen=True)
class NullLoad:
    """Creates a step that immediately returns a top-k of plausible size."""

    queries: int
    depth: int

    def __call__(self) -> NullStep:
        """Return the step."""
        return NullStep(self.queries, self.depth)


class NullStep(NamedTuple):
    """Encodes nothing. Later shards return fewer hits, as in a real run, where the floor rises."""

    queries: int
    depth: int

    def prepare(self, work: Any, latest: Any) -> Any:  # noqa: ARG002 (part of the Step protocol)
        """Return the shard."""
        return work

    def run(self, prepared: Any) -> Any:
        """Return hits with random scores, seeded by the shard's index."""
        import numpy as np

        from evalkit.ranking import Hits, id_array

        shard, ids = prepared.shard, prepared.ids
        random = np.random.default_rng(shard.index)
        each = max(1, self.depth // (1 + shard.index))
        query_H = np.repeat(np.arange(self.queries, dtype=np.int32), each)
        id_N = id_array([identifier.encode() for identifier in ids])
        id_H = id_N[random.integers(0, len(ids), len(query_H))]
        return shard, Hits(query_H, id_H, random.random(len(query_H), dtype=np.float32))

    def settle(self, done: Any) -> Any:
        """Return the hits."""
        return done

    def close(self) -> None:
        """Do nothing."""


def null_workers(corpus: Path, *, shards: int = 60, workers: int = 2, queries: int = 6_980) -> dict[str, Any]:
    """Return how many full-size shards a driver sends, checkpoints and merges per second, and where its time goes."""
    import numpy as np

    from evalkit.datasets.survey import ShardRange
    from evalkit.engines import ray as engine
    from evalkit.engines.ray_cluster import Resources
    from evalkit.run import distributed, shard_step, worker_steps
    from evalkit.run.background import Writer
    from evalkit.run.search import hits_to_arrays

    started = time.perf_counter()
    documents = [json.loads(line) for line in (corpus / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    read_bytes = (corpus / "corpus.jsonl").stat().st_size
    read_s = time.perf_counter() - started
    texts = [f"{document['title']} {document['text']}".strip() for document in documents]
    mean = sum(len(text.encode()) for text in texts) / len(texts)
    each = round(BIG_SHARD_TOKENS * distributed.BYTES_PER_TOKEN / mean)
    pool = engine.pool(
        Resources(address=None, workers=workers, gpus_per_worker=0, cpus_per_worker=1, object_bytes=1 << 25)
    )
    load = NullLoad(queries, 100)
    pool.prepare("null", load)
    spent = dict.fromkeys(("making texts", "checkpointing and merging"), 0.0)

    def shards_to_send() -> Iterator[engine.WorkItem[Any]]:
        for number in range(shards):
            began = time.perf_counter()
            chosen = [texts[(number + place) % len(texts)] for place in range(each)]
            ids = tuple(f"document-{number * each + place}" for place in range(each))
            shard = ShardRange(number, number * each, (number + 1) * each, f"{number:032x}", f"{number:032x}")
            spent["making texts"] += time.perf_counter() - began
            yield engine.WorkItem(name=str(number), work=worker_steps.ShardTexts(shard, ids, chosen, (128,)), size=each)

    best = distributed.BestHits(100, queries)
    with tempfile.TemporaryDirectory() as folder, Writer() as writer:
        cpu, started = time.process_time(), time.perf_counter()
        for done in pool.map("null", load, shards_to_send(), latest=lambda: best.floor_Q):
            assert isinstance(done, engine.Done)
            began = time.perf_counter()
            shard, shared = done.result
            hits = type(shared)(*map(np.array, shared))
            shard_step.queue_write(writer, Path(folder), shard.checksum, hits_to_arrays(hits), {})
            best.add(hits)
            spent["checkpointing and merging"] += time.perf_counter() - began
        best.merged()
        writer.wait()
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    engine.close()
    shard_mb = each * mean / 1e6
    return {
        "shards": shards,
        "documents of a shard": each,
        "MB of a shard": round(shard_mb, 1),
        "queries": queries,
        "shards/s": round(shards / wall_s, 2),
        "MB/s": round(shards * shard_mb / wall_s, 1),
        "times what one H200 needs": round(shards / wall_s * H200_SHARD_S, 1),
        "driver's CPU share": round(cpu_s / wall_s, 3),
        "shards in a second of the driver's CPU": round(shards / cpu_s, 2),
        "seconds": {name: round(seconds, 2) for name, seconds in spent.items()} | {"all": round(wall_s, 2)},
        "reading JSON lines, MB/s": round(read_bytes / read_s / 1e6, 1),
    }


def null_memory(documents: int) -> dict[str, Any]:
    """Return the peak memory of a driver over a demo collection, measured in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(documents)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory(documents: int) -> None:
    """Survey a demo collection, send it to null workers, and print the peak memory of this process."""
    import torch
    from rich.console import Console

    from evalkit.config.compose import compose
    from evalkit.engines import ray as engine
    from evalkit.run import distributed, pipeline, worker_steps

    with tempfile.TemporaryDirectory() as folder:
        size = [f"dataset.demo.documents={documents}", "dataset.demo.queries=200"]
        words = [*size, "dim=64", "engine=ray", "engine.workers=1", "store.shard_tokens=125000"]
        config = compose([*words, f"results_dir={folder}", f"cache_dir={folder}"])
        started = time.perf_counter()
        task = pipeline.prepare(config, console=Console(quiet=True))
        surveyed_s = time.perf_counter() - started
        pool = engine.pool(distributed.resources(config, torch.device("cpu")))
        load = NullLoad(len(task.dataset.queries), 100)
        pool.prepare("null", load)
        best = distributed.BestHits(100, len(task.dataset.queries))

        def shards_to_send() -> Iterator[engine.WorkItem[Any]]:
            for shard in task.survey.shards:
                found = list(task.dataset.corpus.documents(shard.start, shard.stop))
                work = worker_steps.ShardTexts(
                    shard, tuple(one.id for one in found), [one.joined() for one in found], ()
                )
                yield engine.WorkItem(name=str(shard.index), work=work, size=len(found))

        started = time.perf_counter()
        for done in pool.map("null", load, shards_to_send()):
            assert isinstance(done, engine.Done)
            best.add(done.result[1])
        sent_s = time.perf_counter() - started
        engine.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer(
        {
            "documents": documents,
            "shards": len(task.survey.shards),
            "peak_mib": round(peak),
            "survey_s": round(surveyed_s, 1),
            "sending_s": round(sent_s, 1),
        }
    )


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    if sys.argv[1] == "--serve":
        serve(json.loads(sys.argv[2]))
    elif sys.argv[1] == "--memory":
        memory(int(sys.argv[2]))
    else:
        print(json.dumps(null_workers(Path(sys.argv[1])), indent=2))
