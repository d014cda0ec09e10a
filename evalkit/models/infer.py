"""Infer a model's config from its checkpoint: the settings in its files, and those that must be assumed.

A late-interaction checkpoint is recognised by Stanford ColBERT's `artifact.metadata` or by PyLate's
`config_sentence_transformers.json`; a single-vector one by the Pooling module of sentence-transformers' modules.json.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalkit.config.settings import CheckpointSource
from evalkit.errors import ModelError
from evalkit.models.checkpoint import (
    CONFIG,
    METADATA,
    MODULES,
    ST_CONFIG,
    TOKENIZER,
    WEIGHTS,
    modules,
    read_json,
    small_files,
)

LENGTHS: Final = "sentence_bert_config.json"
CARD: Final = "README.md"
QUERY_PROMPTS: Final = ("query",)
DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""Names of document prompts in sentence-transformers, in its order of preference."""
POOLINGS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",
    "cls": "cls",
}
KNOWN_MODULES: Final = ("Transformer", "Pooling", "Dense", "Normalize")
SHOWN: Final = 80
"""Most characters of a setting that are shown."""
MODEL_MAX_LENGTH: Final = 1_000_000
"""A larger limit of a tokenizer means that it has none."""


class Fact(NamedTuple):
    """One setting with the file and key that it was read from; these are empty if the value is assumed."""

    value: Any
    source: str = ""


class Inferred(NamedTuple):
    """A model's settings, in the order of a config file."""

    name: str
    facts: Mapping[str, Fact]
    origin: str

    def values(self) -> dict[str, Any]:
        """Return the settings as in a config's YAML."""
        return {"name": self.name, **{key: fact.value for key, fact in self.facts.items()}}

    def lines(self) -> list[str]:
        """Return one line per file with the settings read from it, and one with those that were assumed."""
        by_file: dict[str, list[str]] = {}
        for key, fact in self.facts.items():
            if key == "checkpoints":
                by_file.setdefault(_file(fact.source), []).append(f"dim {', '.join(fact.value)}")
            elif key != "source":
                by_file.setdefault(_file(fact.source), []).append(f"{key} {_shown(fact.value)}")
        assumed = by_file.pop("", ["nothing"])
        read = [f"{file}: {', '.join(facts)}" for file, facts in by_file.items()]
        return [*read, f"assumed, for no file says so: {', '.join(assumed)}"]


class _Files(NamedTuple):
    """The contents of a checkpoint's small files; empty for a file that does not exist."""

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    said: Mapping[str, Any]
    modules: Sequence[tuple[str, str]]


def infer(source: CheckpointSource, *, name: str) -> Inferred:
    """Infer a model's config from its checkpoint; of a hub repository only the small files are fetched.

    Raises ModelError if the files do not say how vectors are computed, or if no backbone can load the checkpoint.
    """
    found = small_files(source)
    folder = found.folder
    files = _Files(
        folder,
        read_json(folder / CONFIG),
        _json(folder, METADATA),
        _json(folder, ST_CONFIG),
        modules(folder),
    )
    for kind, path in files.modules:
        if kind not in KNOWN_MODULES:
            msg = f"{folder / MODULES}: got a module {kind} in {path!r}, wanted {', '.join(KNOWN_MODULES)}"
            raise ModelError(f"{msg}; no config here can describe it")
    kinds = [kind for kind, _ in files.modules]
    if files.metadata or "query_prefix" in files.said or files.said.get("similarity_fn_name") == "MaxSim":
        facts = _late(files)
    elif "Pooling" in kinds:
        facts = _single(files)
    else:
        msg = (
            f"{found.origin}: no file says how vectors are made of its hidden states; wanted {METADATA} (Stanford "
            f"ColBERT), {ST_CONFIG} with query_prefix (PyLate) or {MODULES} with Pooling (sentence-transformers)"
        )
        raise ModelError(f"{msg}; write the config by hand, after one that evalkit ls models shows")
    dim = facts.pop("dim")
    place = {key: value for key, value in vars(source).items() if value}
    if found.revision is not None:
        place["revision"] = found.revision
    ordered = {
        "kind": facts.pop("kind"),
        **_backbone(files, origin=found.origin),
        "checkpoints": Fact({str(dim.value): place}, dim.source),
        **facts,
        "dtype": _dtype(files.config),
        **_parameters(folder),
        "licence": _licence(folder),
        "source": Fact(
            f"read by evalkit new model from {', '.join(sorted(_read(folder)))} of {found.origin}", "the files' names"
        ),
    }
    return Inferred(name, ordered, found.origin)


