"""Jobs with workers: the driver reads shards, sends their texts to workers, and checkpoints and merges their top-k.

`worker_steps` has what runs in the workers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

from evalkit.bm25 import lucene
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.survey import ShardRange, read_shard
from evalkit.engines import ray as engine
from evalkit.engines.ray_cluster import Resources
from evalkit.errors import EngineError
from evalkit.ranking import Hits, floors, merge, no_hits
from evalkit.run import jobs
from evalkit.run.background import Writer
from evalkit.run.cells import Cell, Task
from evalkit.run.progress import ProgressCounter, documents_bar
from evalkit.run.search import hits_from_arrays, hits_to_arrays
from evalkit.run.shard_step import manifest_facts, queue_write
from evalkit.run.worker_steps import (
    CountedTerms,
    LoadCountingStep,
    LoadVectorStep,
    ShardDocuments,
    ShardResult,
    ShardTexts,
    SharedFile,
)
from evalkit.storage import keys, shard_files
from evalkit.storage.paths import make_folder, topk_dir, write_atomic

BYTES_PER_TOKEN = 2
"""Bytes of text per token, by the survey's upper estimate; pickling adds little."""
STATES_EVERY_S = 2.0
SHOWN_FAILURES = 3


def search_vectors(
    task: Task, by_dim: Mapping[int, Cell], model: EncoderConfig, *, reproduced_dims: set[int]
) -> dict[str, Hits]:
    """Encode and search all shards on workers, for cells by dim. Return each cell's best hits, by run id.

    Dims whose published vectors were reproduced are added to `reproduced_dims`. Raises EngineError if shards failed
    twice, after all other shards are finished.
    """
    config = jobs.absolute(task.config)
    best = {cell.run_id: BestHits(task.depth, len(task.dataset.queries)) for cell in by_dim.values()}
    title = f"{keys.label(model.name, *by_dim)} on {task.dataset.name}"
    with jobs.claimed(config, best), documents_bar(task.console, title, total=task.survey.documents) as advance:
        search = _Search(task, config, by_dim, best, advance, reproduced_dims)
        missing = dict(search.without_topk())
        if missing:
            search.compute(missing)
    return {run_id: of.merged() for run_id, of in best.items()}


class _Search(NamedTuple):
    """One pass of the workers over a corpus: the cells, their best hits so far, and the progress."""

    task: Task
    config: RunConfig
    """The task's config with absolute paths, for workers in other folders."""
    by_dim: Mapping[int, Cell]
    best: Mapping[str, BestHits]
    advance: ProgressCounter
    reproduced_dims: set[int]

    def without_topk(self) -> Iterator[tuple[ShardRange, tuple[int, ...]]]:
        """Merge the top-k that are on disk; yield the other shards, each with the dims that lack its top-k."""
        for shard in self.task.survey.shards:
            dims = []
            for dim, cell in self.by_dim.items():
                arrays = shard_files.load(topk_dir(self.task.config.cache_dir, cell.search_key), shard.checksum)
                if arrays is None:
                    dims.append(dim)
                else:
                    self.best[cell.run_id].add(hits_from_arrays(arrays))
            if dims:
                yield shard, tuple(dims)
            else:
                self.advance(shard.stop - shard.start, 0)
                self.advance.shard_done()

    def compute(self, missing: Mapping[ShardRange, tuple[int, ...]]) -> None:
        """Encode and search shards on workers, each at the dims that lack its top-k."""
        task, config = self.task, self.config
        pool = engine.pool(resources(config, task.device))
        with _shared_file(config) as shared_file:
            load = LoadVectorStep(
                config=config,
                dataset=task.dataset.name,
                queries=task.dataset.queries,
                drop_self=task.dataset.drop_self,
                device=task.device.type,
                threads=config.engine.threads or pool.cpus_per_worker,
                cells=self.by_dim,
                shared_file=shared_file,
            )
            key = keys.key_of(
                {"cells": sorted(self.best), "cache": str(config.cache_dir), "shared_file": str(shared_file)}
            )
            pool.prepare(key, load)

            def items() -> Iterator[engine.WorkItem[ShardTexts]]:
                for shard, dims in missing.items():
                    documents = list(read_shard(task.dataset.corpus, shard, name=task.dataset.name))
                    texts = [document.joined() for document in documents]
                    work = ShardTexts(shard, tuple(document.id for document in documents), texts, dims)
                    yield engine.WorkItem(name=_shard_name(shard), work=work, size=sum(map(len, texts)))

            def latest() -> dict[str, np.ndarray]:
                return {run_id: of.floor_Q for run_id, of in self.best.items()}

            _handle_results(
                pool.map(key, load, items(), latest=latest, on_tick=_StateRecorder(config, pool)), self.store
            )

    def store(self, found: ShardResult, writer: Writer) -> None:
        """Checkpoint and merge a worker's result for one shard."""
        for dim, (shared, facts) in found.hits.items():
            cell, hits = self.by_dim[dim], Hits(*map(np.array, shared))  # copied out of Ray's object store
            folder = topk_dir(self.config.cache_dir, cell.search_key)
            queue_write(writer, folder, found.shard.checksum, hits_to_arrays(hits), facts)
            self.best[cell.run_id].add(hits)
        self.reproduced_dims.update(found.reproduced_dims)
        self.advance(found.shard.stop - found.shard.start, found.tokens)
        self.advance.shard_done()


