# /// script
# requires-python = ">=3.11"
# dependencies = ["sentence-transformers==6.2.0", "transformers==5.23.0", "torch==2.13.0", "numpy"]
# ///
"""sentence-transformers' multi-vector encoder and MaxSim, called as in its documentation, with default settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from peers.worker import Prepared, null_forward, read_documents, read_maxsim, read_queries, serve, write_run
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.util import maxsim as library_maxsim
from torch import Tensor


def model_of(job: Mapping[str, Any]) -> MultiVectorEncoder:
    """Return the checkpoint as a multi-vector encoder without a head: every token's hidden state, normalised."""
    backbone = Transformer(job["model"], model_kwargs={"dtype": job["variant"]})
    modules = [backbone, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, device="cpu")
    model.max_seq_length = job["max_tokens"]
    return model


def maxsim(job: Mapping[str, Any]) -> Prepared:
    """Prepare MaxSim on lists of texts, in fp32 or bf16."""
    query, documents, lengths_N = (torch.from_numpy(array) for array in read_maxsim(job))
    dtype = getattr(torch, job["variant"])
    texts = list(torch.split(documents.to(dtype), lengths_N.tolist()))
    queries = list(query.to(dtype))
    return Prepared(lambda count: library_maxsim(queries[:count], texts), array=Tensor.numpy)


def encode(job: Mapping[str, Any]) -> Prepared:
    """Prepare encoding of documents; the stage `host` replaces the model by one that computes nothing."""
    model = model_of(job)
    _, texts = read_documents(job["inputs"])
    if job["stage"] == "host":
        backbone: Any = model[0]
        backbone.auto_model.forward = null_forward(job["hidden_size"], dtype=backbone.auto_model.dtype)
    return Prepared(
        lambda documents: model.encode_document(texts[:documents], show_progress_bar=False),
        facts=lambda vectors: {"vectors": sum(map(len, vectors))},
        array=lambda vectors: None if job["stage"] == "host" else torch.cat(vectors[: job["compared"]]).float().numpy(),
    )


def end_to_end(job: Mapping[str, Any]) -> Prepared:
    """Prepare a round that is the whole evaluation."""

    def run(_size: int) -> dict[str, float]:
        model = model_of(job)
        ids, texts = read_documents(job["inputs"])
        query_ids, queries = read_queries(job["inputs"])
        started = time.perf_counter()
        documents = model.encode_document(texts, show_progress_bar=False)
        encoded = time.perf_counter()
        scores = model.similarity(model.encode_query(queries, show_progress_bar=False), documents)
        best, places = scores.topk(min(job["depth"], len(ids)), dim=1)
        rows = zip(query_ids, places.tolist(), best.tolist(), strict=True)
        hits = {query: [(ids[i], score) for i, score in zip(row, of_row, strict=True)] for query, row, of_row in rows}
        write_run(job["run"], hits, tag="sentence-transformers")
        return {"encode_s": encoded - started, "search_s": time.perf_counter() - encoded}

    return Prepared(run, facts=lambda parts: parts)


if __name__ == "__main__":
    stages = {"maxsim": maxsim, "encode": encode, "host": encode, "end-to-end": end_to_end}
    serve(stages, packages=("sentence-transformers", "transformers", "tokenizers", "torch"))
