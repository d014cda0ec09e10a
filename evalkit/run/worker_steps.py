"""The steps that run in the workers of a job, and the messages between driver and workers.

A worker executes the same code as a job of one process (`VectorStep`, or BM25's counting), so the bytes are the same.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS, Analyzer
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.survey import ShardRange, Survey
from evalkit.errors import ModelError, StoreError
from evalkit.kernels import compile_cache
from evalkit.models.encoder import checkpoints
from evalkit.ranking import Hits
from evalkit.run import auto, loaded
from evalkit.run.background import limit_tokenizer, tokenizer_threads
from evalkit.run.cells import Cell, Task
from evalkit.run.search import hits_from_arrays
from evalkit.run.shard_step import TokenizedShard, VectorStep, vector_step
from evalkit.storage import keys, shard_files
from evalkit.storage.paths import topk_dir, write_atomic, write_error
from evalkit.types import Dataset, Document, Query


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
        compile_cache.set_fallback(self.config.cache_dir)
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
        dataset = Dataset(
            name=self.dataset,
            split="",
            language="",
            corpus=_NoCorpus(),
            queries=self.queries,
            qrels={},
            drop_self=self.drop_self,
            main_metric="",
            query_groups={},
        )
        survey = Survey(documents=0, checksum="", shards=(), empty_documents=0, missing=())
        task = Task(self.config, dataset, survey, deviations=(), device=device, console=Console(quiet=True))
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
            call.tokenized = [self._tokenized(step, work) for step in self._steps]
        return call

    def run(self, call: _ShardCall) -> _ShardCall:
        """Encode and search a shard."""
        torch.set_num_threads(self._threads)  # OpenMP counts threads by caller
        for place, step in enumerate(self._steps):
            cells = {dim: cell for dim, cell in step.cells.items() if dim in call.work.dims}
            if cells:
                tokenized = call.tokenized[place] if call.tokenized else self._tokenized(step, call.work)
                _encode_and_search(step, cells, tokenized, call)
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
    def _tokenized(step: VectorStep, work: ShardTexts) -> TokenizedShard:
        return TokenizedShard(work.ids, step.encoder.tokenize_documents(work.texts))


def _encode_and_search(
    step: VectorStep, cells: Mapping[int, Cell], tokenized: TokenizedShard, call: _ShardCall
) -> None:
    """Apply a step to a call's shard at the dims of `cells`; add the hits, and the vectors to write, to the call."""
    saved_hits: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]] = {}

    def save_hits(folder: Path, _name: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        saved_hits[folder.name] = (arrays, facts)  # the folder of a top-k is named by the cell's search key

    shard_step = step.unthreaded(
        cells=cells,
        floor_of=call.floor_of,
        advance=call.advance,
        tokenized=_AlreadyTokenized(tokenized),
        save_vectors=lambda *args: call.unwritten.append(args),
        save_hits=save_hits,
    )
    shard = call.work.shard
    shard_step.run(shard)
    for dim, cell in cells.items():
        if cell.search_key in saved_hits:
            arrays, facts = saved_hits[cell.search_key]
        else:  # already in a cache that this node sees and the driver does not
            folder = topk_dir(step.task.config.cache_dir, cell.search_key)
            arrays = shard_files.load(folder, shard.checksum) or {}
            facts = shard_files.finished(folder, shard.checksum) or {}
        call.hits[dim] = (hits_from_arrays(arrays), dict(facts))


@dataclass
class _ShardCall:
    """The inputs and results of one shard while a worker processes it."""

    work: ShardTexts
    floors: Mapping[str, np.ndarray]
    tokenized: list[TokenizedShard] = dataclasses.field(default_factory=list)
    unwritten: list[tuple[Path, str, Mapping[str, Tensor], Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    hits: dict[int, tuple[Hits, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    tokens_done: int = 0

    def floor_of(self, cell: Cell) -> np.ndarray:
        """Return the floors of a cell's queries, as the driver sent them."""
        return self.floors[cell.run_id]

    def advance(self, _texts: int, tokens: int) -> None:
        """Count tokens; the driver counts the documents."""
        self.tokens_done += tokens


class _AlreadyTokenized(NamedTuple):
    """The tokenised texts of one shard, in place of a prefetch (`shard_step.ShardTokenizer`)."""

    shard: TokenizedShard

    def start(self, shard: ShardRange) -> None:
        """Do nothing: the texts are already here."""

    def take(self, _shard: ShardRange) -> TokenizedShard:
        """Return the tokenised texts."""
        return self.shard


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
