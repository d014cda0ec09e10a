"""Encode and search a BEIR folder with one library, and write its run and a sample of its token embeddings.

This is the library's side of `scripts/peer.py run`. It runs in the library's own environment, so it imports only the
standard library, numpy and, if needed, torch. It writes to the folder OUT

    run.trec.gz   the hits of every judged query
    sample.npz    token ids, masks and vectors of a fixed sample of texts, which `parity.py` compares with evalkit's
    peer.json     versions, settings as the library resolved them, seconds, peak memory; written last, so that it
                  is missing if the library fails

Shapes: N documents, Q queries, T token ids of a text, V of them that give vectors, D dim.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from peers.worker import peak_mib, read_documents, read_queries, threads, versions

RUN, SAMPLE, FACTS = "run.trec.gz", "sample.npz", "peer.json"
SCORES = "scores"
"""The name in the sample of the library's own scores of the sample's queries and documents [Q, N]."""
STAGE = "stage: "
"""The beginning of a line on standard output that names the library's next stage."""
REFUSED = "refused: "
"""The beginning of the last line of a job that raised RefusedError; the reason follows."""
DOCUMENTS_AT_ONCE = 64
"""Documents whose scores are computed together in an exact search."""
OF_THE_FOLDER = 4
"""Number of queries and of documents of the dataset that are added to the sample's own texts."""
SAMPLED = {
    "two words": "hello world",
    "a question": "What is late interaction, and why does it keep one vector per token?",
    "punctuation": "Punctuation: (a), [b]; c! d? e. #hash 3.14 it's",
    "dots": "A dot. And another one . Two.. Three...",
    "other scripts": "ein Überblick über späte Interaktion; 後期相互作用とは何ですか？",
    "white space": "  spaces   around and\twithin  ",
    "a long text": "a long text that is cut: " + "statins lower the level of cholesterol, and " * 60,
}
"""The sample's own texts, named by what they test."""
TEXTS = tuple(SAMPLED.values())
Side = Literal["query", "document"]


class RefusedError(Exception):
    """Raised if a job's result cannot be used; the message is one line."""


class Tokens(NamedTuple):
    """One text as the library feeds it to the model: ids, which of them are attended to, which give vectors [T]."""

    ids: np.ndarray
    attended: np.ndarray
    kept: np.ndarray


Found = list[list[tuple[int, float]]]
"""For each query, positions of documents and their scores, best first."""


class Work(NamedTuple):
    """The inputs of a search with an index, and the facts and seconds to which it adds its own."""

    model: Any
    documents: list[str]
    queries: list[str]
    depth: int
    out: Path
    facts: dict[str, Any]
    seconds: dict[str, float]


class Library(NamedTuple):
    """A library's functions; all but `load` take the loaded model."""

    name: str
    packages: tuple[str, ...]
    load: Callable[[argparse.Namespace], Any]
    modules: Callable[[Any], Iterable[Any]]
    """Returns the torch modules whose weights must be those of the checkpoint."""
    settings: Callable[[Any], Mapping[str, Any]]
    tokens: Callable[[Any, Sequence[str], Side], list[Tokens]]
    encode: Callable[[Any, Sequence[str], Side], list[np.ndarray]]
    """Returns the vectors [V, D] of each text, as the library scores them."""
    scores: Callable[[Any, list[np.ndarray], list[np.ndarray]], np.ndarray]
    """Returns the library's own scores [Q, N]."""
    indexed: Mapping[str, Callable[[Work], Found]] = {}
    """The library's searches with an index, by name."""


