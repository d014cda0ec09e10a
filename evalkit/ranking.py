"""The order of a ranking: the tie rule, merging of rankings, and removal of a query's own document.

Shapes: Q queries, H hits (of all queries, concatenated).

The tie rule is trec_eval's: a query's hits are ordered by fp32 score descending; among equal scores, the greater
document id by UTF-8 bytes comes first. `rank_hits` applies it to lists of hits, `merge` to arrays. BM25 is searched in
Anserini's order instead: among equal scores, the smaller id comes first. `separate_ties` then lowers equal scores, so
that the run file of BM25 has no ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from evalkit.errors import ScoreError
from evalkit.types import Hit

FP32_LIMIT = 2.0**128 - 2.0**103
"""The smallest number that rounds to infinity in fp32; runs are ranked in fp32."""
SHORT_ID = 64
"""Ids of up to this many bytes are compared in an array of fixed width, which takes half the time."""
TieRule = Literal["trec_eval", "anserini"]


class Hits(NamedTuple):
    """Hits of many queries as flat arrays: query position, document id (UTF-8 bytes), exact fp32 score.

    Ids are Python objects that all hits of a document share. In an array of fixed width every id would take as many
    bytes as the longest.
    """

    query_H: np.ndarray
    id_H: np.ndarray
    score_H: np.ndarray


class Ids(NamedTuple):
    """The ids of a shard's documents, and the rank of each in the order of UTF-8 bytes."""

    id_N: np.ndarray
    rank_N: np.ndarray


def id_array(ids: Sequence[bytes]) -> np.ndarray:
    """Return ids as an array of objects."""
    id_N = np.empty(len(ids), dtype=object)
    id_N[:] = ids
    return id_N


def ranked_ids(ids: Sequence[str]) -> Ids:
    """Return the ids of a shard with their ranks, so that ties are decided by comparing numbers.

    >>> ranked_ids(["b", "a"]).rank_N.tolist()
    [1, 0]
    """
    encoded = [identifier.encode() for identifier in ids]
    rank_N = np.empty(len(encoded), dtype=np.int64)
    rank_N[sorted(range(len(encoded)), key=encoded.__getitem__)] = np.arange(len(encoded))
    return Ids(id_array(encoded), rank_N)


def no_hits() -> Hits:
    """Return an empty set of hits, the neutral element of `merge`."""
    return Hits(np.zeros(0, np.int32), np.zeros(0, object), np.zeros(0, np.float32))


def best_of_shard(
    query_H: np.ndarray,
    document_H: np.ndarray,
    score_H: np.ndarray,
    ids: Ids,
    *,
    depth: int,
    ties: TieRule = "trec_eval",
) -> Hits:
    """Keep each query's best `depth` hits among documents of one shard, given by their positions in it."""
    rank_H = ids.rank_N[document_H]
    query_key_H = query_H.astype(np.int64)
    if ties == "trec_eval":
        order_H = np.lexsort((rank_H, score_H, -query_key_H))[::-1]
    else:
        order_H = np.lexsort((rank_H, -score_H, query_key_H))
    kept_H = order_H[_rank_within(query_H[order_H]) < depth]
    return Hits(query_H[kept_H], ids.id_N[document_H[kept_H]], score_H[kept_H])


def merge(parts: Sequence[Hits], *, depth: int, ties: TieRule = "trec_eval") -> Hits:
    """Merge sets of hits and keep each query's best `depth`; the result is ordered by query, then rank.

    Among equal fp32 scores, trec_eval ranks the greater id first (by UTF-8 bytes), Anserini the smaller. Merging is
    associative, so shards may be merged in any grouping.
    """
    query_H = np.concatenate([part.query_H for part in parts])
    id_H = np.concatenate([part.id_H.astype(object) for part in parts])
    score_H = np.concatenate([part.score_H for part in parts])
    order_H = np.lexsort((-score_H, query_H))
    _settle_ties(order_H, query_H, id_H, score_H, ties=ties)
    kept_H = order_H[_rank_within(query_H[order_H]) < depth]
    return Hits(query_H[kept_H], id_H[kept_H], score_H[kept_H])


def _settle_ties(
    order_H: np.ndarray, query_H: np.ndarray, id_H: np.ndarray, score_H: np.ndarray, *, ties: TieRule
) -> None:
    """Sort hits of one query with equal scores by their ids, in place. No other ids are compared."""
    same_H = (query_H[order_H][1:] == query_H[order_H][:-1]) & (score_H[order_H][1:] == score_H[order_H][:-1])
    if not same_H.any():
        return
    tied_H = np.concatenate([same_H, [False]]) | np.concatenate([[False], same_H])
    places_T = np.flatnonzero(tied_H)
    group_T = np.cumsum(~np.concatenate([[False], same_H])[places_T])
    ids = id_H[order_H[places_T]].tolist()
    if max(map(len, ids)) <= SHORT_ID and b"\0" not in b"".join(ids):  # at a fixed width NUL would end an id
        settled_T = np.lexsort((np.array(ids), group_T if ties == "anserini" else -group_T))
        settled_T = settled_T if ties == "anserini" else settled_T[::-1]
    else:
        by_id_T = np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=ties == "trec_eval"))
        settled_T = by_id_T[np.argsort(group_T[by_id_T], kind="stable")]
    order_H[places_T] = order_H[places_T][settled_T]


