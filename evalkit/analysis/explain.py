"""Explain a cell's score: the queries that cause a difference, remarks on each, and one pair token by token.

Shapes: L query tokens, T document tokens, D dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from evalkit.analysis.replay import Material
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.datasets.survey import ContentHash
from evalkit.errors import ConfigError, DatasetError, nearest
from evalkit.run import identity
from evalkit.storage import evaluated
from evalkit.storage.results import CellScores

if TYPE_CHECKING:
    from evalkit.models.tokens import Vocabulary
    from evalkit.types import Dataset

CUTOFF = 10
"""Ranks in which unjudged documents are counted."""


class Contribution(NamedTuple):
    """One query's contribution to the difference Δ of two means; all contributions add up to Δ."""

    query: str
    value: float
    against: float
    """The value it is compared with."""
    part: float
    """(value - against) / number of queries."""
    flags: tuple[str, ...]
    """Remarks on the query's hits, judgements and texts."""


class TokenMatch(NamedTuple):
    """A query token and the document token that it is most similar to."""

    query_token: str
    document_token: str
    similarity: float


class PairView(NamedTuple):
    """MaxSim of one query and one document, token by token; the similarities add up to the score."""

    query: str
    document: str
    score: float
    in_run: float | None
    """The score in the run; None if the run does not contain the document."""
    matches: tuple[TokenMatch, ...]
    query_cut: bool
    """Whether the model truncates the query."""
    document_cut: bool


def contributions(
    material: Material, values: Mapping[str, float], against: Mapping[str, float] | float
) -> list[Contribution]:
    """Return every query's contribution to Δ, the largest first, with remarks on its hits and judgements.

    `against` is a published mean, which every query is compared with, or another cell's values by query.
    """
    found = []
    for query, value in values.items():
        other = against if isinstance(against, float) else against[query]
        found.append(Contribution(query, value, other, (value - other) / len(values), flags(material, query)))
    return sorted(found, key=lambda one: (-abs(one.part), one.query))


class Band(NamedTuple):
    """Queries whose values lie in one range."""

    name: str
    queries: int


EDGES = (0.25, 0.5, 0.75)
"""The inner edges of a distribution's ranges; 0 and 1 have ranges of their own, as complete failure and success."""


def distribution(values: Mapping[str, float]) -> list[Band]:
    """Return how many queries score 0, 1, and in each range between.

    >>> [tuple(band) for band in distribution({"a": 0.0, "b": 0.25, "c": 1.0})]
    [('0', 1), ('0 to 0.25', 1), ('0.25 to 0.5', 0), ('0.5 to 0.75', 0), ('0.75 to 1', 0), ('1', 1)]
    """
    found = [Band("0", sum(value == 0 for value in values.values()))]
    for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True):
        among = [value for value in values.values() if low < value <= high and value < 1]
        found.append(Band(f"{low:g} to {high:g}", len(among)))
    return [*found, Band("1", sum(value == 1 for value in values.values()))]


def lowest(material: Material, values: Mapping[str, float], against: float, *, most: int) -> list[Contribution]:
    """Return the queries that score 0, or the lowest ones if none does, with remarks on each.

    `against` is a published mean. It says nothing about single queries: contributions to the difference would only
    rank the values.
    """
    ranked = sorted(values, key=lambda query: (values[query], query))
    zero = [query for query in ranked if values[query] == 0]
    return [
        Contribution(query, values[query], against, (values[query] - against) / len(values), flags(material, query))
        for query in (zero or ranked)[:most]
    ]


def flags(material: Material, query: str) -> tuple[str, ...]:
    """Return remarks on a query's hits: its own id, relevant documents not retrieved, unjudged ones at 10."""
    grades = material.qrels.get(query, {})
    ranked = [hit.document_id for hit in material.run.get(query, [])]
    kept = [document for document in ranked if document != query or not material.cell.protocol.get("drop_self")]
    relevant = {document for document, grade in grades.items() if grade > 0}
    missing = sorted(relevant - set(kept))
    unjudged = sum(document not in grades for document in kept[:CUTOFF])
    found = []
    if query in ranked:
        rule = "kept" if query in kept else "dropped"
        found.append(f"self-hit at rank {ranked.index(query) + 1}, {rule}")
    if not kept:
        found.append("no hits")
    if missing:
        found.append(f"missing {len(missing)} of {len(relevant)} relevant: {_some(missing)}")
    if unjudged:
        found.append(f"unjudged at {CUTOFF}: {unjudged}")
    return tuple(found)


