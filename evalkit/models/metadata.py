"""What a late-interaction checkpoint says of itself in Stanford ColBERT's `artifact.metadata`, held against the config.

Weights carry no trace of how texts were laid out in training: with other markers, masks or punctuation a model still
gives vectors of length 1, and lower scores. So what the file says and a config denies is an error, unless it is meant.
Lengths are not: those of an evaluation are often other than those of training (ColBERTv2's on ArguAna: 300, not 32).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.config.settings import EncoderConfig, TextRules
from evalkit.errors import ModelError
from evalkit.models.checkpoint import METADATA, Checkpoint, read_json
from evalkit.models.tokens import UNKNOWN_TOKENS, Vocabulary, load_vocabulary


class Differences(NamedTuple):
    """Where the file and the config differ, each as a clause that names both sides and the setting."""

    contradictions: tuple[str, ...]
    """What changes vectors and nothing would show."""
    lengths: tuple[str, ...]


class Variant(NamedTuple):
    """A setting that a model's repository had another value of for a while."""

    setting: str
    """Its dotted name below `model`."""
    value: bool | int | str
    """The other value."""
    because: str

    @property
    def words(self) -> str:
        """The variant as one gives it on the command line."""
        return _setting(self.setting, self.value)[0]


def variants(model: str) -> tuple[Variant, ...]:
    """Return the variants that are known of a model, by its name.

    >>> [variant.words for variant in variants("jina-colbert-v2")]
    ['model.query.attend_to_expansion=false']
    """
    known: Mapping[str, Any] = json.loads(Path(__file__).with_name("variants.json").read_text(encoding="utf-8"))
    return tuple(Variant(**values) for values in known.get(model, ()))


def differences(config: EncoderConfig, checkpoint: Checkpoint, dim: int) -> Differences:
    """Compare what `artifact.metadata` says with a config; what it does not say differs in nothing.

    Raises ModelError for a file that is no JSON object.
    """
    said = said_by(checkpoint) if config.kind == "late_interaction" else {}
    ours = {
        "dim": (f"dim={dim}", dim),
        "attend_to_mask_tokens": _setting("query.attend_to_expansion", config.query.attend_to_expansion),
        "mask_punctuation": (f"model.skiplist={config.skiplist}", config.skiplist != "none"),
    }
    wrong = [f"{key} {_json(said[key])}, {words}" for key, (words, ours) in ours.items() if said.get(key, ours) != ours]
    # Stanford ColBERT's vectors have length 1 under either similarity, so that both rank alike.
    if "similarity" in said and not (said["similarity"] in ("cosine", "l2") and config.normalize):
        wrong.append(f"similarity {_json(said['similarity'])}, {_setting('normalize', config.normalize)[0]}")
    return Differences((*wrong, *_markers(said, config, checkpoint)), tuple(_lengths(said, config)))


def refuse_contradictions(config: EncoderConfig, checkpoint: Checkpoint, dim: int) -> None:
    """Raise ModelError that names every contradiction, unless the config says that they are meant."""
    if config.verify and (found := differences(config, checkpoint, dim).contradictions):
        msg = (
            f"{checkpoint.origin}: {METADATA} and the config contradict each other: {'; '.join(found)}; "
            "set what the checkpoint was trained with, or model.verify=false where the difference is meant"
        )
        raise ModelError(msg)


def notes(config: EncoderConfig, found: Mapping[int, Checkpoint]) -> list[str]:
    """Return a line for every difference that was accepted, the same of several dims once."""
    lines = (
        f"{METADATA} has {clause}"
        for dim, checkpoint in found.items()
        for clauses in differences(config, checkpoint, dim)
        for clause in clauses
    )
    return list(dict.fromkeys(lines))


def said_by(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `artifact.metadata` says, less what it leaves open (null); nothing where there is no such file."""
    path = checkpoint.folder / METADATA
    if not path.is_file():
        return {}
    return {name: value for name, value in read_json(path).items() if value is not None}


def _markers(said: Mapping[str, Any], config: EncoderConfig, checkpoint: Checkpoint) -> Iterator[str]:
    vocabulary: Vocabulary | None = None
    for side, key in (("query", "query_token_id"), ("document", "doc_token_id")):
        rules: TextRules = getattr(config, side)
        ours = (rules.marker or "").partition(" ")[0]  # what follows it is a trace of the tokenizer, not a marker
        if key not in said or said[key] == ours:
            continue
        vocabulary = vocabulary or load_vocabulary(checkpoint)
        if not ours or _id_of(str(said[key]), vocabulary) != vocabulary.tokenizer.token_to_id(ours):
            yield f"{key} {_json(said[key])}, {_setting(f'{side}.marker', rules.marker)[0]}"


def _id_of(token: str, vocabulary: Vocabulary) -> int | None:
    """Return the id that Stanford ColBERT takes for a marker: of a token that is not there, that of the unknown one."""
    ids = (vocabulary.tokenizer.token_to_id(name) for name in (token, *UNKNOWN_TOKENS))
    return next((found for found in ids if found is not None), None)


def _lengths(said: Mapping[str, Any], config: EncoderConfig) -> Iterator[str]:
    for side, key in (("query", "query_maxlen"), ("document", "doc_maxlen")):
        words, ours = _setting(f"{side}.max_tokens", getattr(config, side).max_tokens)
        if said.get(key, ours) != ours:
            yield f"{key} {_json(said[key])}, {words}"


def _setting(name: str, value: object) -> tuple[str, object]:
    """Return a setting as one gives it on the command line, and its value."""
    return f"model.{name}={value if isinstance(value, str) else _json(value)}", value


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
