"""Jobs with workers: the driver reads shards, sends their texts to workers, and checkpoints and merges their top-k.

A worker executes the same code as a job of one process (`VectorStep`, or BM25's counting), so the bytes are the same.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS, Analyzer
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.survey import ShardRange, Survey, read_shard
from evalkit.engines import ray as engine
from evalkit.errors import EngineError, ModelError, StoreError
from evalkit.kernels.cpu import numba_folder
from evalkit.models import metadata
from evalkit.models.encoder import checkpoints
from evalkit.ranking import Hits, floors, merge, no_hits
from evalkit.run import auto, jobs, loaded
from evalkit.run.background import Writer, limit_tokenizer, tokenizer_threads
from evalkit.run.cells import Cell, Task
from evalkit.run.progress import ProgressCounter, documents_bar, print_line
from evalkit.run.search import hits_from_arrays, hits_to_arrays
from evalkit.run.shard_step import Texts, VectorStep, vector_step
from evalkit.storage import keys, shard_files
from evalkit.storage.paths import make_folder, topk_dir, write_atomic, write_error
from evalkit.types import Dataset, Document, Query

BYTES_PER_TOKEN = 2
"""Bytes of text per token, by the survey's upper estimate; pickling adds little."""
STATES_EVERY_S = 2.0
SHOWN_FAILURES = 3


# ---- messages between driver and workers


class ShardTexts(NamedTuple):
    """A shard for a worker to encode: its ids and joined texts, and the dims that still lack its top-k."""

    shard: ShardRange
    ids: tuple[str, ...]
    texts: list[str]
    dims: tuple[int, ...]


class ShardResult(NamedTuple):
    """A worker's result for a shard: hits and manifest facts by dim, and the number of tokens encoded."""

    shard: ShardRange
    hits: dict[int, tuple[Hits, dict[str, Any]]]
    tokens: int
    reproduced_dims: frozenset[int]
    """The dims whose published vectors the worker's model reproduced."""


class ShardDocuments(NamedTuple):
    """A shard for a worker to count BM25's terms in; titles and texts are counted separately."""

    shard: ShardRange
    documents: list[Document]


class CountedTerms(NamedTuple):
    """The counts of BM25's terms in a shard."""

    shard: ShardRange
    arrays: dict[str, np.ndarray]


# ---- in a worker's process


@dataclass(frozen=True, kw_only=True)
class LoadVectorStep:
    """Builds a worker's step: checks that the cache is the driver's, loads the encoders and encodes the queries."""

    config: RunConfig
    dataset: str
    queries: tuple[Query, ...]
    drop_self: bool
    device: str
    threads: int
    cells: Mapping[int, Cell]
    shared_file: SharedFile | None

    def __call__(self) -> WorkerVectorStep:
        """Return the step. Raises ModelError, StoreError or DeviceError."""
        model = self.config.model
        assert isinstance(model, EncoderConfig)
        if self.shared_file is not None:
            self.shared_file.require(self.config)
        numba_folder.set_fallback(self.config.cache_dir / "numba")
        loaded.keep()
        device = auto.choose_device(self.device)
        torch.set_num_threads(self.threads)
        limit_tokenizer(tokenizer_threads(self.config.engine.tokenizer_workers, device) or self.threads)
        found = checkpoints(model, list(self.cells))
        for dim, cell in self.cells.items():
            if cell.checkpoint is not None and found[dim].checksums != cell.checkpoint.checksums:
                msg = (
                    f"model {keys.label(model.name, dim)}: the checkpoint in {found[dim].folder} differs by content "
                    f"from the driver's in {cell.checkpoint.folder}; wanted the same files on every node"
                )
                raise ModelError(msg)
        dataset = Dataset(self.dataset, "", "", _NoCorpus(), self.queries, {}, self.drop_self, "", {})
        task = Task(self.config, dataset, Survey(0, "", (), 0, ()), (), device, Console(quiet=True))
        # A checkpoint is watched for changes on the node that reads it, which may not be the driver's.
        here = {dim: cell._replace(checkpoint=found[dim]) for dim, cell in self.cells.items()}
        return WorkerVectorStep(task, found, here, self.threads)


