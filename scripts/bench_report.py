"""Measure how long `evalkit report` takes for many runs, and whether repeated reports are byte-identical.

    python scripts/bench_report.py --runs 500

The script fills a temporary results folder with invented runs: first every published cell of the known datasets, then
invented systems, each with the number of queries in the dataset's config. The scores are random. It then runs `evalkit
report` `--rounds` times, each in its own process, and prints one line of JSON: wall time, CPU time, files and sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from evalkit.config.settings import METRICS, configs_dir
from evalkit.models import weights
from evalkit.scoring import published
from evalkit.storage import keys, per_query_file, results, trec
from evalkit.types import Hit


def datasets() -> list[dict[str, Any]]:
    """Return the config of every dataset with a known number of queries."""
    texts = (path.read_text(encoding="utf-8") for path in sorted((configs_dir() / "dataset").rglob("*.yaml")))
    return [values for text in texts if (values := yaml.safe_load(text)).get("counts", {}).get("queries")]


def cells(wanted: int) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Return `wanted` triples (system, dim, dataset): the published ones, then invented systems."""
    known = {str(values["name"]): values for values in datasets()}
    pairs = dict.fromkeys((score.system, score.dim, score.dataset) for score in published.published_scores())
    found = [(system, dim, known[dataset]) for system, dim, dataset in pairs if dataset in known]
    for number in count(1):
        if len(found) >= wanted:
            return found[:wanted]
        found += [(f"invented-{number}", 128, values) for values in known.values()]
    raise AssertionError


@cache
def values(number: int) -> tuple[list[str], dict[str, float], str]:
    """Return `number` queries, the means of their values and the table; values have full float precision, as NDCG."""
    draw = random.Random(number)
    queries = [f"q{place}" for place in range(number)]
    per_query = {query: {metric: draw.random() for metric in METRICS} for query in queries}
    return queries, per_query_file.group_means(per_query, queries), per_query_file.text(per_query, METRICS)


def published_checkpoint(system: str, dim: int | None) -> dict[str, Any] | None:
    """Return a record of a system's published weights, so that the report treats the run as a real one."""
    known = weights.published_weights(system)
    source = None if known is None else known.checkpoints.get(str(dim))
    if known is None or source is None:
        return None
    return {
        "origin": source.repo,
        "revision": source.revision or "0" * 40,
        "checksums": dict(source.checksums) or {"model.safetensors": "0" * 32},
        "parameters": known.parameters,
        "proof": "repository",
    }


def invent(folder: Path, system: str, dim: int | None, dataset: dict[str, Any], seed: int) -> None:
    """Write one run with random scores below `folder`."""
    name, split = str(dataset["name"]), str(dataset["split"])
    queries, means, table = values(int(dataset["counts"]["queries"]))
    protocol = {"corpus": dataset.get("checksum"), "drop_self": dataset["drop_self"], "stored_dtype": "float16"}
    checkpoint = published_checkpoint(system, dim)
    protocol |= {"seed": seed, **({} if checkpoint is None else {"checkpoint": checkpoint["checksums"]})}
    run_id = keys.run_id(name, split, system, dim, protocol)
    where = folder / "runs" / run_id
    where.mkdir(parents=True)
    (where / results.PER_QUERY).write_text(table, encoding="utf-8")
    trec.write_run({queries[0]: [Hit("d", 1.0)]}, where / results.RUN, tag=run_id)
    trec.write_qrels({query: {"d": 1} for query in queries}, where / results.QRELS)
    scores = results.CellScores(
        run_id=run_id,
        model=system,
        dim=dim,
        dataset=name,
        split=split,
        language=str(dataset["language"]),
        main_metric=str(dataset["main_metric"]),
        metrics=means,
        groups={},
        counts={"documents": 1000, "queries": len(queries), "document_vectors": 100_000},
        deviations=(),
        protocol=protocol,
        wall_s={"encode_and_search": 1.0, "score": 0.1},
        environment={"evalkit": "0", "packages": {}, "checkpoint": checkpoint},
    )
    results.write(scores, folder)


def main() -> None:
    """Write the runs, create the report, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="how many finished runs the results folder holds")
    parser.add_argument("--rounds", type=int, default=3, help="how many times the report is created")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        invented = cells(asked.runs)
        for seed, (system, dim, dataset) in enumerate(invented):
            invent(folder, system, dim, dataset, seed)
        seconds, user_s, digests = [], [], set()
        for _ in range(asked.rounds):
            started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            command = [sys.executable, "-m", "evalkit", "report", "--results-dir", name]
            done = subprocess.run(command, capture_output=True, check=False)
            seconds.append(round(time.monotonic() - started, 2))
            user_s.append(round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used, 2))
            files = [path for part in ("tables", "site") for path in sorted((folder / part).rglob("*.*"))]
            digests.add(hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest())
        print(
            json.dumps(
                {
                    "runs": len(invented),
                    "queries": sum(int(dataset["counts"]["queries"]) for _, _, dataset in invented),
                    "seconds": seconds,
                    "user_s": user_s,
                    "same_bytes": len(digests) == 1,
                    "files": sum(path.is_file() for path in files),
                    "page_bytes": (folder / "site" / "index.html").stat().st_size,
                    "complaints": len(done.stderr.splitlines()),
                }
            )
        )


if __name__ == "__main__":
    main()
