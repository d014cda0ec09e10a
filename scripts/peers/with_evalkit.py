"""evalkit as a contender; it runs in the benchmark's own environment."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.random_encoder import FULL_SIZE, token_table
from peers.random_encoder import encoder_of as encoder_of_random
from peers.worker import Prepared, null_forward, read_documents, serve
from rich.console import Console

from evalkit.config import compose
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.maxsim import choice
from evalkit.models.encoder import DTYPES, Encoder, checkpoints, load_encoders
from evalkit.ragged import ragged
from evalkit.ranking import floors, no_hits
from evalkit.run import auto, cells, pipeline, shard_step
from evalkit.run.encode import Encoding
from evalkit.run.encode import encode as encode_texts
from evalkit.run.search import search_shard, to_run
from evalkit.scoring import metrics
from evalkit.storage import shard_files, trec
from evalkit.storage.shard_files import ShardVectors, vectors_to_arrays

CPU = torch.device("cpu")


def maxsim(job: Mapping[str, Any]) -> Prepared:
    """Prepare the nominating kernel at a precision, or the complete exact search for the best `depth` documents."""
    folder = Path(job["inputs"])
    query_QLD, document_XD, lengths_N = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("queries", "documents", "lengths")
    )
    shard = ShardVectors(tuple(f"d{i}" for i in range(len(lengths_N))), ragged(document_XD, lengths_N))
    kernel = choice.bind("auto", shard.vectors, device=CPU, precision=job["precision"])

    def sides(queries: int) -> ShardVectors:
        lengths_Q = torch.full((queries,), query_QLD.shape[1])
        return ShardVectors(
            tuple(f"q{i}" for i in range(queries)), ragged(query_QLD[:queries].flatten(0, 1), lengths_Q)
        )

    def product(queries: int) -> torch.Tensor:
        return kernel.scores(sides(queries).vectors)

    def search(queries: int) -> object:
        open_Q = floors(no_hits(), queries=queries, depth=job["depth"])
        return search_shard(
            sides(queries),
            shard,
            depth=job["depth"],
            floor_Q=open_Q,
            device=CPU,
            precision=job["precision"],
        )

    if job["variant"] == "search":
        return Prepared(search)
    return Prepared(product, array=torch.Tensor.numpy)


def config_of(job: Mapping[str, Any], folder: str, *words: str) -> RunConfig:
    """Return the config of a run on the job's collection that writes everything below `folder`."""
    data = ["dataset=folder", f"dataset.path={job['inputs']}"] if job.get("inputs") else []
    return compose.compose([*job["words"], *data, *words, f"results_dir={folder}/results", f"cache_dir={folder}/cache"])


def encoder_of(config: RunConfig) -> Encoder:
    """Load the only encoder of a run's config."""
    assert isinstance(config.model, EncoderConfig)
    found = checkpoints(config.model, [dim for dim in config.dims if dim is not None])
    (encoder,) = load_encoders(config.model, found, device=CPU, attention=config.engine.attention)
    return encoder


def encode(job: Mapping[str, Any]) -> Prepared:
    """Prepare encoding of texts to fp16 vectors; the stage `host` replaces the model by one that computes nothing.

    The variant `stored` also writes the vectors as a shard file.
    """
    config = config_of(job, job["work"])
    encoder = encoder_of(config)
    (dim,) = encoder.heads
    ids, texts = read_documents(job["inputs"])
    if job["stage"] == "host":
        encoder.module.forward = null_forward(job["hidden_size"], dtype=encoder.dtype)

    def run(documents: int) -> ShardVectors:
        vectors = encode_texts(
            ids[:documents],
            encoder.tokenize_documents(texts[:documents]),
            encoder,
            Encoding(
                documents=True,
                batch_tokens=auto.batch_tokens(config.engine.batch_tokens, encoder.device),
                storage=DTYPES[config.store.dtype],
            ),
        )[dim]
        if job["variant"] == "stored":
            shard_files.save(Path(job["work"]) / "store", "shard", vectors_to_arrays(vectors), {})
        return vectors

    def compared(vectors: ShardVectors) -> Any:
        if job["stage"] == "host":  # the vectors are rows of a random table
            return None
        rows_XD, offsets_N = vectors.vectors
        return rows_XD[: int(offsets_N[job["compared"]])].float().numpy()

    return Prepared(run, facts=lambda vectors: {"vectors": len(vectors.rows_XD)}, array=compared)