def main(library: Library) -> None:
    """Run the job of the command line; if the result cannot be used, print one line and exit with code 2."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", required=True)
    parser.add_argument("--search", default="exact", choices=["exact", *library.indexed])
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--trust-remote-code", action="store_true")
    try:
        retrieve(library, parser.parse_args())
    except RefusedError as error:
        print(f"{REFUSED}{error}", flush=True)
        raise SystemExit(2) from error


def retrieve(library: Library, options: argparse.Namespace) -> None:
    """Encode, search and write everything; `peer.json` comes last. Raises RefusedError."""
    seconds: dict[str, float] = {}
    document_ids, documents = read_documents(str(options.data))
    query_ids, queries = judged_queries(options.data)
    with timed("load", seconds):
        model = library.load(options)
        refuse_random(library.modules(model), options.checkpoint)
    with timed("sample", seconds):
        write_sample(library, model, options.out / SAMPLE, queries[:OF_THE_FOLDER], documents[:OF_THE_FOLDER])
    depth = min(options.depth, len(documents))
    facts: dict[str, Any] = {}
    if options.search == "exact":
        with timed("encode_documents", seconds):
            document_vectors = library.encode(model, documents, "document")
        with timed("encode_queries", seconds):
            query_vectors = library.encode(model, queries, "query")
        facts["dim"] = one_dim(query_vectors, document_vectors)
        facts["document_vectors"] = sum(map(len, document_vectors))
        with timed("search", seconds):
            found = exact(library, model, query_vectors, document_vectors, depth=depth)
    else:
        with timed("search_with_index", seconds):
            work = Work(model, documents, queries, depth, options.out, facts, seconds)
            found = library.indexed[options.search](work)
    write_run(options.out / RUN, query_ids, document_ids, found, tag=options.system)
    facts = {
        "system": options.system,
        "library": library.name,
        "search": options.search,
        "depth": depth,
        **facts,
        "checkpoint": {"name": options.checkpoint.resolve().name, "sha256": checksums(options.checkpoint)},
        "dataset": {"name": options.data.resolve().name, "documents": len(documents), "queries": len(queries)},
        "settings": dict(library.settings(model)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_mib": peak_mib(),
        "threads": threads().get("threads"),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": versions(library.packages),
        "run_sha256": hashlib.sha256((options.out / RUN).read_bytes()).hexdigest(),
    }
    (options.out / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print the name of a stage, and store its seconds at the end."""
    print(f"{STAGE}{stage}", flush=True)
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def judged_queries(folder: Path, split: str = "test") -> tuple[list[str], list[str]]:
    """Return the ids and texts of a split's judged queries, in the order of queries.jsonl. Raises RefusedError."""
    rows = (folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = {row.split("\t")[0] for row in rows if row}
    pairs = [(query, text) for query, text in zip(*read_queries(str(folder)), strict=True) if query in judged]
    if not pairs:
        msg = f"{folder.name}: got no query that qrels/{split}.tsv judges, wanted one or more"
        raise RefusedError(msg)
    return [query for query, _ in pairs], [text for _, text in pairs]


def refuse_random(modules: Iterable[Any], checkpoint: Path) -> None:
    """Raise RefusedError if a loaded weight is not in the checkpoint, because the library then initialised it randomly.

    Libraries only warn, if at all. A pooler may be random, because late interaction does not use it.
    """
    # numpy has no bf16, and some tests run without torch
    reader: Any = importlib.import_module("safetensors.torch" if "torch" in sys.modules else "safetensors.numpy")
    files = sorted(checkpoint.rglob("*.safetensors"))
    known = {_fingerprint(tensor) for path in files for tensor in reader.load_file(path).values()}
    named = [(name, tensor) for module in modules for name, tensor in module.named_parameters() if "pooler" not in name]
    lost = [name for name, tensor in named if _fingerprint(tensor) not in known]
    if lost:
        msg = f"{len(lost)} of {len(named)} weights are not the checkpoint's ({lost[0]} and so on)"
        raise RefusedError(f"{msg}: the library left them random; wanted a checkpoint that it can load whole")


def _fingerprint(tensor: Any) -> tuple[tuple[int, ...], bytes]:
    values = tensor.detach().float().contiguous().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)
    return values.shape, hashlib.sha256(values.tobytes()).digest()