def concatenated(parts: Sequence[Hits]) -> Hits:
    """Concatenate hits of consecutive queries, each part in the order of `merge`; nothing is sorted."""
    return Hits(*(np.concatenate(columns) for columns in zip(*parts, strict=True))) if parts else no_hits()


def merge_new(best: Hits, found: Hits, *, depth: int) -> Hits:
    """Return `merge([best, found])`, but sort only the hits of queries that have new ones.

    `best` must be a result of `merge` or of this function. After the first shards, few queries get better hits.
    """
    if not len(found.query_H):
        return best
    queries = int(max(found.query_H.max(), best.query_H.max(initial=0))) + 1
    touched_Q = np.zeros(queries, dtype=bool)
    touched_Q[found.query_H] = True
    touched_H = touched_Q[best.query_H]
    changed = merge([Hits(*(column[touched_H] for column in best)), found], depth=depth)
    both = [Hits(*(column[~touched_H] for column in best)), changed]
    query_H, id_H, score_H = concatenated(both)
    order_H = np.argsort(query_H, kind="stable")
    return Hits(query_H[order_H], id_H[order_H], score_H[order_H])


def _rank_within(query_H: np.ndarray) -> np.ndarray:
    """Return each hit's rank within its query, from 0; the hits must be grouped by query.

    >>> _rank_within(np.array([4, 4, 7])).tolist()
    [0, 1, 0]
    """
    place_H = np.arange(len(query_H))
    first_H = np.concatenate([[True], query_H[1:] != query_H[:-1]]) if len(query_H) else np.zeros(0, dtype=bool)
    return place_H - np.maximum.accumulate(np.where(first_H, place_H, 0)) if len(query_H) else place_H


def floors(best: Hits, *, queries: int, depth: int) -> np.ndarray:
    """Return for each query the score of its hit at rank `depth` [Q]; -inf for a query with fewer hits.

    A document with a lower score cannot enter the best `depth`.
    """
    floor_Q = np.full(queries, -np.inf, dtype=np.float32)
    last_H = _rank_within(best.query_H) == depth - 1
    floor_Q[best.query_H[last_H]] = best.score_H[last_H]
    return floor_Q


def rank_hits(hits: Iterable[Hit]) -> list[Hit]:
    """Rank one query's hits under the tie rule of this module.

    >>> rank_hits([Hit("a", 1.0), Hit("b", 1.0), Hit("c", 2.0)])
    [Hit(document_id='c', score=2.0), Hit(document_id='b', score=1.0), Hit(document_id='a', score=1.0)]
    """
    return sorted(hits, key=lambda hit: (float(np.float32(hit.score)), hit.document_id.encode()), reverse=True)


def check_hits(query: str, hits: Sequence[Hit]) -> None:
    """Raise ScoreError unless every score is a finite fp32 number and every document occurs once.

    Other hits cannot be ranked: NaN has no order, and a repeated document would be counted twice.
    """
    seen: set[str] = set()
    for hit in hits:
        if not abs(hit.score) < FP32_LIMIT:
            msg = (
                f"query {query!r}, document {hit.document_id!r}: got score {hit.score}, wanted a finite number in fp32"
            )
            raise ScoreError(f"{msg}; check the system that produced it")
        if hit.document_id in seen:
            msg = f"query {query!r}: got document {hit.document_id!r} twice, wanted every document once"
            raise ScoreError(f"{msg}; keep its best score")
        seen.add(hit.document_id)


def separate_ties(hits: Hits) -> Hits:
    """Lower every score that is not below its predecessor's to the next smaller fp32 number.

    A run in Anserini's order then keeps that order under trec_eval's tie rule. Anserini itself subtracts 1e-6.
    """
    score_H = hits.score_H.copy()
    for place in np.flatnonzero(hits.query_H[1:] == hits.query_H[:-1]) + 1:
        if score_H[place] >= score_H[place - 1]:
            score_H[place] = np.nextafter(score_H[place - 1], np.float32(-np.inf))
    return hits._replace(score_H=score_H)


def self_hits(run: Mapping[str, list[Hit]]) -> int:
    """Count the hits whose document id is identical to the query id.

    >>> self_hits({"q": [Hit("q", 2.0), Hit("d", 1.0)], "r": [Hit("d", 1.0)]})
    1
    """
    return sum(hit.document_id == query for query, hits in run.items() for hit in hits)


def drop_self(run: Mapping[str, list[Hit]], *, depth: int) -> tuple[dict[str, list[Hit]], int]:
    """Drop each query's own document, keep `depth` hits, and return the run with the number of affected queries.

    This is BEIR's rule for corpora whose document ids include query ids.

    >>> drop_self({"q": [Hit("q", 2.0), Hit("d", 1.0)]}, depth=1)
    ({'q': [Hit(document_id='d', score=1.0)]}, 1)
    """
    kept = {query: [hit for hit in hits if hit.document_id != query][:depth] for query, hits in run.items()}
    return kept, sum(any(hit.document_id == query for hit in hits) for query, hits in run.items())
