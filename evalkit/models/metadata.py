"""Compare the settings saved with a late-interaction checkpoint with those of the config.

Stanford ColBERT saves settings in `artifact.metadata`, PyLate in `config_sentence_transformers.json`.

Weights do not show how texts were prepared in training. With other markers, masks or punctuation, a model still gives
vectors of length 1, but scores drop. A contradiction between file and config is therefore an error, unless the config
accepts it. Lengths are exempt, because evaluations often change them (ColBERTv2 on ArguAna: 300, not 32).
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.config.settings import EncoderConfig, TextRules
from evalkit.errors import ModelError
from evalkit.models.checkpoint import METADATA, ST_CONFIG, Checkpoint, read_json
from evalkit.models.tokens import UNKNOWN_TOKENS, Vocabulary, vocabulary_of


class Differences(NamedTuple):
    """The differences between file and config; each line gives both values and the setting."""

    contradictions: tuple[str, ...]
    """Differences that change vectors without any visible sign."""
    lengths: tuple[str, ...]
    """Differences in maximum lengths, which are allowed."""


class Variant(NamedTuple):
    """Another value that a setting had at some time in the files of a model's repository."""

    setting: str
    """Its dotted name below `model`."""
    value: bool | int | str
    """The other value."""
    because: str

    @property
    def words(self) -> str:
        """The variant as a command-line setting."""
        return _setting(self.setting, self.value)[0]


def variants(model: str) -> tuple[Variant, ...]:
    """Return the known variants of a model.

    >>> [variant.words for variant in variants("jina-colbert-v2")]
    ['model.query.attend_to_expansion=false']
    """
    known: Mapping[str, Any] = json.loads(Path(__file__).with_name("variants.json").read_text(encoding="utf-8"))
    return tuple(Variant(**values) for values in known.get(model, ()))


def differences(config: EncoderConfig, checkpoint: Checkpoint, dim: int) -> Differences:
    """Compare a checkpoint's own file with a config; a setting missing from the file is not a difference.

    Raises ModelError for a file that is not a JSON object, or a tokenizer file that cannot be used.
    """
    if settings_file(checkpoint) == ST_CONFIG:
        return _from_pylate(config, checkpoint)
    theirs = _artifact_metadata(checkpoint) if config.kind == "late_interaction" else {}
    compared = {
        "dim": (f"dim={dim}", dim),
        "attend_to_mask_tokens": _setting("query.attend_to_expansion", config.query.attend_to_expansion),
        "mask_punctuation": (f"model.skiplist={config.skiplist}", config.skiplist != "none"),
    }
    wrong = _unequal(theirs, compared)
    # Stanford ColBERT normalises vectors for both similarities, so both give the same ranking.
    if "similarity" in theirs and not (theirs["similarity"] in ("cosine", "l2") and config.normalize):
        wrong.append(f"similarity {_json(theirs['similarity'])}, {_setting('normalize', config.normalize)[0]}")
    return Differences((*wrong, *_markers(theirs, config, checkpoint)), tuple(_lengths(theirs, config)))


def refuse_contradictions(config: EncoderConfig, checkpoint: Checkpoint, dim: int) -> None:
    """Raise ModelError with every contradiction, unless model.verify is false."""
    if config.verify and (found := differences(config, checkpoint, dim).contradictions):
        msg = (
            f"{checkpoint.origin}: {settings_file(checkpoint)} and the config contradict each other: "
            f"{'; '.join(found)}; set what the checkpoint was trained with, or model.verify=false if the difference "
            "is intended"
        )
        raise ModelError(msg)


def notes(config: EncoderConfig, found: Mapping[int, Checkpoint]) -> list[str]:
    """Return a line for every accepted difference; one that several dims share is listed once."""
    lines = (
        f"{settings_file(checkpoint)} has {clause}"
        for dim, checkpoint in found.items()
        for clauses in differences(config, checkpoint, dim)
        for clause in clauses
    )
    return list(dict.fromkeys(lines))


def settings_file(checkpoint: Checkpoint) -> str | None:
    """Return the name of the file with a checkpoint's settings for texts, or None if there is none."""
    if (checkpoint.folder / METADATA).is_file():
        return METADATA
    path = checkpoint.folder / ST_CONFIG
    return ST_CONFIG if path.is_file() and "query_prefix" in read_json(path) else None


