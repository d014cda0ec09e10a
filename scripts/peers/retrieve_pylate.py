"""The job of PyLate: encoding with default settings, and its exact MaxSim or one of its PLAID indexes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peers import job

job.quiet()

import numpy as np
import torch
from pylate import indexes, models, retrieve, scores

# Stanford's index compiles C++ with ninja, which is in the same folder as this interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def load(options: argparse.Namespace) -> models.ColBERT:
    """Return the checkpoint as PyLate reads it: prefixes, lengths and expansion from the checkpoint's own files."""
    return models.ColBERT(
        str(options.checkpoint), device="cpu", trust_remote_code=options.trust_remote_code, local_files_only=True
    )


def settings(model: models.ColBERT) -> dict[str, Any]:
    """Return what PyLate resolved."""
    return {
        "query_prefix": model.query_prefix,
        "document_prefix": model.document_prefix,
        "query_tokens": model.query_length,
        "document_tokens": model.document_length,
        "expansion": model.do_query_expansion,
        "attend_to_expansion": model.attend_to_expansion_tokens,
        "skipped_ids": sorted({int(token) for token in model.skiplist}),
        "pad_id": int(model.tokenizer.pad_token_id),
        "dtype": str(model[0].auto_model.dtype),
    }


def tokens(model: models.ColBERT, texts: Sequence[str], side: job.Side) -> list[job.Tokens]:
    """Return the texts' token ids and masks."""
    found = model.encode(list(texts), is_query=side == "query", output_value=None, show_progress_bar=False)
    columns = (found["input_ids"], found["attention_mask"], found["masks"])
    return [job.trimmed(*of_text) for of_text in zip(*columns, strict=True)]


def encode(model: models.ColBERT, texts: Sequence[str], side: job.Side) -> list[np.ndarray]:
    """Return the texts' vectors."""
    found = model.encode(list(texts), is_query=side == "query", show_progress_bar=False)
    return [np.asarray(vectors, dtype=np.float32) for vectors in found]


def maxsim(_model: models.ColBERT, queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """Return PyLate's own scores [Q, N]."""
    padded, masks = {}, {}
    for side, of in (("queries", queries), ("documents", documents)):
        tensors = [torch.from_numpy(vectors) for vectors in of]
        padded[side] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        ones = [torch.ones(len(vectors)) for vectors in of]
        masks[side] = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
    found = [
        scores.colbert_scores(
            padded["queries"][start : start + 32],
            padded["documents"],
            queries_mask=masks["queries"][start : start + 32],
            documents_mask=masks["documents"],
        )
        for start in range(0, len(queries), 32)
    ]
    return np.asarray(torch.cat(found).numpy())


def with_index(work: job.Work, *, fast: bool) -> job.Found:
    """Search with a PLAID index as in PyLate's documentation: fast-plaid, its default, or Stanford's."""
    model, folder, seconds = work.model, work.out / "index", work.seconds
    with job.timed("encode_documents", seconds):
        vectors = encode(model, work.documents, "document")
    with job.timed("index", seconds):
        dim = int(vectors[0].shape[1])
        index = indexes.PLAID(
            index_folder=str(folder), index_name="index", override=True, use_fast=fast, embedding_size=dim
        )
        ids = list(map(str, range(len(vectors))))
        index.add_documents(documents_ids=ids, documents_embeddings=vectors)
    with job.timed("encode_queries", seconds):
        asked = encode(model, work.queries, "query")
    with job.timed("search", seconds):
        found = retrieve.ColBERT(index=index).retrieve(queries_embeddings=asked, k=work.depth, device="cpu")
    work.facts["dim"] = job.one_dim(asked, vectors)
    work.facts["document_vectors"] = sum(map(len, vectors))
    work.facts["index_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [[(int(hit["id"]), float(hit["score"])) for hit in ranked] for ranked in found]


LIBRARY = job.Library(
    name="pylate",
    packages=("pylate", "fast-plaid", "sentence-transformers", "transformers", "tokenizers", "torch"),
    load=load,
    modules=list,
    settings=settings,
    tokens=tokens,
    encode=encode,
    scores=maxsim,
    indexed={
        "fast-plaid": partial(with_index, fast=True),
        "plaid": partial(with_index, fast=False),
    },
)

if __name__ == "__main__":
    job.main(LIBRARY)
