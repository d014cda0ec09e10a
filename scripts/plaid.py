"""Build a PLAID index with fast-plaid and search it, in its own environment; `search=plaid` calls this script.

    python scripts/plaid.py make DIR                 # creates DIR, a virtual environment with the pinned versions
    DIR/bin/python scripts/plaid.py run JOB.json

evalkit is not imported, because fast-plaid needs another torch. JOB.json names the stored shards (safetensors with
`vectors` and `lengths`), the queries (likewise), the folder of the index, the settings and the output folder. There it
writes `hits.safetensors` (a row per query: positions of documents in the corpus, and scores) and `answer.json`
(versions and seconds).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

PINNED = ("fast-plaid==1.7.0.2110", "torch==2.11.0", "safetensors==0.8.0", "numpy==2.4.6")


def make(folder: Path) -> None:
    """Create the environment. PyPI has torch for CUDA; set `PIP_FIND_LINKS` or pip's index for a build for CPUs."""
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *PINNED], check=True)
    print(f"{folder}: {', '.join(PINNED)}")


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent, evalkit, ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(job: dict[str, Any]) -> None:
    """Build the index if the job asks for it, search it, and write hits and answer."""
    import torch
    from fast_plaid import search
    from safetensors.torch import load_file, save_file

    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    if (installed := importlib.metadata.version("fast-plaid")) != job["library"]:
        sys.exit(f"fast-plaid {installed} is installed, wanted {job['library']}")
    answer: dict[str, Any] = {name: importlib.metadata.version(name) for name in ("fast-plaid", "torch")}
    places, documents = [], []
    if job["build"] is not None:
        first = 0
        for path in job["shards"]:
            arrays = load_file(path)
            rows = torch.split(arrays["vectors"].half(), arrays["lengths"].tolist())
            places += [first + place for place, vectors in enumerate(rows) if len(vectors)]
            documents += [vectors for vectors in rows if len(vectors)]  # an index needs vectors for each document
            first += len(rows)
    index = search.FastPlaid(index=job["index"], device=job["device"])
    if job["build"] is not None:
        started = time.perf_counter()
        index.create(
            documents_embeddings=documents,
            nbits=job["build"]["nbits"],
            kmeans_niters=job["build"]["kmeans_iterations"],
            seed=job["build"]["seed"],
            use_triton_kmeans=False,
            start_from_scratch=0,  # otherwise a small corpus is also stored uncompressed, for later updates
        )
        answer["build_s"] = time.perf_counter() - started
        Path(job["index"], "places.json").write_text(json.dumps(places), encoding="utf-8")
        documents.clear()
    places = json.loads(Path(job["index"], "places.json").read_text(encoding="utf-8"))
    arrays = load_file(job["queries"])
    queries = [vectors.half() for vectors in torch.split(arrays["vectors"], arrays["lengths"].tolist())]

    def found(some: list[Any]) -> list[list[tuple[int, float]]]:
        ranked: list[list[tuple[int, float]]] = index.search(
            some,
            top_k=job["depth"],
            n_ivf_probe=job["search"]["n_ivf_probe"],
            n_full_scores=job["search"]["n_full_scores"],
            show_progress=False,
        )
        return ranked

    found(queries[:1])  # loads the index
    started = time.perf_counter()
    hits = found(queries)
    answer["search_s"] = time.perf_counter() - started
    document_QK = torch.full((len(queries), job["depth"]), -1, dtype=torch.int64)
    score_QK = torch.zeros(len(queries), job["depth"])
    for query, ranked in enumerate(hits):
        document_QK[query, : len(ranked)] = torch.tensor([places[place] for place, _ in ranked], dtype=torch.int64)
        score_QK[query, : len(ranked)] = torch.tensor([score for _, score in ranked])
    save_file({"document": document_QK, "score": score_QK}, Path(job["out"], "hits.safetensors"))
    Path(job["out"], "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder]:
            make(Path(folder))
        case ["run", path]:
            end_with_parent()
            run(json.loads(Path(path).read_text(encoding="utf-8")))
        case _:
            sys.exit(str(__doc__))
