# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "pylate==1.6.0", "fast-plaid==1.4.6.2110", "fastkmeans==0.5.0", "torch==2.11.0", "transformers==5.3.0",
#   "sentence-transformers==5.3.0", "ujson==5.12.0", "ninja==1.11.1.4",
# ]
# ///
"""PyLate's encoder and its two PLAID indexes, called as in its documentation, with default settings.

Its default index, fast-plaid, has a separate build for each torch version; the newest is for 2.11. The other index is
Stanford's (`use_fast=False`).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peers.worker import Prepared, null_forward, read_documents, read_queries, serve, write_run
from pylate import indexes, models, retrieve

# Stanford's index compiles C++ with ninja, which is in the same folder as this interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def model_of(job: Mapping[str, Any]) -> models.ColBERT:
    """Return the checkpoint in PyLate, without markers, expansion and skiplist, as for the other contenders.

    PyLate adds a projection after every backbone; it is set to the identity.
    """
    model = models.ColBERT(
        model_name_or_path=job["model"],
        embedding_size=job["hidden_size"],
        query_prefix="",
        document_prefix="",
        query_length=job["max_tokens"],
        document_length=job["max_tokens"],
        do_query_expansion=False,
        skiplist_words=[],
        device="cpu",
        model_kwargs={"dtype": job["variant"]},
    )
    with torch.no_grad():
        model[1].linear.weight.copy_(torch.eye(job["hidden_size"]))
    return model


def encode(job: Mapping[str, Any]) -> Prepared:
    """Prepare encoding of documents; the stage `host` replaces model and projection by ones that compute nothing."""
    model = model_of(job)
    _, texts = read_documents(job["inputs"])
    if job["stage"] == "host":
        model[0].auto_model.forward = null_forward(job["hidden_size"], dtype=model[0].auto_model.dtype)
        model[1].forward = lambda features: features
    return Prepared(
        lambda documents: model.encode(texts[:documents], is_query=False, show_progress_bar=False),
        facts=lambda vectors: {"vectors": sum(map(len, vectors))},
        array=lambda vectors: None if job["stage"] == "host" else _first(vectors, job["compared"]),
    )


def _first(vectors: list[Any], texts: int) -> Any:
    """Return the first texts' vectors in fp32; PyLate returns arrays, or tensors for types that numpy lacks."""
    return torch.cat([torch.as_tensor(text) for text in vectors[:texts]]).float().numpy()


def end_to_end(job: Mapping[str, Any]) -> Prepared:
    """Prepare a round that is the whole evaluation; the stage `warm-up` compiles Stanford's C++ extensions."""

    def run(size: int) -> dict[str, float]:
        model = model_of(job)
        ids, texts = (column[:size] for column in read_documents(job["inputs"]))
        query_ids, queries = read_queries(job["inputs"])
        started = time.perf_counter()
        documents = model.encode(texts, is_query=False, show_progress_bar=False)
        encoded = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            index = indexes.PLAID(
                index_folder=folder,
                index_name="bench",
                override=True,
                use_fast=job["index"] == "fast-plaid",
                embedding_size=job["hidden_size"],
            )
            index.add_documents(documents_ids=ids, documents_embeddings=documents)
            indexed = time.perf_counter()
            vectors = model.encode(queries, is_query=True, show_progress_bar=False)
            found = retrieve.ColBERT(index=index).retrieve(queries_embeddings=vectors, k=job["depth"], device="cpu")
        rows = zip(query_ids, found, strict=True)
        hits = {query: [(hit["id"], float(hit["score"])) for hit in ranked] for query, ranked in rows}
        write_run(job["run"], hits, tag="pylate")
        parts = {"encode_s": encoded - started, "index_s": indexed - encoded}
        return {**parts, "search_s": time.perf_counter() - indexed}

    return Prepared(run, facts=lambda parts: parts)


if __name__ == "__main__":
    stages = {"encode": encode, "host": encode, "end-to-end": end_to_end, "warm-up": end_to_end}
    serve(
        stages,
        packages=("pylate", "fast-plaid", "fastkmeans", "sentence-transformers", "transformers", "tokenizers", "torch"),
    )