def _late(files: _Files) -> dict[str, Fact]:
    facts = {"kind": Fact("late_interaction", METADATA if files.metadata else ST_CONFIG)}
    stanford = not files.modules
    if stanford:
        facts["dim"] = _first((files.metadata, "dim", METADATA)) or Fact(128)
        head, skiplist = Fact("linear", METADATA), "stanford"
        facts |= {"head": head}
    else:
        head, dim = _dense(files)
        facts |= {"dim": dim, "head": head}
        skiplist = "pylate"
    expands = _first((files.said, "do_query_expansion", ST_CONFIG)) or Fact(value=True)
    attends = _first(
        (files.said, "attend_to_expansion_tokens", ST_CONFIG), (files.metadata, "attend_to_mask_tokens", METADATA)
    ) or Fact(value=False)
    prompts = _prompts(files.said)
    for side, length, expand in (("query", "query", True), ("document", "doc", False)):
        tokens = _first(
            (files.said, f"{side}_length", ST_CONFIG), (files.metadata, f"{length}_maxlen", METADATA)
        ) or Fact(32 if expand else 180)
        marker = _first(
            (files.said, f"{side}_prefix", ST_CONFIG), (files.metadata, f"{length}_token_id", METADATA)
        ) or Fact(_default_marker(side, stanford=stanford))
        rules: dict[str, Any] = {"max_tokens": tokens.value}
        if marker.value:
            rules["marker"] = marker.value
        if expand and expands.value:
            rules |= {"expansion": True, "attend_to_expansion": bool(attends.value)}
        if prompt := prompts[side]:
            rules["prompt"] = prompt
        parts = {"max_tokens": tokens, "marker": marker}
        if expand:
            parts |= {"expansion": expands, "attend_to_expansion": attends}
        assumed = [key for key, fact in parts.items() if not fact.source]
        sources = sorted({fact.source.partition(":")[0] for fact in parts.values() if fact.source})
        note = f"{', '.join(sources)}{'; assumed: ' + ', '.join(assumed) if assumed and sources else ''}"
        facts[side] = Fact(rules, note)
    facts |= {"pooling": Fact("tokens", facts["kind"].source), "normalize": Fact(value=True)}
    return facts | _skiplist(files, skiplist)


def _default_marker(side: str, *, stanford: bool) -> str:
    """Return the library's default if a checkpoint names no marker."""
    if stanford:
        return "[unused0]" if side == "query" else "[unused1]"
    return "[Q] " if side == "query" else "[D] "


def _skiplist(files: _Files, library: str) -> dict[str, Fact]:
    if library == "stanford":
        drops = _first((files.metadata, "mask_punctuation", METADATA)) or Fact(value=True)
        return {"skiplist": Fact("stanford" if drops.value else "none", drops.source)}
    words = files.said.get("skiplist_words")
    if words is None or list(words) == list(string.punctuation):
        return {"skiplist": Fact("pylate", f"{ST_CONFIG}: skiplist_words" if words else "")}
    if not words:
        return {"skiplist": Fact("none", f"{ST_CONFIG}: skiplist_words")}
    source = f"{ST_CONFIG}: skiplist_words"
    return {"skiplist": Fact("pylate", source), "skiplist_words": Fact(list(map(str, words)), source)}


def _single(files: _Files) -> dict[str, Fact]:
    path = next(path for kind, path in files.modules if kind == "Pooling")
    pooling = _pooling(files.folder / path / CONFIG)
    head, dim = _dense(files)
    normal = any(kind == "Normalize" for kind, _ in files.modules)
    cosine = files.said.get("similarity_fn_name") == "cosine"
    rules: dict[str, Fact] = {}
    limit = _length(files)
    for side, prompt in _prompts(files.said).items():
        rules[side] = Fact({"max_tokens": limit.value, **({"prompt": prompt} if prompt else {})}, limit.source)
    return {
        "kind": Fact("single_vector", MODULES),
        "dim": dim,
        "head": head,
        **rules,
        "pooling": pooling,
        "normalize": Fact(
            normal or cosine, MODULES if normal else f"{ST_CONFIG}: similarity_fn_name" if cosine else MODULES
        ),
        "skiplist": Fact("none", MODULES),
    }


def _pooling(path: Path) -> Fact:
    values = read_json(path)
    asked = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(mode := values.get("pooling_mode"), str):
        asked.append(mode)
    if len(asked) != 1 or asked[0] not in POOLINGS:
        msg = f"{path}: got {', '.join(asked) or 'no way'} of pooling, wanted one of mean and cls"
        raise ModelError(f"{msg}; no config here can describe it")
    if values.get("include_prompt") is False:
        msg = f"{path}: got include_prompt false, wanted pooling over the whole text"
        raise ModelError(f"{msg}; no config here can describe it")
    return Fact(POOLINGS[asked[0]], f"{path.parent.name}/{CONFIG}")


def _dense(files: _Files) -> tuple[Fact, Fact]:
    """Return head and dim: the output width of the last Dense module, else the hidden size."""
    paths = [path for kind, path in files.modules if kind == "Dense"]
    if not paths:
        return Fact("none", MODULES), Fact(_hidden_size(files.config), f"{CONFIG}: hidden_size")
    last = read_json(files.folder / paths[-1] / CONFIG)
    return Fact("dense", MODULES), Fact(last.get("out_features"), f"{paths[-1]}/{CONFIG}: out_features")


