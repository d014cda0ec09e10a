"""Lucene's BM25, reproduced exactly in two passes over shards: count query terms, then score with corpus statistics.

The queries are known before the first document is read, so only query terms are counted. The sum of the shards'
`Statistics` equals the statistics of one index over the whole corpus; with that sum, shards are scored independently.

Shapes: Q queries, N documents of a shard, V distinct query terms, P postings (a term in a document) of a shard.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evalkit.bm25.analyzers import ANALYZERS, Analyzer
from evalkit.config.settings import Bm25Config
from evalkit.errors import ConfigError, StoreError, nearest
from evalkit.types import Document, Query

FIELD_TEXTS: Mapping[str, Callable[[Document], str]] = MappingProxyType(
    {"contents": Document.joined, "text": lambda document: document.text, "title": lambda document: document.title}
)
"""The text of each field. The first field here that is indexed is the document's body (see `count_shard`)."""

_JAVA_TRIM = "".join(map(chr, range(0x21)))
"""The characters that Java's `String.trim` strips: U+0000 to the space."""


class QueryTerms(NamedTuple):
    """The analysed queries: the id of every query term, and each query's (term id, occurrences) pairs in id order."""

    vocabulary: dict[str, int]
    queries: tuple[tuple[tuple[int, int], ...], ...]


