"""What decides a result: the store key names everything but texts that changes a document's vector.

The run id adds the corpus, how it is cut, the queries and the search.

Metrics, cutoffs and tables are in neither, so scoring again never encodes again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import xxhash

from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.survey import CUT, Survey
from evalkit.models.checkpoint import Checkpoint
from evalkit.storage.keys import key_of
from evalkit.types import Dataset, Qrels, Query

SEARCH_RULES = 1
"""Raised whenever a change of the search or tie rule can move a run."""
ENCODING_RULES = 5
"""Raised whenever a change of how texts are batched or multiplied can move the last bits of a vector."""


def vector_facts(  # noqa: PLR0913 (keyword-only behind the first four)
    config: EncoderConfig,
    run: RunConfig,
    checkpoint: Checkpoint,
    dim: int,
    *,
    attention: str,
    batch_tokens: int,
    fused: bool = False,
) -> dict[str, Any]:
    """Return everything but the corpus that changes a vector. The system's name is not among it."""
    return {
        "checkpoint": dict(checkpoint.checksums),
        "backbone": config.backbone,
        "dim": dim,
        "head": config.head,
        **({} if len(config.dims) == 1 else {"heads": list(config.dims)}),  # their common GEMM
        "pooling": config.pooling,
        "normalize": config.normalize,
        "query": dataclasses.asdict(config.query),
        "document": dataclasses.asdict(config.document),
        "skiplist": config.skiplist,
        "dtype": config.dtype,
        "rope_theta": config.rope_theta,
        # Before, half precision rounded them too: such vectors are not to be found under the same key.
        **({"rope_frequencies": "float32"} if _rope_in_half(config) else {}),
        **({} if config.adapter is None else {"adapter": config.adapter}),
        **({} if not config.trust_remote_code else {"trust_remote_code": True}),
        "attention": attention,
        **({"elementwise": "triton"} if fused else {}),
        "batch_tokens": batch_tokens,
        "encoding_rules": ENCODING_RULES,
        "stored_dtype": run.store.dtype,
    }


def _rope_in_half(config: EncoderConfig) -> bool:
    return config.backbone == "jina_embeddings_v3" and config.dtype != "float32" and not config.trust_remote_code


def bm25_facts(config: Bm25Config) -> dict[str, Any]:
    """Return everything but corpus and queries that changes a BM25 score."""
    return {
        "k1": config.k1,
        "b": config.b,
        "fields": list(config.fields),
        "analyzer": config.analyzer,
        **({} if config.lengths == "lucene" else {"lengths": config.lengths}),
        **({} if config.unmatched == "leave_out" else {"unmatched": config.unmatched}),
        "ties": config.ties,
    }


class CorpusFacts(TypedDict):
    """What a corpus is and how it is cut into shards."""

    corpus: str
    shard_tokens: int
    cut: str


class SearchFacts(TypedDict):
    """What is searched for and how."""

    queries: str
    depth: int
    drop_self: bool
    search_rules: int


def corpus_facts(survey: Survey, run: RunConfig) -> CorpusFacts:
    """Return what a corpus is and how it is cut."""
    return {"corpus": survey.checksum, "shard_tokens": run.store.shard_tokens, "cut": CUT}


def store_key(system: Mapping[str, Any]) -> str:
    """Return the address of a system's document vectors: its facts without the query's rules, which move none of them.

    The corpus is not among them: each shard is addressed by its own content, so that corpora share what they share.
    """
    return key_of({name: fact for name, fact in system.items() if name != "query"})


def store_key_in(protocol: Mapping[str, Any]) -> str:
    """Return the store key of a cell from its protocol, which holds the facts of system, corpus and search."""
    others = {*CorpusFacts.__annotations__, *SearchFacts.__annotations__}
    return store_key({name: fact for name, fact in protocol.items() if name not in others})


def search_facts(dataset: Dataset, run: RunConfig) -> SearchFacts:
    """Return what is searched for and how."""
    return {
        "queries": texts_checksum(dataset.queries),
        "depth": run.search.depth,
        "drop_self": dataset.drop_self,
        "search_rules": SEARCH_RULES,
    }


def texts_checksum(queries: Iterable[Query]) -> str:
    """Return a checksum of query ids and texts in their order."""
    digest = xxhash.xxh3_128()
    for query in queries:
        digest.update(json.dumps(query, ensure_ascii=False).encode())
    return digest.hexdigest()


def qrels_checksum(qrels: Qrels) -> str:
    """Return a checksum of judgements, whatever their order.

    >>> qrels_checksum({"q": {"a": 1, "b": 0}}) == qrels_checksum({"q": {"b": 0, "a": 1}})
    True
    """
    digest = xxhash.xxh3_128()
    for query in sorted(qrels):
        digest.update(json.dumps([query, sorted(qrels[query].items())], ensure_ascii=False).encode())
    return digest.hexdigest()
