"""A configured system as a model of mteb: `mteb.evaluate(evalkit.mteb.encoder("model=demo", "dim=128"), tasks)`.

mteb 2 accepts any object that implements one of its protocols. A system with vectors implements `EncoderProtocol`:
`encode` returns each text's vectors as evalkit stores them, and `similarity` is exact MaxSim. BM25 implements
`SearchProtocol`. mteb reads the data, searches and scores; on the same texts, its NDCG@10 equals evalkit's. It is
installed with the extra `evalkit[mteb]`.

Shapes: Q queries, N documents, T vectors of a text, X vectors of all texts, D dim; H pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS
from evalkit.config import compose
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.errors import ConfigError
from evalkit.kernels import compile_cache
from evalkit.maxsim import choice
from evalkit.models.encoder import DTYPES, checkpoints
from evalkit.models.encoder import Encoder as Backbone
from evalkit.ragged import Ragged, ragged
from evalkit.ranking import separate_ties
from evalkit.run import auto, loaded, pipeline
from evalkit.run.background import limit_tokenizer, tokenizer_threads
from evalkit.run.encode import Encoding, encode
from evalkit.run.from_python import one_at_a_time
from evalkit.run.search import to_run
from evalkit.run.shard_step import bm25_score_step
from evalkit.storage import keys
from evalkit.types import Document, Query

Embeddings: TypeAlias = "Tensor | np.ndarray | Sequence[Tensor | np.ndarray]"
"""The arguments of `similarity`: vectors as a list of [T, D], as [N, T, D], or as [N, D] for one vector per text."""
PAIRS_AT_ONCE = 1 << 20
"""Pairs of a query and a document that are scored at a time."""
MODEL_TYPES = {"tokens": "late-interaction", "cls": "dense", "mean": "dense"}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A system with vectors at one dim, as mteb's `EncoderProtocol`."""

    config: RunConfig
    backbone: Backbone
    dim: int
    mteb_model_meta: Any
    """mteb's ModelMeta: name, revision, dim and similarity. mteb files its results under name and revision."""

    @property
    def per_token(self) -> bool:
        """Whether a text has a vector per token; otherwise it has one vector."""
        return self.backbone.config.pooling == "tokens"

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_settings: Any
    ) -> list[Tensor] | Tensor:
        """Return the vectors of mteb's batches of texts in order: a list of [T, D], or [N, D] for one vector per text.

        They are the vectors that `evalkit run` searches: encoded under the model's own rules for queries
        (`prompt_type="query"`) or documents (any other type), and rounded to `store.dtype`. mteb joins title and text
        as evalkit does. Its batch size, prompts and task are ignored.
        """
        texts = [str(text) for batch in inputs for text in batch["text"]]
        if not texts:
            return [] if self.per_token else torch.zeros(0, self.dim)
        query = getattr(prompt_type, "value", prompt_type) == "query"
        tokenize = self.backbone.tokenize_queries if query else self.backbone.tokenize_documents
        engine = self.config.engine
        encoding = Encoding(
            documents=not query,
            batch_tokens=auto.batch_tokens(engine.batch_tokens, self.backbone.device),
            storage=DTYPES[self.config.store.dtype],
        )
        ids = [f"text {number}" for number in range(len(texts))]
        found = encode(ids, tokenize(texts), self.backbone, encoding)[self.dim].vectors
        if not self.per_token:
            return found.rows_XD.float()
        return list(torch.split(found.rows_XD, found.lengths_N.tolist()))

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Return the exact MaxSim of every query (first argument) with every document (second) in fp32 [Q, N].

        With one vector per text it is the dot product. Raises ConfigError for embeddings of another dim.
        """
        queries, documents = self._ragged(embeddings1), self._ragged(embeddings2)
        count_Q, count_N = len(queries.offsets_N) - 1, len(documents.offsets_N) - 1
        score_QN = torch.empty(count_Q, count_N)
        if not count_Q or not count_N:
            return score_QN
        exact_scores = self._kernel(documents).exact_scores
        at_once = max(1, PAIRS_AT_ONCE // count_N)
        for begin in range(0, count_Q, at_once):
            some_Q = torch.arange(begin, min(begin + at_once, count_Q))
            query_H, document_H = some_Q.repeat_interleave(count_N), torch.arange(count_N).repeat(len(some_Q))
            score_QN[some_Q] = exact_scores(queries, query_H, document_H).view(-1, count_N)
        return score_QN

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Return the exact MaxSim of each query with the document at the same position in fp32 [N].

        Raises ConfigError if their numbers differ, or for embeddings of another dim.
        """
        queries, documents = self._ragged(embeddings1), self._ragged(embeddings2)
        if len(queries.offsets_N) != len(documents.offsets_N):
            got = f"{len(queries.offsets_N) - 1} and {len(documents.offsets_N) - 1}"
            msg = f"similarity_pairwise: got {got} texts, wanted as many on both sides"
            raise ConfigError(msg)
        place_N = torch.arange(len(queries.offsets_N) - 1)
        if not len(place_N):
            return torch.zeros(0)
        return self._kernel(documents).exact_scores(queries, place_N, place_N)

    def _kernel(self, documents: Ragged) -> choice.Kernel:
        engine = self.config.engine
        return choice.bind(engine.maxsim, documents, device=self.backbone.device, precision=engine.nominate)

    def _ragged(self, embeddings: Embeddings) -> Ragged:
        """Return vectors as concatenated rows with offsets, in the dtype of the store."""
        if isinstance(embeddings, (Tensor, np.ndarray)):
            rows = torch.as_tensor(embeddings)
            if not self.per_token:
                parts = list(rows.reshape(-1, 1, rows.shape[-1]).unbind())
            else:
                parts = [rows] if rows.ndim == 2 else list(rows.unbind())
        else:
            parts = [torch.as_tensor(part) for part in embeddings]
            parts = [part.unsqueeze(0) if part.ndim == 1 else part for part in parts]
        if not parts:
            return ragged(torch.zeros(0, self.dim, dtype=DTYPES[self.config.store.dtype]), torch.zeros(0))
        if wrong := [tuple(part.shape) for part in parts if part.ndim != 2 or part.shape[-1] != self.dim]:
            msg = f"{self.mteb_model_meta.name}: got embeddings of shape {wrong[0]}, wanted (vectors, {self.dim})"
            raise ConfigError(f"{msg}; compare what this encoder's encode returned")
        rows_XD = torch.cat([part.cpu() for part in parts]).to(DTYPES[self.config.store.dtype])
        return ragged(rows_XD, torch.tensor([len(part) for part in parts]))


