"""The worker's side of the benchmark: one contender in its own process, which times rounds on request.

At its top it imports only the standard library, because every peer's environment runs it. A worker is started with a
job file and answers `ready` with its versions. For every line of input it runs one round and answers with the seconds
it took; at the end of input it answers with its peak memory. Output of libraries goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Prepared(NamedTuple):
    """The functions of a loaded contender."""

    run: Callable[[int], Any]
    """Runs one round of a size (queries or documents); this is timed."""
    facts: Callable[[Any], Mapping[str, Any]] = lambda _result: {}
    """Returns figures of a round's result; not timed."""
    array: Callable[[Any], Any] = lambda _result: None
    """Returns the part of a round's result that is compared with other contenders, as a numpy array; not timed."""


Stage = Callable[[Mapping[str, Any]], Prepared]


def serve(stages: Mapping[str, Stage], *, packages: Sequence[str]) -> None:
    """Execute the job file given on the command line: prepare its stage, then run one round per line of input."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def say(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    prepared = stages[job["stage"]](job)
    say({"ready": {"python": platform.python_version(), **versions(packages), **threads()}})
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        result = prepared.run(request["size"])
        seconds = time.perf_counter() - started
        if request.get("save"):
            save_array(prepared.array(result), request["save"])
        say({"seconds": seconds, **prepared.facts(result)})
        del result
    say({"peak_mib": peak_mib()})


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def threads() -> dict[str, int]:
    """Return torch's number of threads, or nothing if torch is not imported."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"threads": torch.get_num_threads()}


def peak_mib() -> float:
    """Return this process's peak resident memory in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def save_array(array: Any, path: str) -> None:
    """Write the array of `Prepared.array` to a .npy file, unless it is None."""
    if array is not None:
        import numpy as np

        np.save(path, np.asarray(array))


def read_documents(folder: str) -> tuple[list[str], list[str]]:
    """Return the ids and the texts (title, space, text) of a BEIR-format folder."""
    lines = (Path(folder) / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["_id"] for row in rows], [f"{row.get('title', '')} {row['text']}".strip() for row in rows]


def read_queries(folder: str) -> tuple[list[str], list[str]]:
    """Return the ids and the texts of the queries in a BEIR-format folder."""
    rows = [json.loads(line) for line in (Path(folder) / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["_id"] for row in rows], [row["text"] for row in rows]


def write_run(path: str, hits: Mapping[str, Iterable[tuple[str, float]]], *, tag: str) -> None:
    """Write each query's hits, best first, as a TREC run."""
    with Path(path).open("w", encoding="utf-8") as file:
        for query, ranked in hits.items():
            rows = (
                f"{query} Q0 {document} {rank} {score:.9g} {tag}\n" for rank, (document, score) in enumerate(ranked, 1)
            )
            file.writelines(rows)


def read_maxsim(job: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return fp32 query vectors [Q, L, D], document vectors of all texts [X, D] and the texts' lengths [N]."""
    import numpy as np

    folder = Path(job["inputs"])
    query_QLD, document_XD = np.load(folder / "queries.npy"), np.load(folder / "documents.npy")
    return query_QLD.astype(np.float32), document_XD.astype(np.float32), np.load(folder / "lengths.npy")


def null_forward(hidden_size: int, *, dtype: Any) -> Callable[..., Any]:
    """Return a `forward` that costs nothing: every batch gets the same rows of a table that is filled once.

    Each thread has its own table, because a contender that normalises in place would otherwise write to memory that
    another core has in its cache.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    tables = [torch.randn(1 << 15, hidden_size).to(dtype) for _ in range(os.cpu_count() or 1)]
    free = deque(range(len(tables)))
    own = threading.local()

    def forward(input_ids: Any = None, **_: object) -> Any:
        if not hasattr(own, "place"):
            own.place = free[0]
            free.rotate(-1)
        hidden_BTH = tables[own.place][: input_ids.numel()].view(*input_ids.shape, hidden_size)
        return BaseModelOutput(last_hidden_state=hidden_BTH)

    return forward