def _from_pylate(config: EncoderConfig, checkpoint: Checkpoint) -> Differences:
    """Compare the settings that PyLate saved. Prompts are not compared: PyLate uses one only on request."""
    if config.kind != "late_interaction":
        return Differences((), ())
    theirs = _without_nulls(checkpoint.folder / ST_CONFIG)
    compared = {
        "query_prefix": _setting("query.marker", config.query.marker or ""),
        "document_prefix": _setting("document.marker", config.document.marker or ""),
        "do_query_expansion": _setting("query.expansion", config.query.expansion),
        "skiplist_words": (f"model.skiplist={config.skiplist}", _skiplist(config)),
    }
    if theirs.get("do_query_expansion", True):
        attends = _setting("query.attend_to_expansion", config.query.attend_to_expansion)
        compared["attend_to_expansion_tokens"] = attends
    wrong = _unequal(theirs, compared)
    lengths = {side: _setting(f"{side}.max_tokens", getattr(config, side).max_tokens) for side in ("query", "document")}
    different_lengths = [
        f"{side}_length {theirs[f'{side}_length']}, {words}"
        for side, (words, ours) in lengths.items()
        if theirs.get(f"{side}_length", ours) != ours
    ]
    return Differences(tuple(wrong), tuple(different_lengths))


def _unequal(theirs: Mapping[str, Any], compared: Mapping[str, tuple[str, object]]) -> list[str]:
    """Describe the values in a file that differ from ours, given by key as command-line setting and value."""
    return [
        f"{key} {_json(theirs[key])}, {words}"
        for key, (words, ours) in compared.items()
        if theirs.get(key, ours) != ours
    ]


def _skiplist(config: EncoderConfig) -> list[str]:
    """Return the words whose vectors a config drops from documents."""
    if config.skiplist == "none":
        return []
    return list(string.punctuation) if config.skiplist_words is None else list(config.skiplist_words)


def _artifact_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the values of `artifact.metadata` without nulls; empty if the checkpoint has no such file."""
    path = checkpoint.folder / METADATA
    return _without_nulls(path) if path.is_file() else {}


def _without_nulls(path: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(path).items() if value is not None}


def _markers(theirs: Mapping[str, Any], config: EncoderConfig, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the markers in `artifact.metadata` whose token ids differ from those of the config's markers."""
    vocabulary: Vocabulary | None = None
    for side, key in (("query", "query_token_id"), ("document", "doc_token_id")):
        rules: TextRules = getattr(config, side)
        ours = (rules.marker or "").partition(" ")[0]  # artifact.metadata names one token, without what follows it
        if key not in theirs or theirs[key] == ours:
            continue
        vocabulary = vocabulary or vocabulary_of(config, checkpoint)
        if not ours or _id_of(str(theirs[key]), vocabulary) != vocabulary.tokenizer.token_to_id(ours):
            yield f"{key} {_json(theirs[key])}, {_setting(f'{side}.marker', rules.marker)[0]}"


def _id_of(token: str, vocabulary: Vocabulary) -> int | None:
    """Return the token id that Stanford ColBERT uses for a marker: the unknown token's if the marker does not exist."""
    ids = (vocabulary.tokenizer.token_to_id(name) for name in (token, *UNKNOWN_TOKENS))
    return next((found for found in ids if found is not None), None)


def _lengths(theirs: Mapping[str, Any], config: EncoderConfig) -> Iterator[str]:
    """Yield the maximum lengths in `artifact.metadata` that differ from the config's."""
    for side, key in (("query", "query_maxlen"), ("document", "doc_maxlen")):
        words, ours = _setting(f"{side}.max_tokens", getattr(config, side).max_tokens)
        if theirs.get(key, ours) != ours:
            yield f"{key} {_json(theirs[key])}, {words}"


def _setting(name: str, value: object) -> tuple[str, object]:
    """Return a setting as written on the command line, and its value."""
    return f"model.{name}={value if isinstance(value, str) else _json(value)}", value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