@dataclass(kw_only=True)
class Bm25:
    """BM25 as mteb's `SearchProtocol`: it has no vectors, so it searches itself."""

    config: RunConfig
    mteb_model_meta: Any
    _documents: list[Document] = field(default_factory=list)

    def index(self, corpus: Iterable[Mapping[str, Any]], **_settings: Any) -> None:
        """Keep mteb's corpus, rows of id, title and text. Terms are counted in `search`, when the queries are known."""
        self._documents = [
            Document(str(row["id"]), str(row.get("title") or ""), str(row.get("text") or "")) for row in corpus
        ]

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_settings: Any,
    ) -> dict[str, dict[str, float]]:
        """Return each query's best `top_k` documents with their scores; for a re-ranking task, only its candidates."""
        model = self.config.model
        assert isinstance(model, Bm25Config)
        wanted = [Query(str(row["id"]), str(row["text"])) for row in queries]
        analyzer = ANALYZERS[model.analyzer]()
        terms = lucene.query_terms(wanted, analyzer)
        counts = lucene.count_shard(
            self._documents, vocabulary=terms.vocabulary, fields=model.fields, analyzer=analyzer
        )
        depth = top_k if top_ranked is None else len(self._documents)
        hits = bm25_score_step(counts, counts.statistics(), model, terms.queries, depth=depth)
        ranked = to_run(hits if model.ties == "trec_eval" else separate_ties(hits), [query.id for query in wanted])
        found = {}
        for query, hits_of in ranked.items():
            candidates = None if top_ranked is None else set(top_ranked.get(query, ()))
            kept = [hit for hit in hits_of if candidates is None or hit.document_id in candidates][:top_k]
            found[query] = {hit.document_id: hit.score for hit in kept}
        return found


def encoder(*words: str) -> Encoder | Bm25:
    """Return the system that the words of `evalkit run` name, for `mteb.evaluate`.

    `encoder("model=jina-colbert-v2", "dim=64")` loads the weights and runs the canary. The word `dataset=` only chooses
    settings that a config gives per dataset or language, such as BM25's analyzer; the data are those of mteb's task.
    Raises ConfigError unless the words name one system at one dim and mteb 2 is installed, and ModelError for weights
    that cannot be loaded or fail the canary. It waits for calls of itself and of `evalkit.run` in other threads.
    """
    with one_at_a_time:
        return _encoder(words)


def _encoder(words: Sequence[str]) -> Encoder | Bm25:
    """Load the system that words name."""
    config = compose.compose(words)
    pipeline.refuse_reranker(config)
    if len(config.dims) != 1:
        msg = f"got dims {', '.join(map(str, config.dims))}, wanted one: mteb evaluates one model at a time; give dim=N"
        raise ConfigError(msg)
    (dim,) = config.dims
    model = config.model
    if not isinstance(model, EncoderConfig) or dim is None:
        assert isinstance(model, Bm25Config)
        lucene.check_settings(model)
        return Bm25(config=config, mteb_model_meta=_meta(model.name, None, model_type=["sparse"]))
    _require_mteb()  # before weights are loaded
    device = auto.choose_device(config.engine.device)
    engine = config.engine
    choice.require(engine.maxsim, device, precision=engine.nominate)
    compile_cache.set_fallback(config.cache_dir)
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    limit_tokenizer(tokenizer_threads(engine.tokenizer_workers, device))
    found = checkpoints(model, [dim])
    ((backbone, _),) = loaded.encoders(model, found, device=device, engine=engine)
    similarity = "MAX_SIM" if model.pooling == "tokens" else "COSINE" if model.normalize else "DOT_PRODUCT"
    return Encoder(
        config=config,
        backbone=backbone,
        dim=dim,
        mteb_model_meta=_meta(
            model.name,
            dim,
            revision=found[dim].revision,
            similarity=similarity,
            embed_dim=dim,
            max_tokens=model.document.max_tokens,
            model_type=[MODEL_TYPES[model.pooling]],
            framework=["PyTorch"],
        ),
    )


def _require_mteb() -> Any:
    """Return mteb. Raises ConfigError if it is not installed or its version has no such protocols."""
    try:
        import mteb
        from mteb.models import ModelMeta  # noqa: F401 (version 1 lacks it)
    except ImportError as error:
        msg = f"mteb cannot be imported ({error}), wanted version 2: pip install 'evalkit[mteb]'"
        raise ConfigError(msg) from error
    return mteb


def _meta(name: str, dim: int | None, *, revision: str | None = None, similarity: str = "", **facts: Any) -> Any:
    """Return mteb's metadata of a system, named as in evalkit's own exports."""
    _require_mteb()
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    known = {"name": f"evalkit/{keys.system_label(name.replace('/', '__'), dim)}", **facts}
    known |= {"revision": revision} if revision else {}
    known |= {"similarity_fn_name": ScoringFunction[similarity]} if similarity else {}
    return ModelMeta.create_empty(overwrites=known)