def one_dim(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> int:
    """Return the dim of all vectors. Raises RefusedError if two dims differ or a number is not finite."""
    dims = {side: {vectors.shape[1] for vectors in of} for side, of in (("queries", queries), ("documents", documents))}
    if len(dims["queries"] | dims["documents"]) != 1:
        got = ", ".join(f"{side} of dim {' and '.join(map(str, sorted(found)))}" for side, found in dims.items())
        msg = f"got vectors of {got}; wanted one dim on both sides"
        raise RefusedError(msg)
    for side, of in (("query", queries), ("document", documents)):
        bad = next((place for place, vectors in enumerate(of) if not np.isfinite(vectors).all()), None)
        if bad is not None:
            msg = f"{side} {bad} has a vector that is not finite; wanted finite numbers"
            raise RefusedError(msg)
    return int(dims["queries"].pop())


def exact(
    library: Library, model: Any, queries: list[np.ndarray], documents: list[np.ndarray], *, depth: int
) -> list[list[tuple[int, float]]]:
    """Return each query's best documents by the library's own scores, a block of documents at a time."""
    blocks = [
        library.scores(model, queries, documents[start : start + DOCUMENTS_AT_ONCE])
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE)
    ]
    score_QN = np.concatenate(blocks, axis=1)
    if score_QN.shape != (len(queries), len(documents)) or not np.isfinite(score_QN).all():
        msg = f"got scores of shape {score_QN.shape}, finite {bool(np.isfinite(score_QN).all())}"
        raise RefusedError(f"{msg}; wanted {(len(queries), len(documents))}, all finite")
    place_QK = np.argsort(-score_QN, axis=1, kind="stable")[:, :depth]
    return [[(int(n), float(score_N[n])) for n in place_K] for score_N, place_K in zip(score_QN, place_QK, strict=True)]


def write_run(
    path: Path,
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    found: Sequence[Sequence[tuple[int, float]]],
    *,
    tag: str,
) -> None:
    """Write the hits as a TREC run; the same hits give the same bytes."""
    lines = [
        f"{query} Q0 {document_ids[place]} {rank} {np.float32(score)!s} {tag}\n"
        for query, ranked in zip(query_ids, found, strict=True)
        for rank, (place, score) in enumerate(ranked, start=1)
    ]
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def write_sample(library: Library, model: Any, path: Path, queries: Sequence[str], documents: Sequence[str]) -> None:
    """Write the sample: token ids, masks, vectors and scores of TEXTS and the dataset's first texts, for both sides."""
    arrays: dict[str, np.ndarray] = {}
    vectors: dict[Side, list[np.ndarray]] = {}
    sides: tuple[tuple[Side, Sequence[str]], ...] = (("query", queries), ("document", documents))
    for side, own in sides:
        texts = [*TEXTS, *own]
        tokens = library.tokens(model, texts, side)
        vectors[side] = library.encode(model, texts, side)
        for place, (of_text, vector_VD) in enumerate(zip(tokens, vectors[side], strict=True)):
            if int(of_text.kept.sum()) != len(vector_VD):
                msg = f"{side} {place} of the sample: got {len(vector_VD)} vectors of {int(of_text.kept.sum())} tokens"
                raise RefusedError(f"{msg}; wanted one of each that its mask keeps")
            arrays[f"{side}_ids_{place}"] = of_text.ids.astype(np.int32)
            arrays[f"{side}_attended_{place}"] = of_text.attended.astype(bool)
            arrays[f"{side}_kept_{place}"] = of_text.kept.astype(bool)
            arrays[f"{side}_vectors_{place}"] = vector_VD.astype(np.float32)
    one_dim(vectors["query"], vectors["document"])
    arrays[SCORES] = np.asarray(library.scores(model, vectors["query"], vectors["document"]), dtype=np.float32)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stubs take the names for allow_pickle


def trimmed(ids: Any, attended: Any, kept: Any) -> Tokens:
    """Return a text's tokens without trailing padding, which is neither attended to nor scored."""
    arrays = [np.asarray(values) for values in (ids, attended, kept)]
    used = np.flatnonzero(arrays[1].astype(bool) | arrays[2].astype(bool))
    end = int(used[-1]) + 1 if len(used) else 0
    return Tokens(arrays[0][:end], arrays[1][:end].astype(bool), arrays[2][:end].astype(bool))


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def quiet() -> None:
    """Keep libraries offline and on the CPU; call this before importing them.

    Offline, they read only the given folder. Some use any GPU that they find and others do not, so that their times
    could not be compared.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.update(offline, CUDA_VISIBLE_DEVICES="")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # stdout is a TextIOWrapper
