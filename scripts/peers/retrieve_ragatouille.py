"""The job of RAGatouille: its in-memory search (`encode`, `search_encoded_docs`), one block of documents at a time.

The library pads every document with zero vectors to the model's maximum length and includes them in the maximum.
`maxsim` calls the library's scoring on smaller blocks padded with zeros: the scores are the same and need less memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import job

job.quiet()

import numpy as np
import torch
from ragatouille import RAGPretrainedModel

# Its dependency colbert-ai compiles C++ with ninja, which is in the same folder as this interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def load(options: argparse.Namespace) -> Any:
    """Return the library's model of the checkpoint, with the document length that `encode` would set."""
    model = RAGPretrainedModel.from_pretrained(
        str(options.checkpoint), verbose=0, index_root=str(options.out / "index")
    ).model
    model._set_inference_max_tokens(documents=[""], max_tokens="auto")
    return model


def settings(model: Any) -> dict[str, Any]:
    """Return what the library resolved."""
    checkpoint = model.inference_ckpt
    config = checkpoint.colbert_config
    return {
        "query_marker": config.query_token_id,
        "document_marker": config.doc_token_id,
        "query_tokens": "the query's words times 1.35, from 32 to the model's positions",
        "document_tokens": checkpoint.doc_tokenizer.doc_maxlen,
        "attend_to_expansion": config.attend_to_mask_tokens,
        "mask_punctuation": config.mask_punctuation,
        "skipped_ids": sorted({token for token in checkpoint.skiplist if isinstance(token, int)}),
        "padding": "zero vectors take part in the maximum",
        "dtype": str(next(checkpoint.model.parameters()).dtype),
    }


def tokens(model: Any, texts: Sequence[str], side: job.Side) -> list[job.Tokens]:
    """Return the texts' token ids and masks; a query's length depends on the query."""
    checkpoint, found = model.inference_ckpt, []
    for text in texts:
        if side == "query":
            model._encode_index_free_queries(text)
            ids, attended = checkpoint.query_tokenizer.tensorize([text])
            kept = torch.ones_like(ids, dtype=torch.bool)
        else:
            ids, attended = checkpoint.doc_tokenizer.tensorize([text])
            kept = torch.tensor(checkpoint.mask(ids, skiplist=checkpoint.skiplist)).bool()
        found.append(job.trimmed(ids[0].numpy(), attended[0].numpy(), kept[0].numpy()))
    return found


def encode(model: Any, texts: Sequence[str], side: job.Side) -> list[np.ndarray]:
    """Return the texts' vectors without the zero vectors of padding and punctuation."""
    if side == "query":
        return [model._encode_index_free_queries(text)[0][0].float().numpy() for text in texts]
    found, *_ = model.inference_ckpt.docFromText(list(texts), bsize=32, keep_dims=False)
    return [vectors.float().numpy() for vectors in found]


def maxsim(model: Any, queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """Return the library's own scores [Q, N]."""
    longest = 1 + max(map(len, documents))  # every document gets at least one zero vector
    padded = torch.zeros(len(documents), longest, documents[0].shape[1])
    for place, vectors in enumerate(documents):
        padded[place, : len(vectors)] = torch.from_numpy(vectors)
    rows = [model._colbert_score(torch.from_numpy(query).unsqueeze(0), padded, None) for query in queries]
    return np.stack([row.numpy() for row in rows])


LIBRARY = job.Library(
    name="ragatouille",
    packages=("ragatouille", "colbert-ai", "transformers", "tokenizers", "torch"),
    load=load,
    modules=lambda model: [model.inference_ckpt.model],
    settings=settings,
    tokens=tokens,
    encode=encode,
    scores=maxsim,
)

if __name__ == "__main__":
    job.main(LIBRARY)
