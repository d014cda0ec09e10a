"""The job of Stanford ColBERT (colbert-ai): encoding with default settings, and its exact MaxSim or its PLAID index.

The library computes in fp16 under autocast on a GPU and in fp32 on a CPU.
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
from colbert import Indexer, Searcher
from colbert.infra import ColBERTConfig, Run, RunConfig
from colbert.modeling.checkpoint import Checkpoint
from colbert.modeling.colbert import colbert_score

# The library compiles C++ with ninja, which is in the same folder as this interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
BATCH = 32


def load(options: argparse.Namespace) -> Checkpoint:
    """Return the checkpoint as the library reads it: lengths and markers from artifact.metadata."""
    return Checkpoint(str(options.checkpoint), colbert_config=ColBERTConfig(), verbose=0)


def settings(model: Checkpoint) -> dict[str, Any]:
    """Return what the library resolved."""
    config = model.colbert_config
    return {
        "query_marker": config.query_token_id,
        "document_marker": config.doc_token_id,
        "query_tokens": model.query_tokenizer.query_maxlen,
        "document_tokens": model.doc_tokenizer.doc_maxlen,
        "attend_to_expansion": config.attend_to_mask_tokens,
        "mask_punctuation": config.mask_punctuation,
        "skipped_ids": sorted({token for token in model.skiplist if isinstance(token, int)}),
        "dtype": str(next(model.model.parameters()).dtype),
    }


def tokens(model: Checkpoint, texts: Sequence[str], side: job.Side) -> list[job.Tokens]:
    """Return the texts' token ids and masks."""
    tokenizer = model.query_tokenizer if side == "query" else model.doc_tokenizer
    ids, attended = tokenizer.tensorize(list(texts))
    if side == "query":
        kept = torch.ones_like(ids, dtype=torch.bool)
    else:
        kept = torch.tensor(model.mask(ids, skiplist=model.skiplist)).bool()
    return [job.trimmed(*of_text) for of_text in zip(ids.numpy(), attended.numpy(), kept.numpy(), strict=True)]


def encode(model: Checkpoint, texts: Sequence[str], side: job.Side) -> list[np.ndarray]:
    """Return the texts' vectors."""
    if side == "query":
        return [vectors.float().numpy() for vectors in model.queryFromText(list(texts), bsize=BATCH, to_cpu=True)]
    found, *_ = model.docFromText(list(texts), bsize=BATCH, keep_dims=False)
    return [vectors.float().numpy() for vectors in found]


def maxsim(model: Checkpoint, queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """Return the library's own scores [Q, N], computed one query at a time on padded documents."""
    tensors = [torch.from_numpy(vectors) for vectors in documents]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    lengths = torch.tensor([len(vectors) for vectors in documents])
    mask = (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).unsqueeze(-1)
    rows = [
        colbert_score(torch.from_numpy(query).unsqueeze(0), padded, mask, config=model.colbert_config)
        for query in queries
    ]
    return np.stack([row.numpy() for row in rows])


def with_index(work: job.Work) -> job.Found:
    """Search with the library's PLAID index, as in its README."""
    config = ColBERTConfig(root=str(work.out / "index"), avoid_fork_if_possible=True)
    name = work.model.name
    with Run().context(RunConfig(nranks=1, experiment="peer", root=str(work.out / "index"))):
        with job.timed("index", work.seconds):  # this includes encoding
            Indexer(checkpoint=name, config=config).index(name="index", collection=work.documents, overwrite=True)
        searcher = Searcher(index="index", collection=work.documents, config=config)
        with job.timed("search", work.seconds):
            found = [searcher.search(query, k=work.depth) for query in work.queries]
    folder = work.out / "index"
    work.facts["dim"] = work.model.colbert_config.dim
    work.facts["index_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [[(int(p), float(score)) for p, _, score in zip(*hits, strict=True)] for hits in found]


LIBRARY = job.Library(
    name="colbert-ai",
    packages=("colbert-ai", "transformers", "tokenizers", "torch", "faiss-cpu"),
    load=load,
    modules=lambda model: [model.model],
    settings=settings,
    tokens=tokens,
    encode=encode,
    scores=maxsim,
    indexed={"plaid": with_index},
)

if __name__ == "__main__":
    job.main(LIBRARY)
