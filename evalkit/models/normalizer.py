"""The normaliser that transformers gives a tokenizer, against the one in tokenizer.json.

Some of transformers' classes build their normaliser from tokenizer_config.json (do_lower_case and others, each with a
default) and ignore the one in tokenizer.json; 4 overrides its switches, 5 replaces it. evalkit uses tokenizer.json. If
the two differ, the model was trained and is used elsewhere with other token ids, so the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, normalizers

from evalkit.errors import ModelError
from evalkit.models.checkpoint import CONFIG, TOKENIZER, TOKENIZER_CONFIG, read_json, tokenizer_config

BERT_CLASSES: Final = (
    "BertTokenizer",
    "ConvBertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MPNetTokenizer",
    "MobileBertTokenizer",
    "SqueezeBertTokenizer",
)
"""Classes of transformers that build BERT's normaliser, without the ending Fast."""
ALBERT_CLASS: Final = "AlbertTokenizer"
CLASSES: Final = {
    "albert": ALBERT_CLASS,
    "bert": "BertTokenizer",
    "convbert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "ernie": "BertTokenizer",
    "layoutlm": "BertTokenizer",
    "lxmert": "LxmertTokenizer",
    "megatron-bert": "BertTokenizer",
    "mobilebert": "MobileBertTokenizer",
    "mpnet": "MPNetTokenizer",
    "nomic_bert": "BertTokenizer",
    "squeezebert": "BertTokenizer",
}
"""The class by config.json's model_type, if tokenizer_config.json names none."""
TAKEN_AS_IS: Final = ("modernbert", "modernbert-decoder")
"""Model types for which transformers uses tokenizer.json whatever class the files name."""
PROBES: Final = (
    ("do_lower_case", "ABC"),
    ("strip_accents", "e\u0301 \u00e9"),
    ("keep_accents", "\u00e9"),
    ("tokenize_chinese_chars", "a\u6587b"),
)
"""A text that each setting changes."""


def refuse_contradiction(tokenizer: Tokenizer, folder: Path) -> None:
    """Raise ModelError if tokenizer_config.json asks for another normaliser than tokenizer.json has."""
    if not (folder / TOKENIZER_CONFIG).is_file():
        return
    settings = tokenizer_config(folder)
    theirs = _normalizer(settings, read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {})
    if theirs is None:
        return
    ours, defaults = tokenizer.normalizer, theirs[1]
    for key, text in PROBES:
        if key not in defaults:
            continue
        got = text if ours is None else ours.normalize_str(text)
        wanted = theirs[0].normalize_str(text)
        if got != wanted:
            value = settings.get(key, f"{defaults[key]} (its default)")
            msg = f"{folder / TOKENIZER}: its normaliser makes {got!a} of {text!a}, wanted {wanted!a}, as {key} {value}"
            remedy = "save the tokenizer again with transformers, or correct the file that is wrong"
            raise ModelError(f"{msg} in {TOKENIZER_CONFIG} says; {remedy}")


def _normalizer(
    settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[normalizers.Normalizer, Mapping[str, Any]] | None:
    """Return the normaliser that transformers builds, and its settings' defaults; None if it takes tokenizer.json's."""
    kind = config.get("model_type")
    if settings.get("auto_map") or kind in TAKEN_AS_IS:
        return None
    named = settings.get("tokenizer_class") or config.get("tokenizer_class") or CLASSES.get(str(kind))
    name = str(named).removesuffix("Fast")
    if name in BERT_CLASSES:
        defaults: dict[str, Any] = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
        given = {key: settings.get(key, default) for key, default in defaults.items()}
        accents = given["strip_accents"]
        return normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=bool(given["tokenize_chinese_chars"]),
            strip_accents=None if accents is None else bool(accents),
            lowercase=bool(given["do_lower_case"]),
        ), defaults
    if name != ALBERT_CLASS:
        return None
    steps: list[normalizers.Normalizer] = []
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    return normalizers.Sequence(steps), {"do_lower_case": True, "keep_accents": False}