def evaluate(config: RunConfig, run_file: Path) -> dict[str, float]:
    """Encode and search a collection and write the run file, without scoring it; return the times of its parts."""
    started = time.perf_counter()
    task = pipeline.prepare(config, console=Console(quiet=True))
    planned = cells.plan(task)
    surveyed = time.perf_counter()
    best = pipeline.search(task, planned)
    for cell in planned:
        ranked = to_run(best[cell.run_id], [query.id for query in task.dataset.queries])
        trec.write_run(ranked, run_file, tag="evalkit")
    seconds = shard_step.costs(task, planned[0]).seconds
    parts: dict[str, float] = {
        f"{stage}_s": float(seconds[stage]) for stage in ("encode", "search") if stage in seconds
    }
    return {"survey_s": surveyed - started, **parts}


def end_to_end(job: Mapping[str, Any]) -> Prepared:
    """Prepare a round that is the whole evaluation, from an empty folder to the run file."""

    def run(_size: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=job["work"]) as folder:
            return evaluate(config_of(job, folder), Path(job["run"]))

    return Prepared(run, facts=lambda parts: parts)


def score(job: Mapping[str, Any]) -> Prepared:
    """Prepare the computation of a run file's NDCG@10; all contenders are scored by this one implementation."""

    def run(_size: int) -> dict[str, float]:
        qrels: dict[str, dict[str, int]] = {}
        for line in (Path(job["inputs"]) / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
        measured = metrics.score(trec.read_run(Path(job["run"])), qrels, ("ndcg@10",))
        return {"ndcg@10": round(measured.means["ndcg@10"], 5)}

    return Prepared(run, facts=lambda value: value)


def checkpoint(job: Mapping[str, Any]) -> Prepared:
    """Prepare encoding and search that store embeddings, only the top-k, or nothing."""
    if job["variant"] == "nothing":
        shard_files.save = lambda *_: None

    def run(_size: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=job["work"]) as folder:
            keep = "topk" if job["variant"] == "nothing" else job["variant"]
            config = config_of(job, folder, f"store.keep={keep}")
            task = pipeline.prepare(config, console=Console(quiet=True))
            started = time.perf_counter()
            pipeline.search(task, cells.plan(task))
            return {"encode_and_search_s": time.perf_counter() - started}

    return Prepared(run, facts=lambda parts: parts)


def dims(job: Mapping[str, Any]) -> Prepared:
    """Prepare a whole run of the demo, including metrics, in new folders."""

    def run(documents: int) -> int:
        with tempfile.TemporaryDirectory(dir=job["work"]) as folder:
            config = config_of(job, folder, f"dataset.demo.documents={documents}")
            return len(pipeline.run(config, console=Console(quiet=True)))

    return Prepared(run, facts=lambda finished: {"cells": finished})


def dims_full_size(job: Mapping[str, Any]) -> Prepared:
    """Prepare encoding, storing and searching documents at several dims of a full-size model with random weights."""
    dims = job["dims"]
    encoder = encoder_of_random(CPU, dtype=torch.float32, attention="sdpa", dims=job["all_dims"], **FULL_SIZE).only(
        dims
    )
    lengths_N = np.array(job["lengths"])
    table = token_table(lengths_N, vocabulary=FULL_SIZE["vocabulary"])
    ids = [f"d{place}" for place in range(len(lengths_N))]
    queries = token_table(np.full(job["queries"], 32), vocabulary=FULL_SIZE["vocabulary"])
    query_ids = [f"q{place}" for place in range(job["queries"])]
    of_documents = Encoding(documents=True, batch_tokens=auto.batch_tokens("auto", CPU), storage=torch.float16)
    query_vectors = encode_texts(query_ids, queries, encoder, dataclasses.replace(of_documents, documents=False))

    def run(_size: int) -> int:
        shards = encode_texts(ids, table, encoder, of_documents)
        for dim, shard in shards.items():
            shard_files.save(Path(job["work"]) / "store", f"dim-{dim}", vectors_to_arrays(shard), {})
            open_Q = floors(no_hits(), queries=len(query_ids), depth=job["depth"])
            search_shard(query_vectors[dim], shard, depth=job["depth"], floor_Q=open_Q, device=CPU)
        return len(shards)

    return Prepared(run, facts=lambda found: {"cells": found})


if __name__ == "__main__":
    serve(
        {
            "maxsim": maxsim,
            "encode": encode,
            "host": encode,
            "end-to-end": end_to_end,
            "score": score,
            "checkpoint": checkpoint,
            "dims": dims,
            "dims-full-size": dims_full_size,
        },
        packages=("evalkit", "torch", "transformers", "tokenizers"),
    )
