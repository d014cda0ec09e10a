"""The shard step, for vectors and for BM25: it takes a shard of documents and returns its exact top-k.

Embeddings and top-k are checkpointed. A step is idempotent: what is already on disk is read and not computed again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import Analyzer
from evalkit.config.settings import Bm25Config
from evalkit.datasets.survey import ShardRange, read_shard
from evalkit.kernels.cpu import memory
from evalkit.models.checkpoint import refuse_changes
from evalkit.models.encoder import DTYPES, Encoder
from evalkit.models.tokens import TokenTable
from evalkit.ranking import Hits, floors, merge, no_hits, ranked_ids
from evalkit.run import environment
from evalkit.run.background import Prefetcher, Writer, tokenizer_threads
from evalkit.run.cells import Cell, Task
from evalkit.run.encode import Encoding, device_errors, encode, log_halved
from evalkit.run.progress import Advance
from evalkit.run.search import PreparedQueries, best_of, hits_from_arrays, hits_to_arrays, prepare_queries, search_shard
from evalkit.storage import shard_files
from evalkit.storage.paths import store_dir, topk_dir
from evalkit.storage.shard_files import ShardVectors

log = logging.getLogger(__name__)

UNWRITTEN_SHARDS = 2
"""Encoded shards that may wait to be written while a GPU encodes the next one; each takes 2 GB of memory per dim."""
BM25_QUERY_BLOCK = 64
"""Queries scored at a time: bounds the score matrix [block, N], N documents of a shard."""


def vectors_stay_on_gpu(task: Task) -> bool:
    """Whether a shard's vectors stay on the GPU: true if the GPU searches them and `store.keep=topk` writes none."""
    return task.config.store.keep == "topk" and task.device.type == "cuda"


def encode_queries(
    task: Task, encoder: Encoder, *, on_halved: Callable[[int, str], None] = log_halved
) -> dict[int, ShardVectors]:
    """Return the query vectors at every dim of an encoder, rounded to the dtype of the documents' vectors."""
    return encode(
        [query.id for query in task.dataset.queries],
        encoder.tokenize_queries([query.text for query in task.dataset.queries]),
        encoder,
        Encoding(
            documents=False,
            batch_tokens=task.batch_tokens,
            storage=DTYPES[task.config.store.dtype],
            on_halved=on_halved,
        ),
    )


class _EncodedShard(NamedTuple):
    """A shard's newly encoded vectors by dim (empty if none was missing), and the seconds that encoding took."""

    vectors: Mapping[int, ShardVectors]
    wall_s: float


class TokenizedShard(NamedTuple):
    """The tokenised documents of a shard; their texts are no longer held."""

    ids: tuple[str, ...]
    tokens: TokenTable


class ShardTokenizer(Protocol):
    """Returns a shard's tokenised documents, prefetched or on demand."""

    def start(self, shard: ShardRange) -> None:
        """Start preparing a shard that will be taken."""

    def take(self, shard: ShardRange) -> TokenizedShard:
        """Return a shard's documents."""


SaveCheckpoint = Callable[[Path, str, Mapping[str, Tensor], Mapping[str, Any]], None]
"""`save(folder, name, arrays, facts)` writes a checkpoint, now or later."""


