"""The job of sentence-transformers: MultiVectorEncoder with default settings, and its exact similarity."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peers import job

job.quiet()

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder


def load(options: argparse.Namespace) -> MultiVectorEncoder:
    """Return the checkpoint as the library reads it: markers, lengths and expansion from the checkpoint's own files."""
    return MultiVectorEncoder(
        str(options.checkpoint), device="cpu", trust_remote_code=options.trust_remote_code, local_files_only=True
    )


def settings(model: MultiVectorEncoder) -> dict[str, Any]:
    """Return what the library resolved."""
    modules: list[Any] = list(model)
    first, mask = modules[0], next(module for module in modules if hasattr(module, "skiplist_words"))
    ids = mask._skiplist_ids
    return {
        "prompts": dict(model.prompts),
        "query_expansion": first.query_expansion,
        "query_tokens": getattr(first, "query_length", None),
        "document_tokens": getattr(first, "document_length", None),
        "max_tokens": model.max_seq_length,
        "skipped_ids": [] if ids is None else sorted(map(int, ids)),
        "dtype": str(next(model.parameters()).dtype),
    }


def tokens(model: MultiVectorEncoder, texts: Sequence[str], side: job.Side) -> list[job.Tokens]:
    """Return the texts' token ids, what the model attends to, and what the library scores."""
    found = []
    of_side = model.encode_query if side == "query" else model.encode_document
    prompt = model.prompts.get(side)
    encoded: Any = of_side(list(texts), output_value=None, show_progress_bar=False)
    for text, item in zip(texts, encoded, strict=True):
        attended = model.preprocess([text], prompt=prompt, task=side)["attention_mask"][0]
        kept = item["attention_mask"]
        whole = torch.zeros_like(kept, dtype=torch.bool)
        whole[: len(attended)] = attended.bool()
        found.append(job.trimmed(item["input_ids"].numpy(), whole.numpy(), kept.numpy()))
    return found


def encode(model: MultiVectorEncoder, texts: Sequence[str], side: job.Side) -> list[np.ndarray]:
    """Return the texts' vectors."""
    of_side = model.encode_query if side == "query" else model.encode_document
    found = of_side(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return [np.asarray(vectors, dtype=np.float32) for vectors in found]


def maxsim(model: MultiVectorEncoder, queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """Return the library's own scores [Q, N]."""
    asked, found = ([torch.from_numpy(vectors) for vectors in of] for of in (queries, documents))
    return np.asarray(model.similarity(asked, found).numpy())


LIBRARY = job.Library(
    name="sentence-transformers",
    packages=("sentence-transformers", "transformers", "tokenizers", "torch"),
    load=load,
    modules=list,
    settings=settings,
    tokens=tokens,
    encode=encode,
    scores=maxsim,
)

if __name__ == "__main__":
    job.main(LIBRARY)
