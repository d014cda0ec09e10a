"""The identity of results: the store key of document vectors, and the facts that a run id hashes.

The store key hashes every setting that changes a document's vector, but no texts. The run id also covers the corpus,
its shard boundaries, the queries and the search settings. Metrics, cutoffs and tables are in neither, so scoring again
never encodes again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

import xxhash

from evalkit.config.settings import INDEX_SETTINGS, Bm25Config, EncoderConfig, RunConfig, TextRules
from evalkit.datasets.survey import SHARD_RULE, Survey
from evalkit.models.checkpoint import Checkpoint
from evalkit.storage.keys import key_of
from evalkit.types import Dataset, Qrels, Query

SEARCH_RULES = 1
"""Increase it when a change of the search or the tie rule can change a run."""
ENCODING_RULES = 5
"""Increase it when a change of batching or arithmetic can change the last bits of a vector."""
FAST_PLAID = "1.7.0.2110"
"""The version of fast-plaid that search=plaid uses; scripts/plaid.py pins it."""


def vector_facts(  # noqa: PLR0913 (one argument for each source of a fact in the store key)
    model: EncoderConfig,
    config: RunConfig,
    checkpoint: Checkpoint,
    dim: int,
    *,
    attention: str,
    batch_tokens: int,
    fused: bool = False,
) -> dict[str, Any]:
    """Return every setting that changes a vector, without the corpus. The system's name is not included."""
    return {
        "checkpoint": dict(checkpoint.checksums),
        "backbone": model.backbone,
        "dim": dim,
        "head": model.head,
        **({} if len(model.dims) == 1 else {"heads": list(model.dims)}),  # all heads share one GEMM
        "pooling": model.pooling,
        "normalize": model.normalize,
        "query": _rules(model.query),
        "document": _rules(model.document),
        "skiplist": model.skiplist,
        **({} if model.skiplist_words is None else {"skiplist_words": list(model.skiplist_words)}),
        **({} if model.architecture is None else {"architecture": model.architecture}),
        "dtype": model.dtype,
        "rope_theta": model.rope_theta,
        # Earlier versions rounded the frequencies to half precision; those vectors must not have the same key.
        **({"rope_frequencies": "float32"} if _rope_in_half(model) else {}),
        **({} if model.adapter is None else {"adapter": model.adapter}),
        **({} if not model.trust_remote_code else {"trust_remote_code": True}),
        "attention": attention,
        **({"elementwise": "triton"} if fused else {}),
        "batch_tokens": batch_tokens,
        "encoding_rules": ENCODING_RULES,
        "stored_dtype": config.store.dtype,
    }


def _rules(rules: TextRules) -> dict[str, Any]:
    """Return one side's rules; without a prompt the key is left out, so that older store keys stay the same."""
    facts = dataclasses.asdict(rules)
    return facts if rules.prompt else {name: fact for name, fact in facts.items() if name != "prompt"}


def _rope_in_half(model: EncoderConfig) -> bool:
    """Whether earlier versions rounded the model's RoPE frequencies to half precision."""
    return model.backbone == "jina_embeddings_v3" and model.dtype != "float32" and not model.trust_remote_code


def bm25_facts(model: Bm25Config) -> dict[str, Any]:
    """Return every setting that changes a BM25 score, without corpus and queries."""
    return {
        "k1": model.k1,
        "b": model.b,
        "fields": list(model.fields),
        "analyzer": model.analyzer,
        **({} if model.lengths == "lucene" else {"lengths": model.lengths}),
        **({} if model.unmatched == "leave_out" else {"unmatched": model.unmatched}),
        "ties": model.ties,
    }


class CorpusFacts(TypedDict):
    """A corpus's checksum and its division into shards."""

    corpus: str
    shard_tokens: int
    cut: str
    """The rule for shard boundaries, `evalkit.datasets.survey.SHARD_RULE`."""


class SearchFacts(TypedDict):
    """The queries and the settings of the search."""

    queries: str
    depth: int
    drop_self: bool
    search_rules: int
    search: NotRequired[str]
    """`plaid`. An exact search has no such fact, so that the ids of older exact cells stay the same."""
    index: NotRequired[dict[str, Any]]
    """The settings of the index and of its search."""


def corpus_facts(survey: Survey, config: RunConfig) -> CorpusFacts:
    """Return a corpus's checksum and its division into shards."""
    assert config.store.shard_tokens != "auto"  # `auto.resolved` has replaced it by a number
    return {"corpus": survey.checksum, "shard_tokens": config.store.shard_tokens, "cut": SHARD_RULE}


def store_key(system: Mapping[str, Any]) -> str:
    """Return the content address of a system's document vectors.

    It hashes the system's facts except the query rules, which do not change a document's vector. The corpus is not
    included: a shard is addressed by its own content, so that corpora share shards with identical documents.
    """
    return key_of({name: fact for name, fact in system.items() if name != "query"})


def store_key_in(protocol: Mapping[str, Any]) -> str:
    """Return the store key of a cell, given its protocol with the facts of system, corpus and search."""
    others = {*CorpusFacts.__annotations__, *SearchFacts.__annotations__}
    return store_key({name: fact for name, fact in protocol.items() if name not in others})


def search_facts(dataset: Dataset, config: RunConfig) -> SearchFacts:
    """Return the checksum of the queries and the settings of the search."""
    facts: SearchFacts = {
        "queries": texts_checksum(dataset.queries),
        "depth": config.search.depth,
        "drop_self": dataset.drop_self,
        "search_rules": SEARCH_RULES,
    }
    if config.search.name == "plaid":
        settings = {name: getattr(config.search, name) for name in INDEX_SETTINGS}
        facts |= {"search": "plaid", "index": {**settings, "library": f"fast-plaid {FAST_PLAID}"}}
    return facts


def exact_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the protocol of the exact cell with the same embeddings, given the protocol of a cell with an index."""
    return {name: fact for name, fact in protocol.items() if name not in ("search", "index")}


def texts_checksum(queries: Iterable[Query]) -> str:
    """Return a checksum of query ids and texts; it depends on their order."""
    digest = xxhash.xxh3_128()
    for query in queries:
        digest.update(json.dumps(query, ensure_ascii=False).encode())
    return digest.hexdigest()


def qrels_checksum(qrels: Qrels) -> str:
    """Return a checksum of judgements; it does not depend on their order.

    >>> qrels_checksum({"q": {"a": 1, "b": 0}}) == qrels_checksum({"q": {"b": 0, "a": 1}})
    True
    """
    digest = xxhash.xxh3_128()
    for query in sorted(qrels):
        digest.update(json.dumps([query, sorted(qrels[query].items())], ensure_ascii=False).encode())
    return digest.hexdigest()