def _hidden_size(config: Mapping[str, Any]) -> Any:
    return next((config[key] for key in ("hidden_size", "dim", "d_model") if key in config), None)


def _prompts(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the prompt of each side: the one with its name, else the default prompt."""
    prompts = said.get("prompts") or {}
    default = prompts.get(said.get("default_prompt_name")) or ""
    named = {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS}
    return {
        side: next((prompts[name] for name in names if prompts.get(name)), default) for side, names in named.items()
    }


def _length(files: _Files) -> Fact:
    """Return the most tokens of a single-vector model: sentence-transformers' limit, else the architecture's."""
    if limit := _first((_json(files.folder, LENGTHS), "max_seq_length", LENGTHS)):
        return limit
    known = (_json(files.folder, "tokenizer_config.json"), "model_max_length", "tokenizer_config.json")
    limits = [
        fact
        for fact in (_first(known), _first((files.config, "max_position_embeddings", CONFIG)))
        if fact and type(fact.value) is int and 0 < fact.value < MODEL_MAX_LENGTH
    ]
    return min(limits, key=lambda fact: fact.value, default=Fact(512))


def _backbone(files: _Files, *, origin: str) -> dict[str, Fact]:
    """Return the backbone that loads the checkpoint, and the architecture for those of transformers."""
    config, kind = files.config, files.config.get("model_type")
    if _json(files.folder, LENGTHS).get("do_lower_case"):
        msg = f"{origin}: {LENGTHS} lowers all letters, which the tokenizer itself does not say; no config here can"
        raise ModelError(msg)
    source = f"{CONFIG}: model_type"
    if kind == "xmod":
        languages = {str(code).partition("_")[0]: code for code in config.get("languages") or ()}
        return {"backbone": Fact("xmod", source), "adapter": Fact(languages, f"{CONFIG}: languages")}
    if kind == "xlm-roberta" and config.get("position_embedding_type") == "rotary":
        return {"backbone": Fact("jina_embeddings_v3", f"{source}, position_embedding_type")}
    if config.get("position_embedding_type") == "alibi":
        return {"backbone": Fact("jina_bert", f"{source}, position_embedding_type")}
    if kind == "jina_clip":
        return {"backbone": Fact("jina_bert", source)}
    if kind == "bert":
        return {"backbone": Fact("bert", source)}
    from evalkit.models.backbones.generic import model_class

    model_class(str(kind), origin=origin)
    return {"backbone": Fact("transformers", source), "architecture": Fact(kind, source)}


def _dtype(config: Mapping[str, Any]) -> Fact:
    """Return bfloat16 if the weights were saved in it, else float32: half precision gains nothing on a CPU."""
    for key in ("dtype", "torch_dtype"):
        if config.get(key) == "bfloat16":
            return Fact("bfloat16", f"{CONFIG}: {key}")
    return Fact("float32", next((f"{CONFIG}: {key}" for key in ("dtype", "torch_dtype") if config.get(key)), ""))


def _parameters(folder: Path) -> dict[str, Fact]:
    """Return the number of parameters if the weights are on disk; only the file's header is read."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    files = sorted(path for path in folder.glob(f"**/{WEIGHTS}") if len(path.relative_to(folder).parts) <= 2)
    if folder / WEIGHTS not in files:
        return {}
    count = 0
    for path in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith("position_ids")]  # noqa: SIM118 (safe_open is not a mapping)
                count += sum(prod(file.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a whole safetensors file ({error}); fetch the file again"
            raise ModelError(msg) from error
    return {"parameters": Fact(count, WEIGHTS)}


def _licence(folder: Path) -> Fact:
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *([^\n#]+)\n(?:.*\n)*?---", text)
    return Fact(found[1].strip().strip("'\""), f"{CARD}: license") if found else Fact("unknown")


def _read(folder: Path) -> list[str]:
    named = (CONFIG, METADATA, MODULES, ST_CONFIG, LENGTHS, TOKENIZER)
    return [name for name in named if (folder / name).is_file()]


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    return read_json(path) if path.is_file() else {}


def _first(*places: tuple[Mapping[str, Any], str, str]) -> Fact | None:
    """Return the first value that exists, with its file and key."""
    for values, key, file in places:
        if values.get(key) is not None:
            return Fact(values[key], f"{file}: {key}")
    return None


def _file(source: str) -> str:
    return source.partition(":")[0].partition(";")[0]


def _shown(value: Any) -> str:
    """Return a setting as it is shown to the user.

    >>> _shown(True), _shown({"max_tokens": 32, "marker": "[Q] "})
    ('true', "(max_tokens 32, marker '[Q] ')")
    """
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_shown(item)}' for key, item in value.items())})"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, str) and value != value.strip() else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
