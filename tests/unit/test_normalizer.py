"""tokenizer_config.json, which transformers prefers to tokenizer.json's normaliser, must not contradict it."""

import json
from pathlib import Path

import pytest
from checkpoints import write_bert_tokenizer

from evalkit.errors import ModelError
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.tokens import load_vocabulary

DEMO = Path(__file__).parents[2] / "evalkit" / "models" / "demo"
LAYOUTS = Path(__file__).parents[1] / "fixtures" / "parity" / "pylate_layouts"


def write(folder, *, settings, normalizer=(), kind="bert"):
    """Write a tokenizer whose normaliser lowercases unless `normalizer` changes it; return its checkpoint."""
    write_bert_tokenizer(folder / "tokenizer.json")
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    values["normalizer"] = None if normalizer is None else {**values["normalizer"], **dict(normalizer)}
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Checkpoint(folder=folder, origin="fixture", revision=None, checksums={})


@pytest.mark.parametrize(
    ("settings", "normalizer", "message"),
    [
        ({"do_lower_case": False}, {}, "makes 'abc' of 'ABC', wanted 'ABC', as do_lower_case False in tokenizer_conf"),
        ({"do_lower_case": True}, {"lowercase": False}, "makes 'ABC' of 'ABC', wanted 'abc', as do_lower_case True"),
        ({}, {"lowercase": False}, r"wanted 'abc', as do_lower_case True \(its default\) in tokenizer_config\.json"),
        ({}, None, r"wanted 'abc', as do_lower_case True \(its default\)"),
        ({"strip_accents": False}, {}, "as strip_accents False in tokenizer_config"),
        ({"tokenize_chinese_chars": False}, {}, r"makes 'a \\u6587 b' of .* as tokenize_chinese_chars False"),
        ({"do_lower_case": False, "tokenizer_class": "DistilBertTokenizerFast"}, {}, "as do_lower_case False"),
    ],
)
def test_settings_that_contradict_the_normaliser_are_refused_in_one_line(tmp_path, settings, normalizer, message):
    checkpoint = write(tmp_path, settings=settings, normalizer=normalizer)
    with pytest.raises(ModelError, match=message) as error:
        load_vocabulary(checkpoint)
    assert "\n" not in str(error.value)
    assert "save the tokenizer again with transformers" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "normalizer", "kind"),
    [
        (None, {"lowercase": False}, "bert"),
        ({}, {}, "bert"),
        ({"do_lower_case": False}, {"lowercase": False}, "bert"),
        ({"strip_accents": True}, {}, "bert"),  # as lowercase implies
        ({"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, {}, "bert"),
        ({"do_lower_case": False, "tokenizer_class": "TokenizersBackend"}, None, "bert"),
        ({"do_lower_case": False}, {}, "xlm-roberta"),
        ({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, {}, "modernbert"),
    ],
)
def test_settings_that_agree_or_that_transformers_does_not_use_are_accepted(tmp_path, settings, normalizer, kind):
    assert load_vocabulary(write(tmp_path, settings=settings, normalizer=normalizer, kind=kind)).size


def test_albert_has_defaults_of_its_own(tmp_path):
    settings = {"do_lower_case": True, "keep_accents": True}
    with pytest.raises(ModelError, match=r"makes 'e' of '\\xe9', wanted '\\xe9', as keep_accents True"):
        load_vocabulary(write(tmp_path, settings=settings, kind="albert"))
    settings["keep_accents"] = False
    assert load_vocabulary(write(tmp_path, settings=settings, kind="albert")).size


def test_settings_that_agree_change_no_checksum(tmp_path):
    """Ids of runs and keys of stores hold the checksums, so they stay what they were."""
    from evalkit.models.checkpoint import FILES

    assert FILES == ("config.json", "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize("folder", [*sorted(DEMO.glob("demo-*")), *sorted(LAYOUTS.glob("*/"))], ids=lambda p: p.name)
def test_the_committed_checkpoints_do_not_contradict_themselves(folder):
    if (folder / "tokenizer.json").is_file():
        checkpoint = Checkpoint(folder=folder, origin=folder.name, revision=None, checksums={})
        assert load_vocabulary(checkpoint, own_template=True).size


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}])
@pytest.mark.parametrize("tokenizer_class", [None, "DistilBertTokenizerFast", "MPNetTokenizer", "TokenizersBackend"])
@pytest.mark.parametrize("normalizer", [{}, {"lowercase": False}])
def test_a_tokenizer_is_refused_exactly_if_transformers_normalises_otherwise(
    tmp_path, settings, tokenizer_class, normalizer
):
    """Against the installed transformers."""
    from transformers import AutoTokenizer

    named = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    checkpoint = write(tmp_path, settings={**settings, **named, "cls_token": "[CLS]"}, normalizer=normalizer)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path)).backend_tokenizer.normalizer.normalize_str("AÉ文")
    try:
        ours = load_vocabulary(checkpoint).tokenizer.normalizer.normalize_str("AÉ文")
    except ModelError:
        ours = None
    lowercase = normalizer.get("lowercase", True)
    written = ("ae" if lowercase else "AÉ") + " 文 "
    assert ours == (theirs if theirs == written else None)
