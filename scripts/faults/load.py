"""Large inputs: many documents, many queries, a document of a million tokens. All results are known in advance."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path

from trials import LONGEST_S, PLACES, Base, Trials, new_folder, start


def size(base: Base, trials: Trials, *, documents: int, queries: int, longest: int = 20) -> None:
    """Run BM25 on a corpus in which each query's word occurs in one document only: every metric must be 1."""
    folder = new_folder(base.folder, "load")
    draw = random.Random(documents)
    common = [f"w{number}" for number in range(5000)]
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    with (data / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(documents):
            words = longest if number == 0 else 20
            text = f"own{number} {' '.join(draw.choices(common, k=words))}"
            file.write(f'{{"_id": "d{number}", "text": "{text}"}}\n')
    step = max(1, documents // queries)
    asked = [number * step for number in range(min(queries, documents))]
    lines = "".join(json.dumps({"_id": f"q{number}", "text": f"own{number}"}) + "\n" for number in asked)
    (data / "queries.jsonl").write_text(lines, "utf-8")
    rows = "".join(f"q{number}\td{number}\t1\n" for number in asked)
    (data / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}", "utf-8")
    command = ["run", "model=bm25", "dataset=folder", f"dataset.path={data}", "dataset.language=en", *PLACES]
    started = time.monotonic()
    child = start(command, folder)
    done = child.wait(6 * LONGEST_S)
    took = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size_bytes = (data / "corpus.jsonl").stat().st_size
    what = f"{documents:,} documents, {len(asked):,} queries, {size_bytes / 1e6:.0f} MB"
    scores = json.loads(
        next(iter((folder / "r").glob("runs/*/scores.json")), Path(os.devnull)).read_text("utf-8") or "{}"
    )
    if done.code != 0:
        trials.failed(what, done)
    elif scores["metrics"]["ndcg@10"] != 1.0 or scores["counts"]["documents"] != documents:
        trials.failed(
            f"{what}: ndcg@10 is {scores['metrics']['ndcg@10']} of {scores['counts']['documents']} documents", done
        )
    else:
        trials.count("every query found its document")
    earlier = f"{trials.note}; " if trials.note else ""
    trials.note = f"{earlier}{what}: {took:.0f} s, peak of all trials so far {peak / 1e9:.2f} GB"


def small(base: Base, trials: Trials, _: random.Random) -> None:
    """Run over 100,000 documents, with 10,000 queries, and over a document of a million tokens."""
    size(base, trials, documents=100_000, queries=100)
    size(base, trials, documents=20_000, queries=10_000)
    size(base, trials, documents=10, queries=10, longest=1_000_000)


def large(base: Base, trials: Trials, _: random.Random) -> None:
    """Run over a million documents."""
    size(base, trials, documents=1_000_000, queries=100)