class _BatchLimit:
    """The maximum tokens of a batch. It falls if a batch does not fit memory, which is logged once and recorded."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.halved = False

    def halve(self, tokens: int, reason: str) -> None:
        if not self.halved:
            log_halved(tokens, reason)
        self.tokens, self.halved = tokens, True

    def facts(self) -> dict[str, int]:
        """Return the facts for a manifest; none if every batch fitted."""
        return {"fitted_batch_tokens": self.tokens} if self.halved else {}


@dataclass(frozen=True, kw_only=True)
class VectorStep:
    """The step of cells (by dim) that share a backbone, with its background threads."""

    task: Task
    encoder: Encoder
    cells: Mapping[int, Cell]
    floor_of: Callable[[Cell], np.ndarray]
    """Returns the score [Q] that further hits of a cell must reach. It only saves work: in any order of the shards, a
    document below it cannot enter the run."""
    advance: Advance
    queries: Mapping[int, PreparedQueries]
    limit: _BatchLimit
    tokenized: ShardTokenizer
    encoded: Prefetcher[ShardRange, _EncodedShard]
    writer: Writer
    next_shards: list[ShardRange]
    """The next shard, if it must be encoded; else empty. A list, because the step is frozen."""
    save_vectors: SaveCheckpoint
    """Writes the checkpoint of a shard's vectors."""
    save_hits: SaveCheckpoint
    """Writes the checkpoint of a shard's top-k."""

    def unthreaded(self, **changes: Any) -> VectorStep:
        """Return a step with some fields replaced that encodes each shard in the calling thread, without prefetch."""

        def encoded_shard(shard: ShardRange) -> _EncodedShard:
            return step.encode_missing(shard)

        step = dataclasses.replace(self, **changes, encoded=Prefetcher(encoded_shard, threaded=False), next_shards=[])
        return step

    def ahead(self, shard: ShardRange) -> None:
        """Start reading and tokenising the next shard if it must be encoded."""
        self.next_shards.clear()
        if self._unencoded(shard):
            self.tokenized.start(shard)
            self.next_shards.append(shard)

    def run(self, shard: ShardRange) -> dict[str, Hits]:
        """Return a shard's hits by run id, computing only what is not on disk.

        On a GPU a thread encodes the next shard while this one is searched.
        """
        if self._unencoded(shard) and not self.encoded.started(shard):
            self.encoded.start(shard)
        for next_shard in self.next_shards:
            self.encoded.start(next_shard)
        self.next_shards.clear()
        with device_errors(self.task.device):
            hits = self._run(shard)
        memory.return_free_pages()
        return hits

    def _unencoded(self, shard: ShardRange) -> list[int]:
        """Return the dims at which a shard has neither hits nor embeddings on disk."""
        return [
            dim
            for dim, cell in self.cells.items()
            if not shard_files.finished(self._topk_dir(cell), shard.checksum)
            and not shard_files.finished(self._store_dir(cell), shard.checksum)
        ]

    def encode_missing(self, shard: ShardRange) -> _EncodedShard:
        """Encode a shard at the dims that have neither hits nor embeddings of it on disk."""
        dims = self._unencoded(shard)
        return self._encode(shard, dims) if dims else _EncodedShard({}, 0.0)

    def _run(self, shard: ShardRange) -> dict[str, Hits]:
        """Take the shard's new vectors, read the rest from disk, and search all dims that have no hits yet."""
        new = _EncodedShard({}, 0.0)
        if self._unencoded(shard) or self.encoded.started(shard):
            new = self.encoded.take(shard)
        hits, stored = self._read(shard, [dim for dim in self.cells if dim not in new.vectors])
        costs_of = {dim: self._stored_cost(shard, dim) for dim in stored}
        costs_of |= {dim: {"encode_s": new.wall_s} for dim in new.vectors}
        vectors = {**new.vectors, **stored}
        damaged = [dim for dim, cell in self.cells.items() if cell.run_id not in hits and dim not in vectors]
        if damaged:  # only the sizes of files are compared beforehand, not their checksums
            again = self._encode(shard, damaged)
            vectors |= again.vectors
            costs_of |= {dim: {"encode_s": again.wall_s} for dim in damaged}
        elif not new.vectors:
            self.advance(shard.stop - shard.start, 0)
        for dim, cell in self.cells.items():
            if dim in vectors:
                hits[cell.run_id] = self._search(shard, dim, vectors[dim], encoding=costs_of[dim])
        return hits

    def _read(self, shard: ShardRange, dims: Sequence[int]) -> tuple[dict[str, Hits], dict[int, ShardVectors]]:
        """Return from disk a shard's hits by run id, and its vectors at those of the dims that have no hits.

        Damaged files are left out.
        """
        hits: dict[str, Hits] = {}
        vectors: dict[int, ShardVectors] = {}
        for dim in dims:
            cell = self.cells[dim]
            if (arrays := shard_files.load(self._topk_dir(cell), shard.checksum)) is not None:
                hits[cell.run_id] = hits_from_arrays(arrays)
            elif (arrays := shard_files.load(self._store_dir(cell), shard.checksum)) is not None:
                vectors[dim] = shard_files.vectors_from_arrays(arrays)
        return hits, vectors

    def _stored_cost(self, shard: ShardRange, dim: int) -> dict[str, float]:
        """Return the encoding cost of a shard's stored vectors; log if other instructions computed them."""
        facts = shard_files.finished(self._store_dir(self.cells[dim]), shard.checksum) or {}
        here = environment.arithmetic(self.task.config, self.task.device)
        log_other_arithmetic(facts.get("instruction_set"), here)
        return _encoding_cost(facts, self.cells[dim])

    def _encode(self, shard: ShardRange, dims: Sequence[int]) -> _EncodedShard:
        """Encode a shard and queue its vectors for writing. Return them by dim, with the seconds of encoding."""
        if self.task.device.type == "cpu":
            # On a CPU a write is short compared with encoding, and holding two shards would take twice the memory.
            self.writer.wait()
        started = time.monotonic()
        tokenized = self.tokenized.take(shard)
        by_dim = encode(
            tokenized.ids,
            tokenized.tokens,
            self.encoder.only(dims),
            Encoding(
                documents=True,
                batch_tokens=self.limit.tokens,
                storage=DTYPES[self.task.config.store.dtype],
                resident=vectors_stay_on_gpu(self.task),
                on_batch=self.advance,
                on_halved=self.limit.halve,
            ),
        )
        wall_s = round(time.monotonic() - started, 3)
        self._refuse_changed_checkpoints(dims)
        self.writer.wait_for_all_but(0 if self.task.device.type == "cpu" else UNWRITTEN_SHARDS * 2 * len(self.cells))
        if self.task.config.store.keep == "embeddings":
            for dim, vectors in by_dim.items():
                facts = {**manifest_facts(shard, self.cells[dim]), "run_id": self.cells[dim].run_id, "encode_s": wall_s}
                if (units := environment.arithmetic(self.task.config, self.task.device)) is not None:
                    facts["instruction_set"] = units
                arrays = shard_files.vectors_to_arrays(vectors)
                self._save(self.save_vectors, self._store_dir(self.cells[dim]), shard, arrays, facts)
        return _EncodedShard(by_dim, wall_s)

    def _search(self, shard: ShardRange, dim: int, vectors: ShardVectors, *, encoding: Mapping[str, float]) -> Hits:
        """Search a shard's vectors and queue the hits for writing."""
        cell = self.cells[dim]
        started = time.monotonic()
        found = search_shard(
            self.queries[dim],
            vectors,
            depth=self.task.depth,
            floor_Q=self.floor_of(cell),
            device=self.task.device,
            precision=self.task.config.engine.nominate,
            maxsim=self.task.config.engine.maxsim,
        )
        search_s = round(time.monotonic() - started, 3)
        self._refuse_changed_checkpoints([dim])  # the query vectors depend on it too
        cost = {"vectors": len(vectors.vectors.rows_XD), **encoding, "search_s": search_s}
        self._save(
            self.save_hits, self._topk_dir(cell), shard, hits_to_arrays(found), manifest_facts(shard, cell) | cost
        )
        return found

    def _refuse_changed_checkpoints(self, dims: Sequence[int]) -> None:
        """Raise an error if a checkpoint's files have changed since they were loaded."""
        found = [self.cells[dim].checkpoint for dim in dims]
        refuse_changes(checkpoint for checkpoint in found if checkpoint is not None)

    def _save(
        self,
        save: SaveCheckpoint,
        folder: Path,
        shard: ShardRange,
        arrays: Mapping[str, Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        """Save a checkpoint, with the batch limit in its facts if it fell."""
        save(folder, shard.checksum, arrays, {**facts, **self.limit.facts()})

    def _store_dir(self, cell: Cell) -> Path:
        return store_dir(self.task.config.cache_dir, cell.store_key)

    def _topk_dir(self, cell: Cell) -> Path:
        return topk_dir(self.task.config.cache_dir, cell.search_key)


@contextmanager
def vector_step(
    task: Task, encoder: Encoder, cells: Mapping[int, Cell], best: Mapping[str, Hits], advance: Advance
) -> Iterator[VectorStep]:
    """Yield the step for cells (by dim) that share a backbone; on exit, all checkpoints are on disk.

    Background threads tokenise the next shard and write the previous one (`evalkit.run.background`). `best` is the best
    hits so far by run id, which the caller updates. Raises DeviceError if the device fails, StoreError if a checkpoint
    cannot be written.
    """
    limit = _BatchLimit(task.batch_tokens)
    threaded = tokenizer_threads(task.config.engine.tokenizer_workers, task.device) > 0
    queries = encode_queries(task, encoder, on_halved=limit.halve)

    def tokenized_shard(shard: ShardRange) -> TokenizedShard:
        return _tokenized(task, encoder, shard)

    def encoded_shard(shard: ShardRange) -> _EncodedShard:
        return step.encode_missing(shard)

    on_gpu = task.device.type != "cpu"
    with (
        Prefetcher(tokenized_shard, threaded=threaded) as tokenized,
        Writer() as writer,
        Prefetcher(encoded_shard, threaded=on_gpu) as encoded,
        _search_stream(task.device),
    ):
        save = partial(queue_write, writer)
        step = VectorStep(
            task=task,
            encoder=encoder,
            cells=cells,
            floor_of=lambda cell: floors(best[cell.run_id], queries=len(task.dataset.queries), depth=task.depth),
            advance=advance,
            queries={dim: prepare_queries(of_dim, task.device) for dim, of_dim in queries.items()},
            limit=limit,
            tokenized=tokenized,
            encoded=encoded,
            writer=writer,
            next_shards=[],
            save_vectors=save,
            save_hits=save,
        )
        yield step


def _search_stream(device: torch.device) -> AbstractContextManager[object]:
    """Use a CUDA stream of its own for this thread, so that its work and the encoding thread's run concurrently."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # torch's own annotation is missing


def _tokenized(task: Task, encoder: Encoder, shard: ShardRange) -> TokenizedShard:
    """Read and tokenise a shard. Raises ChangedError if the texts are not the surveyed ones."""
    documents = list(read_shard(task.dataset.corpus, shard, name=task.dataset.name))
    tokens = encoder.tokenize_documents([document.joined() for document in documents])
    return TokenizedShard(tuple(document.id for document in documents), tokens)


def bm25_count_step(
    task: Task, cell: Cell, terms: lucene.QueryTerms, analyzer: Analyzer
) -> Callable[[ShardRange], lucene.ShardCounts]:
    """Return BM25's first step, which counts the queries' terms in a shard."""
    model = task.config.model
    assert isinstance(model, Bm25Config)
    folder = topk_dir(task.config.cache_dir, cell.search_key)

    def step(shard: ShardRange) -> lucene.ShardCounts:
        name = shard.checksum
        if (arrays := shard_files.load(folder, name)) is not None:
            return lucene.ShardCounts.from_arrays({key: array.numpy() for key, array in arrays.items()})
        counts = lucene.count_shard(
            read_shard(task.dataset.corpus, shard, name=task.dataset.name),
            vocabulary=terms.vocabulary,
            fields=model.fields,
            analyzer=analyzer,
        )
        tensors = {key: torch.from_numpy(array.copy()) for key, array in counts.to_arrays().items()}
        shard_files.save(folder, name, tensors, manifest_facts(shard, cell))
        return counts

    return step


def bm25_score_step(
    counts: lucene.ShardCounts,
    statistics: lucene.Statistics,
    settings: Bm25Config,
    queries: Sequence[Sequence[tuple[int, int]]],
    *,
    depth: int,
) -> Hits:
    """Return a shard's best hits under the statistics of the whole corpus. Not checkpointed: counting costs more."""
    best, ids = [no_hits()], ranked_ids(counts.document_ids)
    for begin in range(0, len(queries), BM25_QUERY_BLOCK):
        score_QN = lucene.score_block(counts, statistics, settings, queries[begin : begin + BM25_QUERY_BLOCK])
        best.append(best_of(score_QN, ids, depth=depth, first_query=begin, ties=settings.ties))
    return merge(best, depth=depth, ties=settings.ties)


class Costs(NamedTuple):
    """What the shards of a cell cost. An entry that cannot be computed is left out."""

    seconds: dict[str, float]
    """`encode` and `search`, and `slowest_search`: the longest search of one shard. It includes preparing the kernels,
    so a forecast counts it once."""
    counts: dict[str, int]
    """`document_vectors`. If they are not 0: `fitted_batch_tokens`, the smallest batch limit that a shard ended with;
    `reused_shards`, which were encoded for another cell; `shards_without_costs`, whose manifest lacks a cost."""


def costs(task: Task, cell: Cell) -> Costs:
    """Return the costs of a cell's shards, summed over their manifests.

    Dims that shared a pass over the corpus each have the time of the whole pass. A shard that was encoded for another
    cell has the time of that cell.
    """
    folder = topk_dir(task.config.cache_dir, cell.search_key)
    found = [shard_files.finished(folder, shard.checksum) or {} for shard in task.survey.shards]
    names = ("vectors", "encode_s", "search_s")
    sums = {name: sum(facts[name] for facts in found) for name in names if all(name in facts for facts in found)}
    lacking = sum(any(name not in facts for name in names) for facts in found)
    seconds = {name.removesuffix("_s"): float(total) for name, total in sums.items() if name != "vectors"}
    if not lacking:
        seconds["slowest_search"] = max(facts["search_s"] for facts in found)
    counts: dict[str, int] = {}
    if "vectors" in sums:
        counts["document_vectors"] = int(sums["vectors"])
    if fitted := [facts["fitted_batch_tokens"] for facts in found if "fitted_batch_tokens" in facts]:
        counts["fitted_batch_tokens"] = int(min(fitted))
    if reused := sum(facts.get("reused_shards", 0) for facts in found):
        counts["reused_shards"] = int(reused)
    if lacking:
        counts["shards_without_costs"] = lacking
    return Costs(seconds, counts)


def _encoding_cost(facts: Mapping[str, Any], cell: Cell) -> dict[str, float]:
    """Return the encoding time of a stored shard; mark it as reused if another cell had encoded it."""
    reused = {} if facts.get("run_id") == cell.run_id else {"reused_shards": 1}
    return {"encode_s": float(facts.get("encode_s", 0.0)), **reused}


@cache
def log_other_arithmetic(stored: str | None, here: str | None) -> None:
    """Log once that stored vectors were computed with other instructions or kernels than this process uses."""
    if stored is not None and here is not None and stored != here:
        log.warning(
            "stored vectors were computed with %s, this process has %s: last bits of vectors can differ "
            "within this cell; give another cache_dir to compute all of them here",
            stored,
            here,
        )


def manifest_facts(shard: ShardRange, cell: Cell) -> dict[str, Any]:
    """Return the facts that the manifest of every shard has."""
    return {"start": shard.start, "stop": shard.stop, "protocol": cell.protocol}


def queue_write(
    writer: Writer, folder: Path, name: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Queue the writing of a shard's files. Raises StoreError if an earlier write failed."""
    writer.submit(folder / name, lambda: shard_files.save(folder, name, arrays, facts))
