"""What counts as a term: Lucene's tokens, possessives, lower case, stop words and stems."""

from __future__ import annotations

import sys

import pytest
import Stemmer

from evalkit.bm25 import analyzers
from evalkit.bm25.analyzers import (
    ANALYZERS,
    MAX_TOKEN_LENGTH,
    STOP_WORDS,
    english,
    lowercase,
    porter_stem,
    strip_possessive,
    tokenize,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("can't", ["can't"]),  # WB6, WB7
        ("rock\u2019n\u2019roll", ["rock\u2019n\u2019roll"]),
        ("U.S.A.", ["U.S.A"]),
        ("foo:bar a\u00b7b", ["foo:bar", "a\u00b7b"]),
        ("e-mail and/or", ["e", "mail", "and", "or"]),
        ("3.14 1,000.5 1;2", ["3.14", "1,000.5", "1;2"]),  # WB11, WB12
        ("a.5 1.a 5. .5", ["a", "5", "1", "a", "5", "5"]),  # a mid character needs a letter, or a digit, on both sides
        ("B12 2nd", ["B12", "2nd"]),  # WB9, WB10
        ("snake_case _x_ __ a__1", ["snake_case", "_x_", "a__1"]),  # WB13a, WB13b; no token of connectors alone
        ("1\u202f000", ["1\u202f000"]),  # the one space that is ExtendNumLet
        ("na\u0308ive soft\u00adhyphen", ["na\u0308ive", "soft\u00adhyphen"]),  # WB4
        ("95% (p<0.05) \u00b1 \u2264 \u2013", ["95", "p", "0.05"]),
        ("\u2082 \u00b2 \u00bd", []),
        ("", []),
    ],
)
def test_words_break_as_unicode_annex_29_says(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("\u6771\u4eac\u90fd", ["\u6771", "\u4eac", "\u90fd"]),  # Han: one token a character
        ("\u3072\u3089", ["\u3072", "\u3089"]),  # Hiragana: one token a character
        ("\u30ab\u30bf\u30ab\u30ca\u30fc", ["\u30ab\u30bf\u30ab\u30ca\u30fc"]),  # Katakana: a run
        ("\ud55c\uad6d\uc5b4 \ub9d0", ["\ud55c\uad6d\uc5b4", "\ub9d0"]),  # Hangul: a run
        ("\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", ["\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22"]),  # Thai: a run
        ("\u05e6\u05d4\"\u05dc \u05d0'", ['\u05e6\u05d4"\u05dc', "\u05d0'"]),  # Hebrew: WB7a, WB7b, WB7c
        ("\uff11\uff12\uff13", ["\uff11\uff12\uff13"]),  # full-width digits
    ],
)
def test_every_script_breaks_as_lucenes_standard_tokenizer_does(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("\u00a92011 Wiley\u00ae", ["\u00a9", "2011", "Wiley", "\u00ae"]),
        ("a\U0001f44d\U0001f3fdb", ["a", "\U0001f44d\U0001f3fd", "b"]),  # a base and its skin tone
        ("a\U0001f3fd", ["a", "\U0001f3fd"]),  # a skin tone does not extend a letter
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", ["\U0001f468\u200d\U0001f469\u200d\U0001f467"]),
        ("\u2764\ufe0f\u200d\U0001f525", ["\u2764\ufe0f\u200d\U0001f525"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"]),  # two flags
        ("#\ufe0f\u20e3 1\ufe0f\u20e3 # *", ["#\ufe0f\u20e3", "1\ufe0f\u20e3"]),  # keycaps
    ],
)
def test_emoji_and_copyright_signs_are_tokens(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_a_token_longer_than_255_is_split_there() -> None:
    assert MAX_TOKEN_LENGTH == 255
    assert tokenize("x" * 600) == ["x" * 255, "x" * 255, "x" * 90]
    assert tokenize("x" * 255) == ["x" * 255]


def test_a_split_never_leaves_a_mid_character_at_a_tokens_end() -> None:
    assert tokenize("a" * 254 + ".b") == ["a" * 254, "b"]


def test_a_long_line_of_connectors_yields_only_what_fits_into_255() -> None:
    assert tokenize("_" * 5000) == []
    assert tokenize("_" * 300 + "ab") == ["_" * 254 + "a", "b"]


def test_no_token_crosses_the_whitespace_that_the_analyzer_cuts_at() -> None:
    spaces = [chr(point) for point in range(sys.maxunicode + 1) if chr(point).isspace() and point != 0x202F]
    assert len(spaces) > 20
    for space in spaces:
        assert tokenize(f"a{space}b") == ["a", "b"]
        assert tokenize(f"a{space}\u0301b") == ["a", "b"]
        assert tokenize(f"1{space}_") == ["1"]


@pytest.mark.parametrize("quote", ["'", "\u2019", "\uff07"])
def test_a_final_possessive_is_dropped_in_either_case(quote: str) -> None:
    assert strip_possessive(f"Crohn{quote}s") == "Crohn"
    assert strip_possessive(f"WHO{quote}S") == "WHO"


def test_a_plural_possessive_keeps_its_s() -> None:
    assert strip_possessive("dogs") == "dogs"
    assert strip_possessive("s") == "s"


def test_lower_case_is_taken_character_by_character_as_java_does() -> None:
    assert lowercase("DNA") == "dna"
    assert lowercase("\u039f\u0394\u039f\u03a3") == "\u03bf\u03b4\u03bf\u03c3"  # no final sigma
    assert lowercase("\u0130") == "i"
    assert lowercase("Stra\u00dfe") == "stra\u00dfe"


def test_there_are_33_stop_words_and_they_are_dropped_in_any_case() -> None:
    assert len(STOP_WORDS) == 33
    assert english()("The IT of A") == []
    assert english()("from he we") == ["from", "he", "we"]  # not among the 33


@pytest.mark.parametrize(
    ("word", "stem"),
    [  # the examples of Porter's paper, step by step
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("ties", "ti"),
        ("cats", "cat"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("bled", "bled"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("troubled", "troubl"),
        ("sized", "size"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("hissing", "hiss"),
        ("failing", "fail"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("conditional", "condit"),
        ("rational", "ration"),
        ("vietnamization", "vietnam"),
        ("callousness", "callous"),
        ("sensibiliti", "sensibl"),
        ("triplicate", "triplic"),
        ("formative", "form"),
        ("goodness", "good"),
        ("replacement", "replac"),
        ("adoption", "adopt"),
        ("adjustment", "adjust"),
        ("element", "element"),
        ("effective", "effect"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("cease", "ceas"),
        ("controll", "control"),
        ("roll", "roll"),
        ("syzygy", "syzygi"),
        ("ion", "ion"),
        ("aed", "a"),
    ],
)
def test_porters_own_examples_stem_as_he_says(word: str, stem: str) -> None:
    assert porter_stem(word) == stem


@pytest.mark.parametrize(
    ("word", "stem", "in_the_paper"),
    [
        ("possibly", "possibl", "possibli"),
        ("pathology", "patholog", "pathologi"),
        ("as", "as", "a"),
        ("6s", "6s", "6"),
    ],
)
def test_porters_published_departures_are_followed(word: str, stem: str, in_the_paper: str) -> None:
    assert porter_stem(word) == stem
    assert Stemmer.Stemmer("porter").stemWord(word) == in_the_paper


def test_stems_are_snowballs_where_no_departure_applies() -> None:
    snowball = Stemmer.Stemmer("porter")
    roots = ["cat", "oper", "relat", "hop", "tann", "sky", "yey", "x1", "cry", "\u03b1bc", "fizz", "snow", "tr"]
    middles = ["", "ation", "iv", "al", "iz", "ful", "ous", "ent", "abl", "at", "ic", "e", "ll", "y"]
    ends = ["", "s", "es", "ed", "ing", "ly", "ness", "ment", "er", "ism", "iti", "ize", "ion", "ies", "eed", "able"]
    words = {root + middle + end for root in roots for middle in middles for end in ends}
    # Snowball tells a consonant y from a vowel y, so its "skyy" ends in no double letter.
    compared = [word for word in words if len(word) > 2 and "yy" not in word and not word.endswith("bly")]
    assert len(compared) > 2000
    assert [word for word in compared if porter_stem(word) != snowball.stemWord(word)] == []


def test_the_chain_runs_in_lucenes_order() -> None:
    text = "Crohn's-disease PATIENTS\u2019 statins, it's The U.S."
    assert english()(text) == ["crohn", "diseas", "patient", "statin", "u."]


def test_repeated_words_are_repeated_terms() -> None:
    assert english()("Cats cat CAT's") == ["cat", "cat", "cat"]


@pytest.mark.parametrize(
    ("analyzer", "text", "terms"),
    [
        ("whitespace", "Je, Nairobi?", ["Je,", "Nairobi?"]),
        ("standard", "Thủ đô, HÀ NỘI", ["thủ", "đô", "hà", "nội"]),
        ("cjk", "日本語 2024年 の", ["日本", "本語", "2024", "年", "の"]),
        ("cjk", "대한민국 서울", ["대한", "한민", "민국", "서울"]),
        ("cjk", "ﾊﾟﾘ ＡＢＣ the www", ["パリ", "abc"]),
        ("thai", "ภาษา Thai", ["ภา", "าษ", "ษา", "thai"]),
        ("german", "Die Häuser", ["die", "haus"]),
        ("dutch", "lichamelijke Lichamelijkheid", ["licham", "licham"]),
        ("russian", "Столицы столице", ["столиц", "столиц"]),
        ("finnish", "talossa taloissa", ["talo", "talo"]),
        ("bm25s", "Statins: a 1 of THE runs", ["statin", "run"]),
    ],
)
def test_every_language_is_analysed_by_its_own_rules(analyzer: str, text: str, terms: list[str]) -> None:
    assert ANALYZERS[analyzer]()(text) == terms


def test_bm25s_own_tokenizer_gives_the_same_terms() -> None:
    bm25s = pytest.importorskip("bm25s", reason="install the dev extra")
    texts = ["Crohn's disease, naïve T-cells & the 3rd of 12 x", "Ёлка в Москве 2024", "ما هي العاصمة؟", "日本語 a"]
    theirs = bm25s.tokenize(texts, stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
    assert [ANALYZERS["bm25s"]()(text) for text in texts] == theirs


def test_english_is_found_by_its_name() -> None:
    assert ANALYZERS["english"]()("running") == ["run"]


def test_a_word_of_a_million_letters_is_cut_every_255_letters_in_bounded_memory():
    text = f"before {'x' * 1_000_000} after"
    tokens = analyzers.tokenize(text)
    assert tokens[0] == "before"
    assert tokens[-1] == "after"
    assert [len(token) for token in tokens[1:-1]] == [255] * 3921 + [145]  # 3921 * 255 + 145 = 1,000,000


def test_windows_do_not_change_the_tokens_of_a_long_text(monkeypatch):
    parts = [
        "word",
        "U.S.A",
        "can't",
        "3.14",
        "_" * 300,
        "東京タワー",
        "x" * 700,
        "ภาษาไทย" * 60,
        "©",
        "e-mail",
        "12" * 200,
    ]
    text = " ".join(parts[(place * 7 + place // 5) % len(parts)] for place in range(900))
    whole = analyzers.tokenize(text)
    assert len(text) > 90_000
    monkeypatch.setattr(analyzers, "_WINDOW", 1 << 30)
    assert analyzers.tokenize(text) == whole
    monkeypatch.setattr(analyzers, "_WINDOW", 5000)
    assert analyzers.tokenize(text) == whole
