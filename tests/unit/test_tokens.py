"""Token rules on a small XLM-R-like tokenizer: markers, cuts, expansion, skiplists."""

import pytest
from checkpoints import PIECES, write_xlmr_tokenizer

from evalkit.config.settings import TextRules
from evalkit.errors import ModelError
from evalkit.models import tokens as tokens_module
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.tokens import Tokens, TokenTable, load_vocabulary, skipped_ids, tokenize

QUERY = TextRules(max_tokens=8, marker="[QueryMarker]", expansion=True, attend_to_expansion=True)
HELLO, WORLD = 4 + PIECES.index("▁hello"), 4 + PIECES.index("▁world")
MASK = 4 + len(PIECES)


@pytest.fixture
def vocabulary(tmp_path):
    write_xlmr_tokenizer(tmp_path / "tokenizer.json")
    return load_vocabulary(Checkpoint(folder=tmp_path, origin="fixture", revision=None, checksums={}))


def test_a_query_is_filled_up_with_masks_that_are_attended_to(vocabulary):
    (tokens,) = tokenize(["hello world"], QUERY, vocabulary)
    assert tokens.ids == [0, MASK + 1, HELLO, WORLD, 2, MASK, MASK, MASK]
    assert tokens.attended == 8


def test_masks_that_are_not_attended_to_still_give_vectors(vocabulary):
    rules = TextRules(max_tokens=8, marker="[QueryMarker]", expansion=True, attend_to_expansion=False)
    (tokens,) = tokenize(["hello world"], rules, vocabulary)
    assert (len(tokens.ids), tokens.attended) == (8, 5)


def test_a_long_text_is_cut_so_that_it_still_ends_in_the_last_token(vocabulary):
    (tokens,) = tokenize(["hello " * 50], QUERY, vocabulary)
    assert tokens.ids == [0, MASK + 1, HELLO, HELLO, HELLO, HELLO, HELLO, 2]


def test_a_document_has_its_own_marker_and_no_masks(vocabulary):
    rules = TextRules(max_tokens=300, marker="[DocumentMarker]")
    assert list(tokenize(["hello"], rules, vocabulary)) == [([0, MASK + 2, HELLO, 2], 4)]


def test_without_a_marker_there_are_only_the_special_tokens(vocabulary):
    assert list(tokenize(["hello"], TextRules(max_tokens=9), vocabulary)) == [([0, HELLO, 2], 3)]


def test_an_empty_text_still_has_its_special_tokens(vocabulary):
    assert list(tokenize([""], TextRules(max_tokens=9), vocabulary)) == [([0, 2], 2)]


def test_the_two_skiplists_differ_on_the_plain_full_stop(vocabulary):
    dot, space = 4 + PIECES.index("."), 4 + PIECES.index("▁")
    assert dot in skipped_ids("pylate", vocabulary)
    assert dot not in skipped_ids("stanford", vocabulary)
    assert space in skipped_ids("stanford", vocabulary)
    assert skipped_ids("none", vocabulary) == frozenset()


def test_a_tokenizer_without_the_marker_is_refused_by_name(tmp_path):
    write_xlmr_tokenizer(tmp_path / "tokenizer.json", markers=False)
    vocabulary = load_vocabulary(Checkpoint(folder=tmp_path, origin="fixture", revision=None, checksums={}))
    with pytest.raises(
        ModelError, match=r"no token '\[QueryMarker\]'; wanted the marker that the model's config names"
    ):
        tokenize(["hello"], QUERY, vocabulary)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not a tokenizer file"):
        load_vocabulary(Checkpoint(folder=tmp_path, origin="fixture", revision=None, checksums={}))


def test_a_table_of_tokens_reads_like_a_list_of_them():
    texts = [Tokens([1, 2, 3], 2), Tokens([], 0), Tokens([4], 1)]
    table = TokenTable.of(texts)
    assert list(table) == texts
    assert (len(table), table[-1], list(table[1:])) == (3, texts[2], texts[1:])
    assert table.lengths_N.tolist() == [3, 0, 1]
    assert list(table.take([2, 0, 2])) == [texts[2], texts[0], texts[2]]
    assert TokenTable.of(table) is table
    assert list(TokenTable.of([])) == []
    with pytest.raises(IndexError):
        table[3]


def test_texts_that_go_to_the_tokenizer_apart_stay_in_order(vocabulary, monkeypatch):
    texts = ["hello"] * 3 + ["world", "hello world", ""]
    wanted = list(tokenize(texts, QUERY, vocabulary))
    monkeypatch.setattr(tokens_module, "TEXTS_PER_CALL", 2)
    assert list(tokenize(texts, QUERY, vocabulary)) == wanted
    assert list(tokenize([], QUERY, vocabulary)) == []