class WorkerVectorStep:
    """A worker's step: for every backbone a `VectorStep`, applied to the texts that the driver sent with the shard."""

    def __init__(self, task: Task, found: Mapping[int, Any], cells: Mapping[int, Cell], threads: int) -> None:
        """Load the encoders and encode the queries."""
        settings, model = task.config.engine, task.config.model
        assert isinstance(model, EncoderConfig)
        self._threads = threads
        self._ahead = tokenizer_threads(settings.tokenizer_workers, task.device) > 0
        self._steps: list[VectorStep] = []
        with ExitStack() as stack:
            encoders = loaded.encoders(model, found, device=task.device, engine=settings)
            self._reproduced_dims = frozenset(dim for one in encoders for dim in one.reproduced_dims)
            for encoder, _ in encoders:
                members = {dim: cells[dim] for dim in encoder.heads}
                self._steps.append(stack.enter_context(vector_step(task, encoder, members, {}, _ignore_progress)))
            self._open = stack.pop_all()

    def prepare(self, work: ShardTexts, latest: Mapping[str, np.ndarray]) -> _ShardCall:
        """Tokenise a shard ahead on a worker with a GPU, whose CPU is otherwise idle."""
        call = _ShardCall(work, latest)
        if self._ahead:
            call.tokens = [self._tokenized(step, work) for step in self._steps]
        return call

    def run(self, call: _ShardCall) -> _ShardCall:
        """Encode and search a shard."""
        torch.set_num_threads(self._threads)  # OpenMP counts threads by caller
        work = call.work
        for place, step in enumerate(self._steps):
            cells = {dim: step.cells[dim] for dim in step.cells if dim in work.dims}
            if not cells:
                continue
            found: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]] = {}

            def save_hits(
                folder: Path,
                _name: str,
                arrays: Mapping[str, Tensor],
                facts: Mapping[str, Any],
                found: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]] = found,
            ) -> None:
                found[folder.name] = (arrays, facts)

            shard_step = step.unthreaded(
                cells=cells,
                floor_of=call.floor_of,
                advance=call.advance,
                tokenized=_TokenizedShard(call.tokens[place] if call.tokens else self._tokenized(step, work)),
                save_vectors=lambda *args: call.unwritten.append(args),
                save_hits=save_hits,
            )
            shard_step.run(work.shard)
            for dim, cell in cells.items():
                if cell.search_key in found:
                    arrays, facts = found[cell.search_key]
                else:  # already in a cache that this node sees and the driver does not
                    folder = topk_dir(step.task.config.cache_dir, cell.search_key)
                    arrays = shard_files.load(folder, work.shard.checksum) or {}
                    facts = shard_files.finished(folder, work.shard.checksum) or {}
                call.hits[dim] = (hits_from_arrays(arrays), dict(facts))
        return call

    def settle(self, call: _ShardCall) -> ShardResult:
        """Write a shard's vectors while the next shard is encoded; return its top-k, which is valid only after them."""
        for folder, name, arrays, facts in call.unwritten:
            try:
                shard_files.save(folder, name, arrays, facts)
            except OSError as error:
                raise write_error(folder / name, error) from error
        return ShardResult(call.work.shard, call.hits, call.tokens_done, self._reproduced_dims)

    def close(self) -> None:
        """Stop the background threads."""
        self._open.close()

    @staticmethod
    def _tokenized(step: VectorStep, work: ShardTexts) -> Texts:
        return Texts(work.ids, step.encoder.tokenize_documents(work.texts))