class FieldCounts(NamedTuple):
    """One field of one shard as an inverted index of the query terms; postings are sorted by term, then document."""

    document_P: npt.NDArray[np.int32]
    """The document's position in the shard."""
    term_P: npt.NDArray[np.int32]
    """The term id."""
    frequency_P: npt.NDArray[np.int32]
    """Occurrences of the term in the document's field."""
    length_N: npt.NDArray[np.int32]
    """Terms in each document's field, including those that no query has; stop words are not counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardCounts:
    """The counts that BM25 needs from a shard's documents; their size is proportional to the shard."""

    document_ids: tuple[str, ...]
    fields: Mapping[str, FieldCounts]
    terms: int
    """V, the size of the vocabulary that the term ids index."""

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the counts as named numeric arrays for a file; ids become UTF-8 bytes and each id's end in them."""
        encoded = [document_id.encode() for document_id in self.document_ids]
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "terms": np.array([self.terms], dtype=np.int64),
            "document_ids.bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "document_ids.ends": np.cumsum([len(one) for one in encoded], dtype=np.int64),
        }
        for name, field in self.fields.items():
            arrays |= {f"{name}.{part}": values for part, values in field._asdict().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> ShardCounts:
        """Rebuild the counts from the arrays of `to_arrays`; raise StoreError if an array is missing."""
        names = sorted({name.partition(".")[0] for name in arrays} - {"terms", "document_ids"})
        try:
            ends = arrays["document_ids.ends"].tolist()
            ids = arrays["document_ids.bytes"].tobytes()
            terms = int(arrays["terms"][0])
            fields = {
                name: FieldCounts(
                    *(np.asarray(arrays[f"{name}.{part}"], dtype=np.int32) for part in FieldCounts._fields)
                )
                for name in names
            }
        except KeyError as missing:
            message = f"BM25 counts lack the array {missing}; got {sorted(arrays)}; count this shard again"
            raise StoreError(message) from None
        document_ids = tuple(ids[start:end].decode() for start, end in zip([0, *ends], ends, strict=False))
        return cls(document_ids=document_ids, fields=fields, terms=terms)

    def statistics(self) -> Statistics:
        """Return this shard's contribution to the corpus statistics."""
        return Statistics(
            {
                name: FieldStatistics(
                    documents=int(np.count_nonzero(field.length_N)),
                    total_terms=int(field.length_N.sum(dtype=np.int64)),
                    document_frequency_V=np.bincount(field.term_P, minlength=self.terms).astype(np.int64),
                )
                for name, field in self.fields.items()
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldStatistics:
    """One field of Lucene's `CollectionStatistics` and `TermStatistics`; addition is associative."""

    documents: int
    """`docCount`: documents with at least one term in the field."""
    total_terms: int
    """`sumTotalTermFreq`: terms of all documents in the field."""
    document_frequency_V: npt.NDArray[np.int64]
    """`docFreq`: for each query term, the documents that contain it."""

    def __add__(self, other: FieldStatistics) -> FieldStatistics:
        """Return the statistics of both sets of documents together; raise StoreError if the queries differ."""
        if len(self.document_frequency_V) != len(other.document_frequency_V):
            raise StoreError(
                f"BM25 statistics of {len(self.document_frequency_V)} and of {len(other.document_frequency_V)} query "
                "terms cannot be added; count every shard with the same queries"
            )
        return FieldStatistics(
            documents=self.documents + other.documents,
            total_terms=self.total_terms + other.total_terms,
            document_frequency_V=self.document_frequency_V + other.document_frequency_V,
        )


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of every field; addition works field by field."""

    fields: Mapping[str, FieldStatistics]

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of documents together; raise StoreError if fields or queries differ."""
        if self.fields.keys() != other.fields.keys():
            raise StoreError(
                f"BM25 statistics of the fields {sorted(self.fields)} and {sorted(other.fields)} cannot be added; "
                "count every shard with the same fields"
            )
        return Statistics({name: field + other.fields[name] for name, field in self.fields.items()})


def check_settings(settings: Bm25Config) -> None:
    """Raise ConfigError unless Lucene's `BM25Similarity` accepts k1 and b, and fields and analyzer are known."""
    if not (math.isfinite(settings.k1) and settings.k1 >= 0):
        raise ConfigError(
            f"k1 {settings.k1} of {settings.name}: wanted a finite number of 0 or more; Anserini uses 0.9"
        )
    if not 0 <= settings.b <= 1:
        raise ConfigError(f"b {settings.b} of {settings.name}: wanted a number from 0 to 1; Anserini uses 0.4")
    if settings.analyzer not in ANALYZERS:
        raise ConfigError(f"analyzer {settings.analyzer!r} unknown; {nearest(settings.analyzer, ANALYZERS)}")
    _check_fields(settings.fields)


def _check_fields(fields: Sequence[str]) -> None:
    if not fields:
        raise ConfigError(f"no BM25 field given; wanted one or more of {', '.join(FIELD_TEXTS)}")
    for name in fields:
        if name not in FIELD_TEXTS:
            raise ConfigError(f"BM25 field {name!r} unknown; {nearest(name, FIELD_TEXTS)}")
    if len(set(fields)) < len(fields):
        raise ConfigError(
            f"BM25 fields {', '.join(fields)}: wanted each once, since field scores are added; remove the duplicate"
        )


def query_terms(queries: Sequence[Query], analyzer: Analyzer) -> QueryTerms:
    """Analyse the queries. Term ids are positions in the sorted vocabulary, so they do not depend on query order.

    >>> query_terms([Query("q", "b a b")], str.split)
    QueryTerms(vocabulary={'a': 0, 'b': 1}, queries=(((0, 1), (1, 2)),))
    """
    counted = [Counter(analyzer(query.text)) for query in queries]
    vocabulary = {term: term_id for term_id, term in enumerate(sorted(set().union(*counted)))}
    return QueryTerms(
        vocabulary=vocabulary,
        queries=tuple(tuple(sorted((vocabulary[term], n) for term, n in counts.items())) for counts in counted),
    )


def count_shard(
    documents: Iterable[Document], *, vocabulary: Mapping[str, int], fields: Sequence[str], analyzer: Analyzer
) -> ShardCounts:
    """Count the vocabulary's terms in every document of a shard, field by field.

    Anserini does not index a document whose body is blank, whatever its title (the body is `contents` or `text`;
    `DefaultLuceneDocumentGenerator` throws EmptyDocumentException). Such a document keeps its position here and has
    length 0 in every field, so no statistic includes it and no query matches it. The rule matters for TREC-COVID:
    Anserini's flat index has 171,331 documents, its multifield index 129,192.

    Raises ConfigError for fields that are unknown, repeated or none.
    """
    _check_fields(fields)
    body = next(text_of for name, text_of in FIELD_TEXTS.items() if name in fields)
    texts = {name: FIELD_TEXTS[name] for name in fields}
    occurrences = {name: array("i") for name in fields}  # term ids of all documents, concatenated
    counted = {name: array("i") for name in fields}  # number of those term ids per document
    lengths = {name: array("i") for name in fields}
    document_ids = []
    for document in documents:
        document_ids.append(document.id)
        indexed = bool(body(document).strip(_JAVA_TRIM))
        for name, text_of in texts.items():
            terms = analyzer(text_of(document)) if indexed else []
            known = [vocabulary[term] for term in terms if term in vocabulary]
            occurrences[name].extend(known)
            counted[name].append(len(known))
            lengths[name].append(len(terms))
    return ShardCounts(
        document_ids=tuple(document_ids),
        fields={name: _postings(occurrences[name], counted[name], lengths[name]) for name in fields},
        terms=len(vocabulary),
    )


def _postings(occurrences: array[int], counted: array[int], lengths: array[int]) -> FieldCounts:
    """Sum occurrences per (term, document) pair, sorted by term, then document."""
    document = np.repeat(np.arange(len(counted), dtype=np.int64), np.asarray(counted, dtype=np.int64))
    key, frequency_P = np.unique(np.asarray(occurrences, dtype=np.int64) * len(counted) + document, return_counts=True)
    term_P, document_P = np.divmod(key, max(len(counted), 1))
    return FieldCounts(
        document_P=document_P.astype(np.int32),
        term_P=term_P.astype(np.int32),
        frequency_P=frequency_P.astype(np.int32),
        length_N=np.asarray(lengths, dtype=np.int32),
    )


def score_block(
    counts: ShardCounts,
    statistics: Statistics,
    settings: Bm25Config,
    queries: Sequence[Sequence[tuple[int, int]]],
) -> npt.NDArray[np.float32]:
    """Score a block of `QueryTerms.queries` against a shard: float32 [Q, N], -inf for documents not retrieved.

    Lucene retrieves only documents that share a term with the query. With `unmatched: fill` the other documents get
    score 0, as in mteb's use of bm25s, which takes the best k of all documents. The working memory is 13 bytes per
    query and document; callers limit it by the number of queries in a block.

    A term that a query repeats is one clause, boosted by its occurrences (Anserini's `BagOfWordsQueryGenerator`).
    Clauses of all fields are added in float64 and the sum is rounded to float32 once, as in Lucene's disjunctions.

    Raises ConfigError for settings that `check_settings` rejects, and StoreError if a field was not counted.
    """
    check_settings(settings)
    missing = [name for name in settings.fields if name not in counts.fields or name not in statistics.fields]
    if missing:
        raise StoreError(
            f"BM25 counts have the fields {sorted(counts.fields)}, statistics {sorted(statistics.fields)}, and "
            f"{settings.name} wants {', '.join(missing)}; count the shards again with these fields"
        )
    rows_by_clause: dict[tuple[int, int], list[int]] = {}
    for row, query in enumerate(queries):
        for clause in query:
            rows_by_clause.setdefault(clause, []).append(row)
    shape = (len(queries), len(counts.document_ids))
    score_QN = np.zeros(shape, dtype=np.float64)
    matched_QN = np.zeros(shape, dtype=np.bool_)
    for name in settings.fields:
        field, known = counts.fields[name], statistics.fields[name]
        assert len(known.document_frequency_V) == counts.terms, "counts and statistics come from different queries"
        inverse_norm_N = _inverse_norms(known, settings, field.length_N)
        for (term, boost), rows in rows_by_clause.items():
            start, stop = np.searchsorted(field.term_P, np.array([term, term + 1], dtype=np.int32))
            documents, frequency = field.document_P[start:stop], field.frequency_P[start:stop].astype(np.float32)
            weight = np.float32(boost) * inverse_document_frequency(
                int(known.document_frequency_V[term]), documents=known.documents
            )
            part = weight - weight / (np.float32(1) + frequency * inverse_norm_N[documents])
            for row in rows:
                score_QN[row, documents] += part
                matched_QN[row, documents] = True
    if settings.unmatched == "leave_out":
        score_QN[~matched_QN] = -np.inf
    return score_QN.astype(np.float32)


def inverse_document_frequency(document_frequency: int, *, documents: int) -> np.float32:
    """Return Lucene's `BM25Similarity.idf`, ln(1 + (N - n + ½) / (n + ½)), computed in double, rounded to float.

    >>> float(inverse_document_frequency(1, documents=1))  # ln(1 + ⅓)
    0.28768208622932434
    """
    return np.float32(math.log(1 + (documents - document_frequency + 0.5) / (document_frequency + 0.5)))


def _inverse_norms(
    known: FieldStatistics, settings: Bm25Config, length_N: npt.NDArray[np.int32]
) -> npt.NDArray[np.float32]:
    """Return 1 / (k1 · (1 - b + b · length / average length)) per document, in float and in Lucene's order.

    The length is decoded from Lucene's one-byte norm; with `lengths: exact` it is the document's own. With k1 = 0 the
    result is infinite, and a match scores its full weight whatever its frequency.
    """
    k1, b, one = np.float32(settings.k1), np.float32(settings.b), np.float32(1)
    length = length_N if settings.lengths == "exact" else _LENGTH_OF_CODE[encode_length(length_N)]
    average_length = np.float32(known.total_terms / max(known.documents, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(one / (k1 * ((one - b) + b * length.astype(np.float32) / average_length)), dtype=np.float32)


# Lucene's `SmallFloat` stores a length in one byte. Codes 0 to 23 are the lengths themselves. The others encode
# length - 24 as a float with 3 explicit mantissa bits, rounded down, so lengths below 40 are exact.
_EXACT_CODES = 24


def decode_length(code: int) -> int:
    """Decode a length from its byte (`SmallFloat.byte4ToInt`).

    >>> [decode_length(code) for code in (23, 24, 39, 40, 41, 48, 255)]
    [23, 24, 39, 40, 42, 56, 2013265944]
    """
    if code < _EXACT_CODES:
        return code
    shift, mantissa = divmod(code - _EXACT_CODES, 8)
    return _EXACT_CODES + (mantissa if shift == 0 else (mantissa + 8) << (shift - 1))


_LENGTH_OF_CODE = np.array([decode_length(code) for code in range(256)], dtype=np.int64)


def encode_length(length_N: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Encode lengths as bytes (`SmallFloat.intToByte4`): the largest code whose length does not exceed each length.

    >>> encode_length(np.array([39, 40, 41, 42, 200])).tolist()
    [39, 40, 40, 41, 67]
    """
    return (np.searchsorted(_LENGTH_OF_CODE, length_N, side="right") - 1).astype(np.uint8)
