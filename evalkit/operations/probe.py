"""Measure the speed of a system on this device: encode and search about a thousand documents.

Nothing is written: no survey, no shard, no result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from evalkit import datasets
from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS
from evalkit.config import compose
from evalkit.config.settings import Bm25Config, DatasetConfig, EncoderConfig, RunConfig
from evalkit.datasets.survey import ContentHash, estimated_tokens
from evalkit.kernels.cpu import memory
from evalkit.models.encoder import DTYPES, Encoder, checkpoints, load_encoders
from evalkit.ranking import floors, merge_new, no_hits
from evalkit.run import auto
from evalkit.run.background import limit_tokenizer, tokenizer_threads
from evalkit.run.encode import Encoding, encode
from evalkit.run.search import prepare_queries, search_shard
from evalkit.run.shard_step import BM25_QUERY_BLOCK, bm25_score_step
from evalkit.storage import shard_files
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Corpus, Dataset, Document, Query

DOCUMENTS: Final = 1024
BLOCKS: Final = 16
"""Blocks of consecutive documents in the sample, evenly spaced, because a corpus may be sorted."""
SAMPLED_DOCUMENTS: Final = 100_000
"""The sample comes from this many documents at the beginning: a text file must be read up to the last one."""
QUERIES: Final = 256
LIMIT_S: Final = 40.0
"""Fewer documents are encoded if the whole sample would take longer than this."""
DEPTH: Final = 100
WARMUP_DOCUMENTS: Final = 64
"""Documents that are encoded before the measurement, because native libraries prepare for each new shape."""


class Probed(NamedTuple):
    """The sizes and times of a dataset's sample."""

    dataset: str
    """The dataset's name, or the demo's if the dataset is not on disk."""
    corpus_documents: int
    """Documents of the whole corpus, counted or as stated in the dataset's config."""
    queries: int
    """Queries of the whole dataset."""
    documents: int
    """Documents of the sample."""
    tokens: int
    """Token ids of the sample, with markers; 0 for BM25."""
    vectors: int
    """Token embeddings of the sample."""
    stored_bytes: Mapping[int | None, int]
    """Bytes of the sample's embeddings, by dim."""
    encode_s: Mapping[int | None, float]
    """Seconds of tokenising and encoding, by dim. Dims that share a backbone have the time of their shared pass. For
    BM25, seconds of counting terms."""
    search_s: Mapping[int | None, float]
    """Seconds of searching the sample with all queries of the dataset, by dim."""
    queries_s: float
    """Seconds of encoding all queries of the dataset."""
    read_s: float
    """Seconds of reading and hashing the sample's documents; `encode_s` includes them."""
    load_s: float
    """Seconds of reading the checkpoint and building the encoder."""


class Loader:
    """Keeps the last loaded model for the next dataset."""

    def __init__(self) -> None:
        """Start without a model."""
        self._held: tuple[object, list[Encoder], float] | None = None

    def encoders(self, config: RunConfig, model: EncoderConfig, device: torch.device) -> tuple[list[Encoder], float]:
        """Return a model's encoders and the seconds that loading took. Raises ModelError."""
        engine = config.engine
        key = (model, config.dims, device, engine.attention, engine.elementwise)
        if self._held is None or self._held[0] != key:
            self._held = None
            started = time.monotonic()
            found = checkpoints(model, [dim for dim in config.dims if dim is not None])
            made = load_encoders(
                model, found, device=device, attention=engine.attention, elementwise=engine.elementwise
            )
            self._held = (key, made, time.monotonic() - started)
        return self._held[1], self._held[2]


class _Sample(NamedTuple):
    """The documents and queries of a dataset that are probed."""

    dataset: Dataset
    corpus_documents: int
    documents: Sequence[Document]
    queries: Sequence[Query]
    read_s: float

    @property
    def times(self) -> float:
        """The dataset's queries divided by the sample's."""
        return len(self.dataset.queries) / len(self.queries)


