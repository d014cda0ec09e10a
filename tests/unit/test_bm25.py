"""Lucene's BM25 on corpora small enough to score on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest

from evalkit.bm25.lucene import (
    ShardCounts,
    Statistics,
    check_settings,
    count_shard,
    decode_length,
    encode_length,
    query_terms,
    score_block,
)
from evalkit.config.settings import Bm25Config
from evalkit.errors import ConfigError, StoreError
from evalkit.types import Document, Query

TEXT = Bm25Config(name="bm25", kind="bm25", k1=0.9, b=0.4, fields=("text",), analyzer="english")
BOTH = replace(TEXT, fields=("text", "title"))
DOCUMENTS = [
    Document("d1", "x", "a b"),
    Document("d2", "a", "a a c c"),
    Document("d3", "", "c c c"),
    Document("d4", "b a", "b z z z z z z"),
]


def measure(
    documents: Sequence[Document], texts: Sequence[str], settings: Bm25Config, *, shards: Sequence[int] = ()
) -> np.ndarray:
    """Score the queries against the documents, cut into shards before the given positions: [Q, N]."""
    terms = query_terms([Query(str(row), text) for row, text in enumerate(texts)], str.split)
    bounds = [0, *shards, len(documents)]
    counts = [
        count_shard(documents[start:stop], vocabulary=terms.vocabulary, fields=settings.fields, analyzer=str.split)
        for start, stop in pairwise(bounds)
    ]
    statistics = reduce(add, (shard.statistics() for shard in counts))
    return np.hstack([score_block(shard, statistics, settings, terms.queries) for shard in counts])


def test_a_score_is_what_the_formula_gives_on_paper() -> None:
    # Four texts of 2, 4, 3 and 7 terms: average 4. "a" is in two of them: idf = ln(1 + 2.5 / 2.5) = ln 2.
    scores = measure(DOCUMENTS, ["a"], TEXT)[0]
    for position, frequency, length in ((0, 1, 2), (1, 2, 4)):
        norm = 0.9 * (0.6 + 0.4 * length / 4)
        assert scores[position] == pytest.approx(math.log(2) * frequency / (frequency + norm), rel=1e-6)


def test_a_document_that_shares_no_term_scores_minus_infinity() -> None:
    scores = measure(DOCUMENTS, ["a", "nowhere", ""], TEXT)
    assert np.isneginf(scores[0]).tolist() == [False, False, True, True]
    assert np.isneginf(scores[1:]).all()


def test_scores_of_fields_are_added() -> None:
    text, title, both = (
        measure(DOCUMENTS, ["a b"], replace(TEXT, fields=fields))[0] for fields in (("text",), ("title",), BOTH.fields)
    )
    assert both[3] == pytest.approx(text[3] + title[3], rel=1e-6)  # matches in both
    assert both[0] == text[0]  # the title has no query term
    assert np.isneginf(title[0])
    assert np.isneginf(both[2])


def test_contents_is_title_and_text_as_one_field() -> None:
    joined = [Document(document.id, "", document.joined()) for document in DOCUMENTS]
    flat = measure(DOCUMENTS, ["a b"], replace(TEXT, fields=("contents",)))
    assert flat.tolist() == measure(joined, ["a b"], TEXT).tolist()


def test_a_term_that_the_query_repeats_counts_as_often() -> None:
    scores = measure(DOCUMENTS, ["a", "a a a", "a b a"], TEXT)
    alone_b = measure(DOCUMENTS, ["b"], TEXT)[0]
    assert scores[1, :2] == pytest.approx(3 * scores[0, :2], rel=1e-6)
    assert scores[2, 0] == pytest.approx(2 * scores[0, 0] + alone_b[0], rel=1e-6)


@pytest.mark.parametrize("shards", [(1,), (3,), (1, 2), (2, 2), (1, 2, 3)])
def test_any_split_into_shards_gives_identical_scores(shards: tuple[int, ...]) -> None:
    whole = measure(DOCUMENTS, ["a b", "c", "z a a"], BOTH)
    assert measure(DOCUMENTS, ["a b", "c", "z a a"], BOTH, shards=shards).tolist() == whole.tolist()


def test_any_block_of_queries_gives_identical_scores() -> None:
    whole = measure(DOCUMENTS, ["a b", "c", "z a a"], BOTH)
    terms = query_terms([Query("1", "a b"), Query("2", "c"), Query("3", "z a a")], str.split)
    counts = count_shard(DOCUMENTS, vocabulary=terms.vocabulary, fields=BOTH.fields, analyzer=str.split)
    blocks = [score_block(counts, counts.statistics(), BOTH, terms.queries[row : row + 1]) for row in range(3)]
    assert np.vstack(blocks).tolist() == whole.tolist()


def test_the_document_order_moves_scores_with_the_documents() -> None:
    backwards = measure(DOCUMENTS[::-1], ["a b", "c"], BOTH)
    assert backwards[:, ::-1].tolist() == measure(DOCUMENTS, ["a b", "c"], BOTH).tolist()


def test_only_documents_that_have_the_field_count_for_it() -> None:
    terms = query_terms([Query("1", "a b")], str.split)
    statistics = count_shard(
        DOCUMENTS, vocabulary=terms.vocabulary, fields=("text", "title"), analyzer=str.split
    ).statistics()
    title = statistics.fields["title"]  # d3 has none
    assert (title.documents, title.total_terms, title.document_frequency_V.tolist()) == (3, 4, [2, 1])
    text = statistics.fields["text"]
    assert (text.documents, text.total_terms, text.document_frequency_V.tolist()) == (4, 16, [2, 2])


def test_a_document_with_blank_text_is_not_indexed_even_by_its_title() -> None:
    documents = [*DOCUMENTS, Document("d5", "a a a", " \n")]
    scores = measure(documents, ["a"], BOTH)
    assert np.isneginf(scores[0, 4])
    assert scores[0, :4].tolist() == measure(DOCUMENTS, ["a"], BOTH)[0].tolist()


def test_a_document_with_blank_text_is_indexed_where_title_and_text_are_one_field() -> None:
    scores = measure([*DOCUMENTS, Document("d5", "a a a", " \n")], ["a"], replace(TEXT, fields=("contents",)))
    assert np.isfinite(scores[0, 4])


def test_a_corpus_without_titles_scores_by_its_text() -> None:
    untitled = [document._replace(title="") for document in DOCUMENTS]
    assert measure(untitled, ["a c"], BOTH).tolist() == measure(untitled, ["a c"], TEXT).tolist()


def test_an_empty_shard_scores_nothing() -> None:
    assert measure([], ["a"], BOTH).shape == (1, 0)
    assert measure(DOCUMENTS, ["a"], BOTH, shards=(4,)).shape == (1, 4)


def test_k1_zero_makes_a_match_worth_its_idf() -> None:
    scores = measure(DOCUMENTS, ["a"], replace(TEXT, k1=0.0))[0]
    assert scores[:2].tolist() == [float(np.float32(math.log(2)))] * 2


def test_lengths_below_forty_are_exact() -> None:
    lengths = np.arange(40)
    assert [decode_length(code) for code in encode_length(lengths).tolist()] == lengths.tolist()


@pytest.mark.parametrize(
    ("length", "code", "decoded"),
    # 40 = 24 + 16 = 24 + 1.000b x 2^4, and then steps of 2, 4, 8 … : eight to every doubling above 24
    [(40, 40, 40), (41, 40, 40), (42, 41, 42), (55, 47, 54), (56, 48, 56), (59, 48, 56), (60, 49, 60), (200, 67, 200),
     (215, 67, 200), (216, 68, 216), (1000, 87, 984), (2**31 - 1, 255, 2_013_265_944)],
)  # fmt: skip
def test_longer_lengths_are_rounded_down_as_smallfloat_does(length: int, code: int, decoded: int) -> None:
    assert encode_length(np.array([length])).tolist() == [code]
    assert decode_length(code) == decoded


def test_documents_of_41_and_40_terms_score_alike() -> None:
    fill = "z " * 39
    documents = [Document(extra, "", "a " + extra + fill) for extra in ("", "z ", "z z ")]  # 40, 41 and 42 terms
    scores = measure(documents, ["a"], TEXT)[0]
    assert scores[0] == scores[1] > scores[2]


def test_counts_survive_the_way_to_arrays_and_back() -> None:
    documents = [*DOCUMENTS, Document("d\u00e9-\u6771", "a", "b")]
    terms = query_terms([Query("1", "a b")], str.split)
    counts = count_shard(documents, vocabulary=terms.vocabulary, fields=BOTH.fields, analyzer=str.split)
    arrays = counts.to_arrays()
    assert all(isinstance(values, np.ndarray) and values.dtype != object for values in arrays.values())
    again = ShardCounts.from_arrays(arrays)
    assert again.document_ids == ("d1", "d2", "d3", "d4", "d\u00e9-\u6771")
    score = [score_block(one, one.statistics(), BOTH, terms.queries).tolist() for one in (counts, again)]
    assert score[0] == score[1]


def test_an_empty_shard_survives_the_way_to_arrays_and_back() -> None:
    counts = count_shard([], vocabulary={"a": 0}, fields=("text",), analyzer=str.split)
    assert ShardCounts.from_arrays(counts.to_arrays()).document_ids == ()


def test_terms_outside_the_queries_leave_no_posting() -> None:
    counts = count_shard(DOCUMENTS, vocabulary={"a": 0}, fields=("text",), analyzer=str.split).fields["text"]
    assert counts.document_P.tolist() == [0, 1]
    assert counts.frequency_P.tolist() == [1, 2]
    assert counts.length_N.tolist() == [2, 4, 3, 7]


def test_a_missing_array_is_named() -> None:
    arrays = count_shard(DOCUMENTS, vocabulary={"a": 0}, fields=("text",), analyzer=str.split).to_arrays()
    del arrays["text.length_N"]
    with pytest.raises(StoreError, match=r"lack the array 'text\.length_N'; got .*; count this shard again"):
        ShardCounts.from_arrays(arrays)


def test_statistics_of_other_queries_are_refused() -> None:
    one, two = (
        count_shard(DOCUMENTS, vocabulary=vocabulary, fields=("text",), analyzer=str.split).statistics()
        for vocabulary in ({"a": 0}, {"a": 0, "b": 1})
    )
    with pytest.raises(StoreError, match=r"of 1 and of 2 query terms cannot be added; count every shard"):
        one + two


def test_statistics_of_other_fields_are_refused() -> None:
    text, both = (
        count_shard(DOCUMENTS, vocabulary={"a": 0}, fields=fields, analyzer=str.split).statistics()
        for fields in (TEXT.fields, BOTH.fields)
    )
    with pytest.raises(StoreError, match=r"\['text'\] and \['text', 'title'\] cannot be added; count every shard"):
        text + both


def test_a_field_that_was_not_counted_is_refused() -> None:
    counts = count_shard(DOCUMENTS, vocabulary={"a": 0}, fields=("text",), analyzer=str.split)
    with pytest.raises(StoreError, match=r"bm25 wants title; count the shards again"):
        score_block(counts, counts.statistics(), BOTH, [((0, 1),)])


def test_adding_statistics_is_associative() -> None:
    one, two, three = (
        count_shard([document], vocabulary={"a": 0, "b": 1}, fields=("text",), analyzer=str.split).statistics()
        for document in DOCUMENTS[:3]
    )

    def numbers(statistics: Statistics) -> tuple[int, int, list[int]]:
        text = statistics.fields["text"]
        return text.documents, text.total_terms, text.document_frequency_V.tolist()

    assert numbers((one + two) + three) == numbers(one + (two + three)) == (3, 9, [2, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(TEXT, k1=-0.1), r"k1 -0\.1 of bm25: wanted a finite number of 0 or more; Anserini uses 0\.9"),
        (replace(TEXT, k1=math.inf), r"k1 inf of bm25: wanted a finite number"),
        (replace(TEXT, b=1.5), r"b 1\.5 of bm25: wanted a number from 0 to 1; Anserini uses 0\.4"),
        (replace(TEXT, b=math.nan), r"b nan of bm25: wanted a number from 0 to 1"),
        (
            replace(TEXT, analyzer="englsh"),
            r"analyzer 'englsh' unknown; did you mean english\?",
        ),
        (
            replace(TEXT, fields=("titel",)),
            r"BM25 field 'titel' unknown; did you mean title\?",
        ),
        (replace(TEXT, fields=()), r"no BM25 field given; wanted one or more of contents, text, title"),
        (replace(TEXT, fields=("text", "text")), r"BM25 fields text, text: wanted each once"),
    ],
)
def test_a_setting_that_lucene_would_refuse_is_refused(settings: Bm25Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(settings)


def test_an_unknown_field_is_refused_before_counting() -> None:
    with pytest.raises(ConfigError, match=r"BM25 field 'body' unknown; valid: contents, text, title"):
        count_shard(DOCUMENTS, vocabulary={}, fields=("body",), analyzer=str.split)


def test_documents_without_a_term_of_the_query_are_left_out_or_fill_the_ranking_with_score_0():
    left_out = measure(DOCUMENTS, ["c"], TEXT)[0]
    filled = measure(DOCUMENTS, ["c"], replace(TEXT, unmatched="fill"))[0]
    assert np.isneginf(left_out).tolist() == [True, False, False, True]
    assert filled.tolist() == [0.0, left_out[1], left_out[2], 0.0]