def count_terms(task: Task, cell: Cell, terms: lucene.QueryTerms) -> None:
    """Count the queries' terms on workers, in every shard without counts on disk; checkpoint the counts."""
    config, model = jobs.absolute(task.config), task.config.model
    assert isinstance(model, Bm25Config)
    folder = topk_dir(config.cache_dir, cell.search_key)
    missing = [shard for shard in task.survey.shards if shard_files.finished(folder, shard.checksum) is None]
    if not missing:
        return
    with (
        jobs.claimed(config, [cell.run_id]),
        documents_bar(task.console, f"{model.name} counts {task.dataset.name}", total=task.survey.documents) as advance,
    ):
        pool = engine.pool(resources(config, torch.device("cpu")))
        load = LoadCountingStep(model=model, vocabulary=terms.vocabulary)
        pool.prepare(cell.run_id, load)

        def items() -> Iterator[engine.WorkItem[ShardDocuments]]:
            for shard in missing:
                documents = list(read_shard(task.dataset.corpus, shard, name=task.dataset.name))
                size = sum(len(document.text) for document in documents)
                yield engine.WorkItem(name=_shard_name(shard), work=ShardDocuments(shard, documents), size=size)

        def store(counted: CountedTerms, writer: Writer) -> None:
            shard = counted.shard
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in counted.arrays.items()}
            queue_write(writer, folder, shard.checksum, tensors, manifest_facts(shard, cell))
            advance(shard.stop - shard.start, 0)
            advance.shard_done()

        _handle_results(pool.map(cell.run_id, load, items(), on_tick=_StateRecorder(config, pool)), store)


def resources(config: RunConfig, device: torch.device) -> Resources:
    """Return the number of workers, GPUs and CPUs that a config asks for."""
    settings, shard_tokens = config.engine, config.store.shard_tokens
    assert shard_tokens != "auto"  # `auto.resolved` has replaced it by a number
    return Resources(
        address=settings.address,
        workers=settings.workers,
        gpus_per_worker=settings.gpus_per_worker if device.type == "cuda" else 0,
        cpus_per_worker=settings.cpus_per_worker,
        object_bytes=BYTES_PER_TOKEN * shard_tokens,
    )


def provenance(config: RunConfig) -> dict[str, Any]:
    """Return the facts of the engine that a result records; none for a job of one process."""
    if config.engine.name != "ray":
        return {}
    facts: dict[str, Any] = {"engine": "ray"}
    if (pool := engine.current()) is not None:
        facts |= {"workers": len(pool.devices), "nodes": len(set(pool.nodes)), "worker_devices": sorted(pool.devices)}
    return facts


def _handle_results(answers: Iterator[engine.Done[Any] | engine.Failed], store: Callable[[Any, Writer], None]) -> None:
    """Call `store` for every result of the workers. At the end, raises EngineError that names the failed shards."""
    failed: list[engine.Failed] = []
    done = 0
    with Writer() as writer:
        for answer in answers:
            if isinstance(answer, engine.Failed):
                failed.append(answer)
            else:
                store(answer.result, writer)
                done += 1
    if failed:
        _raise_failures(failed, done)


def _raise_failures(failed: Sequence[engine.Failed], done: int) -> NoReturn:
    named = "; ".join(f"{one.name}: {' and '.join(one.reasons)}" for one in failed[:SHOWN_FAILURES])
    more = f"; and {len(failed) - SHOWN_FAILURES} more" if len(failed) > SHOWN_FAILURES else ""
    msg = (
        f"{len(failed)} of {done + len(failed)} shards failed twice ({named}{more}); the others are finished: the same "
        "command does only what is missing"
    )
    raise EngineError(msg)


def _shard_name(shard: ShardRange) -> str:
    """Return a shard's name in messages; documents are counted from 1."""
    return f"documents {shard.start + 1:,} to {shard.stop:,}"


class BestHits:
    """The best hits of one cell so far.

    New hits are merged only when they are as many as the merged ones, so that hits are sorted a few times only.
    `floor_Q` is that of the last merge: a lower floor is still correct, workers only return a few more hits.
    """

    def __init__(self, depth: int, queries: int) -> None:
        """Start without hits; keeps `depth` of them for each of `queries` queries."""
        self._depth = depth
        self._merged, self._waiting = no_hits(), [no_hits()]
        self._count = 0
        self.floor_Q = floors(self._merged, queries=queries, depth=depth)

    def add(self, hits: Hits) -> None:
        """Add a shard's hits."""
        self._waiting.append(hits)
        self._count += len(hits.query_H)
        if self._count >= len(self._merged.query_H):
            self.merged()

    def merged(self) -> Hits:
        """Merge all hits that were added and return the best."""
        if self._count:
            self._merged = merge([self._merged, *self._waiting], depth=self._depth)
            self._waiting, self._count = [], 0
            self.floor_Q = floors(self._merged, queries=len(self.floor_Q), depth=self._depth)
        return self._merged


class _StateRecorder:
    """Records the state of the workers for `evalkit status`: only changes, and at most once in STATES_EVERY_S."""

    def __init__(self, config: RunConfig, pool: engine.Pool) -> None:
        self._config, self._pool = config, pool
        self._next = 0.0
        self._last: list[engine.WorkerState] = []

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        states = self._pool.states()
        if states != self._last:
            jobs.record_workers(self._config, [state._asdict() for state in states])
            self._last = states
        self._next = now + STATES_EVERY_S


@contextmanager
def _shared_file(config: RunConfig) -> Iterator[SharedFile | None]:
    """If workers write embeddings, write the file that proves a shared cache; yield None otherwise."""
    if config.store.keep != "embeddings":
        yield None
        return
    make_folder(config.cache_dir)
    shared_file = SharedFile(config.cache_dir / f".shared-{secrets.token_hex(8)}", secrets.token_hex(16))
    write_atomic(shared_file.path, shared_file.content.encode())
    try:
        yield shared_file
    finally:
        shared_file.path.unlink(missing_ok=True)