def probe(config: RunConfig, loader: Loader, *, limit_s: float = LIMIT_S) -> Probed:
    """Encode and search a sample of a config's dataset, or of the demo if the dataset is not on disk.

    The sample is reduced if encoding it would take longer than `limit_s` seconds. Raises EvalkitError if the device,
    the checkpoint or the documents are not available.
    """
    device = auto.choose_device(config.engine.device)
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    dataset = _dataset(config)
    total = _documents(config.dataset, dataset)
    documents, read_s = _read(dataset.corpus, sample_ranges(total))
    queries = dataset.queries[:: max(1, len(dataset.queries) // QUERIES)][:QUERIES]
    sample = _Sample(dataset, total, documents, queries, read_s)
    if isinstance(config.model, Bm25Config):
        return _bm25(config.model, sample)
    limit_tokenizer(tokenizer_threads(config.engine.tokenizer_workers, device))
    assert isinstance(config.model, EncoderConfig)  # nothing here runs another program
    encoders, load_s = loader.encoders(config, config.model, device)
    return _vectors(config, encoders, sample, device=device, limit_s=limit_s)._replace(load_s=load_s)


def _dataset(config: RunConfig) -> Dataset:
    """Return the dataset; for a model with weights, the demo if the dataset is not on disk."""
    if datasets.on_disk(config.dataset) is not None or isinstance(config.model, Bm25Config):
        return datasets.load(config.dataset)
    return datasets.load(compose.compose(["model=bm25", "dataset=demo"]).dataset)


def _documents(config: DatasetConfig, dataset: Dataset) -> int:
    """Return the number of documents in a corpus, as stated in its config, else counted."""
    stated = config.counts.documents if config.verify or config.path is None else None
    if config.demo is not None:
        stated = config.demo.documents
    if stated is not None and dataset.name == config.name:
        return stated
    return sum(1 for _ in dataset.corpus.documents())


def sample_ranges(total: int) -> list[tuple[int, int]]:
    """Return the index ranges of the sample's documents in a corpus of `total` documents, evenly spaced.

    >>> sample_ranges(100)
    [(0, 100)]
    >>> sample_ranges(1_000_000)[:2], len(sample_ranges(1_000_000))
    ([(0, 64), (6250, 6314)], 16)
    """
    if total <= DOCUMENTS:
        return [(0, total)]
    step, each = min(total, SAMPLED_DOCUMENTS) / BLOCKS, DOCUMENTS // BLOCKS
    return [(int(step * place), int(step * place) + each) for place in range(BLOCKS)]


def _read(corpus: Corpus, ranges: Sequence[tuple[int, int]]) -> tuple[list[Document], float]:
    """Return the documents of some index ranges, and the seconds of reading and hashing them as a shard step does.

    Skipping to the beginning of a range is not timed, because a job does not skip documents.
    """
    found, content, read_s = [], ContentHash(), 0.0
    for start, stop in ranges:
        documents = iter(corpus.documents(start, stop))
        first = next(documents, None)
        if first is None:
            continue
        started = time.monotonic()
        block = [first, *documents]
        for document in block:
            content.add(document)
        read_s += time.monotonic() - started
        found += block
    return found, read_s


Texts = Sequence[Document] | Sequence[Query]


class _Encoded(NamedTuple):
    """Encoded texts, by dim, with the number of their tokens and the seconds that it took."""

    vectors: Mapping[int, ShardVectors]
    tokens: int
    wall_s: float


def _vectors(
    config: RunConfig, encoders: Sequence[Encoder], sample: _Sample, *, device: torch.device, limit_s: float
) -> Probed:
    """Encode and search the sample, at all dims of a model."""
    # Shuffled, so that the part that fits the time limit is spread over the corpus.
    order = [sample.documents[place] for place in np.random.default_rng(0).permutation(len(sample.documents)).tolist()]
    encode_s: dict[int | None, float] = {}
    search_s: dict[int | None, float] = {}
    stored: dict[int | None, int] = {}
    tokens = vectors = 0
    queries_s = read_s = 0.0
    depth = config.search.depth + int(sample.dataset.drop_self)
    for encoder in encoders:
        if len(order) > WARMUP_DOCUMENTS:
            for _ in range(2):  # the first prepares the libraries
                warm = _encode(config, encoder, order[:WARMUP_DOCUMENTS], documents=True)
            order = order[: max(WARMUP_DOCUMENTS, int(WARMUP_DOCUMENTS * limit_s / max(warm.wall_s, 1e-9)))]
        queries = _encode(config, encoder, sample.queries, documents=False)
        shards = [_encode(config, encoder, part, documents=True) for part in _parts(config, order, device)]
        queries_s += queries.wall_s * sample.times
        tokens = sum(shard.tokens for shard in shards)
        read_s = sample.read_s * len(order) / len(sample.documents)
        for dim in encoder.heads:
            of_dim = [shard.vectors[dim] for shard in shards]
            encode_s[dim] = sum(shard.wall_s for shard in shards) + read_s
            arrays = [array for one in of_dim for array in shard_files.vectors_to_arrays(one).values()]
            stored[dim] = sum(array.nbytes for array in arrays)
            search_s[dim] = sample.times * _search(config, queries.vectors[dim], of_dim, depth=depth, device=device)
            vectors = sum(len(one.vectors.rows_XD) for one in of_dim)
    return Probed(
        dataset=sample.dataset.name,
        corpus_documents=sample.corpus_documents,
        queries=len(sample.dataset.queries),
        documents=len(order),
        tokens=tokens,
        vectors=vectors,
        stored_bytes=stored,
        encode_s=encode_s,
        search_s=search_s,
        queries_s=queries_s,
        read_s=read_s,
        load_s=0.0,
    )


def _parts(config: RunConfig, documents: Sequence[Document], device: torch.device) -> list[Sequence[Document]]:
    """Split documents into parts as large as the job's shards. Smaller parts would fill fewer batches and be slower."""
    budget, most = auto.shard_tokens(config, device), auto.max_document_tokens(config, device)
    tokens_N = [estimated_tokens(document.joined(), max_document_tokens=most) for document in documents]
    parts = max(1, round(sum(tokens_N) / budget))
    return [documents[part::parts] for part in range(parts)]


def _encode(config: RunConfig, encoder: Encoder, texts: Texts, *, documents: bool) -> _Encoded:
    """Tokenise and encode texts at the encoder's dims, as a shard step does."""
    started = time.monotonic()
    words = [text.joined() if isinstance(text, Document) else text.text for text in texts]
    table = encoder.tokenize_documents(words) if documents else encoder.tokenize_queries(words)
    encoding = Encoding(
        documents=documents,
        batch_tokens=auto.batch_tokens(config.engine.batch_tokens, encoder.device),
        storage=DTYPES[config.store.dtype],
    )
    found = encode([text.id for text in texts], table, encoder, encoding)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
    memory.return_free_pages()
    return _Encoded(found, len(table.ids_X), time.monotonic() - started)


def _search(
    config: RunConfig, queries: ShardVectors, shards: Sequence[ShardVectors], *, depth: int, device: torch.device
) -> float:
    """Return the seconds of searching the sample's shards after a first shard, which prepares kernels and floors."""
    ready = prepare_queries(queries, device)
    wall_s, best = 0.0, no_hits()
    for place, shard in enumerate([shards[0], *shards]):
        started = time.monotonic()
        hits = search_shard(
            ready,
            shard,
            depth=depth,
            floor_Q=floors(best, queries=len(queries.ids), depth=depth),
            device=device,
            precision=config.engine.nominate,
            maxsim=config.engine.maxsim,
        )
        best = merge_new(best, hits, depth=depth) if place else hits
        wall_s += time.monotonic() - started if place else 0.0
    return wall_s


def _bm25(model: Bm25Config, sample: _Sample) -> Probed:
    """Count and score the sample with BM25."""
    lucene.check_settings(model)
    analyzer = ANALYZERS[model.analyzer]()
    terms = lucene.query_terms(sample.queries, analyzer)

    def count(documents: Sequence[Document]) -> lucene.ShardCounts:
        return lucene.count_shard(documents, vocabulary=terms.vocabulary, fields=model.fields, analyzer=analyzer)

    count(sample.documents[:WARMUP_DOCUMENTS])
    started = time.monotonic()
    counts = count(sample.documents)
    count_s = time.monotonic() - started
    bm25_score_step(counts, counts.statistics(), model, terms.queries[:BM25_QUERY_BLOCK], depth=1)
    started = time.monotonic()
    bm25_score_step(counts, counts.statistics(), model, terms.queries, depth=DEPTH)
    score_s = sample.times * (time.monotonic() - started)
    return Probed(
        dataset=sample.dataset.name,
        corpus_documents=sample.corpus_documents,
        queries=len(sample.dataset.queries),
        documents=len(sample.documents),
        tokens=0,
        vectors=0,
        stored_bytes={},
        encode_s={None: sample.read_s + count_s},
        search_s={None: score_s},
        queries_s=0.0,
        read_s=sample.read_s,
        load_s=0.0,
    )