@dataclass
class _ShardCall:
    """The inputs and results of one shard while a worker processes it."""

    work: ShardTexts
    floors: Mapping[str, np.ndarray]
    tokens: list[Texts] = dataclasses.field(default_factory=list)
    unwritten: list[tuple[Path, str, Mapping[str, Tensor], Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    hits: dict[int, tuple[Hits, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    tokens_done: int = 0

    def floor_of(self, cell: Cell) -> np.ndarray:
        """Return the floors of a cell's queries, as the driver sent them."""
        return self.floors[cell.run_id]

    def advance(self, _texts: int, tokens: int) -> None:
        """Count tokens; the driver counts the documents."""
        self.tokens_done += tokens


class _TokenizedShard(NamedTuple):
    """The tokenised texts of one shard, in place of a prefetch (`shard_step.Tokenized`)."""

    texts: Texts

    def start(self, shard: ShardRange) -> None:
        """Do nothing: the texts are already here."""

    def take(self, _shard: ShardRange) -> Texts:
        """Return the texts."""
        return self.texts


class _NoCorpus:
    """The corpus of a worker's dataset, which is never read: texts come with each shard."""

    def fingerprint(self) -> str:
        return ""

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        msg = f"a worker has no corpus to read documents {start} to {stop} from"
        raise AssertionError(msg)

    def where(self, index: int) -> str:
        return f"document number {index + 1}"


@dataclass(frozen=True, kw_only=True)
class LoadCountingStep:
    """Builds the step of a worker that counts the terms of BM25's queries."""

    model: Bm25Config
    vocabulary: Mapping[str, int]

    def __call__(self) -> CountingStep:
        """Return the step."""
        return CountingStep(self.model, self.vocabulary, ANALYZERS[self.model.analyzer]())


class CountingStep(NamedTuple):
    """Counts the queries' terms in a shard."""

    model: Bm25Config
    vocabulary: Mapping[str, int]
    analyzer: Analyzer

    def prepare(self, work: ShardDocuments, _latest: None) -> ShardDocuments:
        """Return the shard unchanged: nothing can be prepared."""
        return work

    def run(self, work: ShardDocuments) -> CountedTerms:
        """Count the terms."""
        counts = lucene.count_shard(
            work.documents, vocabulary=self.vocabulary, fields=self.model.fields, analyzer=self.analyzer
        )
        return CountedTerms(work.shard, counts.to_arrays())

    def settle(self, counted: CountedTerms) -> CountedTerms:
        """Return the counts unchanged: nothing is written here."""
        return counted

    def close(self) -> None:
        """Do nothing: no thread runs."""


class SharedFile(NamedTuple):
    """A file that the driver wrote into its cache; a worker that can read it has the same cache folder."""

    path: Path
    content: str

    def require(self, config: RunConfig) -> None:
        """Raise StoreError unless this process sees the file and can write to its folder."""
        try:
            seen = self.path.read_text(encoding="utf-8")
        except OSError:
            seen = ""
        if seen != self.content:
            msg = (
                f"cache_dir={config.cache_dir} is not the folder that the driver sees; wanted one that all nodes share "
                "(cache_dir=DIR), or store.keep=topk, which writes on the driver's node alone"
            )
            raise StoreError(msg)
        write_atomic(self.path.with_suffix(f".{os.getpid()}"), b"")
        self.path.with_suffix(f".{os.getpid()}").unlink(missing_ok=True)


def _ignore_progress(_documents: int, _tokens: int) -> None:
    """Ignore progress: the driver reports it."""


# ---- in the driver's process


def search_vectors(
    task: Task, cells: Sequence[Cell], model: EncoderConfig, *, reproduced_dims: set[int]
) -> dict[str, Hits]:
    """Encode and search all shards on workers. Return each cell's best hits, by run id.

    Dims whose published vectors were reproduced are added to `reproduced_dims`. Raises EngineError if shards failed
    twice, after all other shards are finished.
    """
    config = jobs.absolute(task.config)
    by_dim = {cell.dim: cell for cell in cells if cell.dim is not None}
    best = {cell.run_id: BestHits(task.depth, len(task.dataset.queries)) for cell in cells}
    found = {dim: cell.checkpoint for dim, cell in by_dim.items() if cell.checkpoint is not None}
    for line in metadata.notes(model, found):
        print_line(task.console, f"{model.name}: {line}")
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
            facts = {"start": shard.start, "stop": shard.stop, "protocol": cell.protocol}
            queue_write(writer, folder, shard.checksum, tensors, facts)
            advance(shard.stop - shard.start, 0)
            advance.shard_done()

        _handle_results(pool.map(cell.run_id, load, items(), on_tick=_StateRecorder(config, pool)), store)


def resources(config: RunConfig, device: torch.device) -> engine.Resources:
    """Return the number of workers, GPUs and CPUs that a config asks for."""
    settings, shard_tokens = config.engine, config.store.shard_tokens
    assert shard_tokens != "auto"  # `auto.resolved` has replaced it by a number
    return engine.Resources(
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


def queue_write(
    writer: Writer, folder: Path, name: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Queue the writing of a shard's files. Raises StoreError if an earlier write failed."""
    writer.submit(folder / name, lambda: shard_files.save(folder, name, arrays, facts))


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