def _some(names: Sequence[str], *, most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def text_flags(config: RunConfig, material: Material, queries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return remarks on the texts of queries: truncated texts, and judged documents that the corpus lacks.

    Reads the corpus once. Raises EvalkitError if the dataset or the tokenizer cannot be obtained, and if corpus or
    queries are not those of the run.
    """
    from evalkit import datasets

    relevant = {
        query: [document for document, grade in material.qrels.get(query, {}).items() if grade > 0] for query in queries
    }
    wanted = {document for documents in relevant.values() for document in documents}
    dataset, found = datasets.load_read(config.dataset, lambda dataset: _documents(dataset, wanted, material.cell))
    texts = {query.id: query.text for query in dataset.queries}
    vocabulary = _vocabulary(config, material.cell)
    odd: dict[str, tuple[str, ...]] = {}
    for query in queries:
        lines = []
        absent = sorted(document for document in relevant[query] if document not in found)
        if absent:
            lines.append(f"not in the corpus: {_some(absent)}")
        if vocabulary is not None:
            if query in texts and is_cut(config, vocabulary, texts[query], side="query"):
                lines.append("query truncated")
            cut = [
                document
                for document in relevant[query]
                if document in found and is_cut(config, vocabulary, found[document], side="document")
            ]
            if cut:
                lines.append(f"relevant documents truncated: {len(cut)} of {len(relevant[query])}")
        odd[query] = tuple(lines)
    return odd


def _documents(dataset: Dataset, wanted: set[str], cell: CellScores) -> dict[str, str]:
    """Return the texts of documents. Raises ChangedError if corpus or queries are not those of the run."""
    content, found = ContentHash(), {}
    for one in dataset.corpus.documents():
        content.add(one)
        if one.id in wanted:
            found[one.id] = one.joined()
    here = {"corpus": content.hexdigest(), "queries": identity.texts_checksum(dataset.queries)}
    evaluated.refuse_other_texts(cell, here, source=dataset.source)
    return found


def _vocabulary(config: RunConfig, cell: CellScores) -> Vocabulary | None:
    """Return the tokenizer of a model that truncates texts, None for BM25."""
    if not isinstance(config.model, EncoderConfig):
        return None
    from evalkit.models.checkpoint import resolve
    from evalkit.models.tokens import vocabulary_of

    source = config.model.checkpoints[str(cell.dim)]
    return vocabulary_of(config.model, resolve(source, allow_pickle=config.model.allow_pickle))


def is_cut(config: RunConfig, vocabulary: Vocabulary, text: str, *, side: str) -> bool:
    """Return whether the model truncates a text; `side` is `query` or `document`."""
    assert isinstance(config.model, EncoderConfig)
    rules = config.model.query if side == "query" else config.model.document
    room = rules.max_tokens - len(vocabulary.markers(rules)) - len(vocabulary.begin) - len(vocabulary.end)
    text = f"{rules.prompt}{text}"
    return len(vocabulary.tokenizer.encode(text, add_special_tokens=False).ids) > room


def pair(config: RunConfig, material: Material, query: str, document: str) -> PairView:
    """Encode one query and one document; return the matching tokens.

    Raises ConfigError for a model without token vectors, DatasetError if the query or the document does not exist, and
    ChangedError if corpus or queries are not those of the run.
    """
    if not isinstance(config.model, EncoderConfig) or config.model.kind != "late_interaction":
        msg = f"{material.cell.run_id}: {config.model.name} has no token vectors"
        raise ConfigError(f"{msg}; wanted a cell of a late-interaction model (evalkit ls models)")
    from evalkit import datasets

    if query not in material.qrels:
        msg = f"query {query!r} is not in {material.cell.dataset}; {nearest(query, material.qrels)}"
        raise DatasetError(msg)
    dataset, found = datasets.load_read(config.dataset, lambda dataset: _documents(dataset, {document}, material.cell))
    texts = {one.id: one.text for one in dataset.queries}
    if document not in found:
        hits = material.run.get(query, [])
        example = f", such as {hits[0].document_id}" if hits else ""
        msg = f"document {document!r} is not in the corpus of {dataset.name}; wanted a document of it{example}"
        raise DatasetError(msg)
    in_run = [hit.score for hit in material.run.get(query, []) if hit.document_id == document]
    matches, cut = _match(config, material.cell, texts[query], found[document])
    return PairView(
        query=texts[query],
        document=found[document],
        score=math.fsum(match.similarity for match in matches),
        in_run=in_run[0] if in_run else None,
        matches=tuple(matches),
        query_cut=cut[0],
        document_cut=cut[1],
    )


def _match(
    config: RunConfig, cell: CellScores, query: str, document: str
) -> tuple[list[TokenMatch], tuple[bool, bool]]:
    """Return every query token's best document token, and whether query and document are truncated.

    Vectors are rounded as in the store.
    """
    from evalkit.models.encoder import DTYPES, checkpoints, load_encoders
    from evalkit.run.auto import batch_tokens, choose_device
    from evalkit.run.encode import Encoding, encode

    model, dim = config.model, cell.dim
    assert isinstance(model, EncoderConfig)
    assert dim is not None
    device = choose_device(config.engine.device)
    engine = config.engine
    (encoder,) = load_encoders(
        model, checkpoints(model, [dim]), device=device, attention=engine.attention, elementwise=engine.elementwise
    )
    query_tokens, document_tokens = encoder.tokenize_queries([query]), encoder.tokenize_documents([document])
    queries, documents = (
        Encoding(
            documents=of_documents,
            batch_tokens=batch_tokens(engine.batch_tokens, device),
            storage=DTYPES[config.store.dtype],
        )
        for of_documents in (False, True)
    )
    query_LD = encode(["q"], query_tokens, encoder, queries)[dim]
    document_TD = encode(["d"], document_tokens, encoder, documents)[dim]
    similarity_LT = query_LD.vectors.rows_XD.double() @ document_TD.vectors.rows_XD.double().T
    best_L, place_L = similarity_LT.max(dim=1)
    skipped = set(encoder.skipped.tolist())
    kept = [token for token in document_tokens[0].ids if token not in skipped]
    name = encoder.vocabulary.tokenizer.id_to_token
    matches = [
        TokenMatch(str(name(token)), str(name(kept[place])), value)
        for token, place, value in zip(query_tokens[0].ids, place_L.tolist(), best_L.tolist(), strict=True)
    ]
    cut = (
        is_cut(config, encoder.vocabulary, query, side="query"),
        is_cut(config, encoder.vocabulary, document, side="document"),
    )
    return matches, cut
