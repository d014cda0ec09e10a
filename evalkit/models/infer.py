"""Infer a model's config from its checkpoint: settings are read from its files, or assumed if no file has them.

A late-interaction checkpoint is recognised by Stanford ColBERT's `artifact.metadata` or by PyLate's
`config_sentence_transformers.json`; a single-vector one by the Pooling module of sentence-transformers' modules.json.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from evalkit.config.settings import CheckpointSource
from evalkit.errors import ModelError
from evalkit.models import layout
from evalkit.models.checkpoint import (
    CONFIG,
    METADATA,
    MODULES,
    ST_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    modules,
    read_json,
    small_files,
    tokenizer_config,
)

CARD: Final = "README.md"
QUERY_PROMPTS: Final = ("query",)
DOCUMENT_PROMPTS: Final = ("document", "passage", "corpus")
"""Names of a late-interaction model's document prompts, in the order of preference."""
SIDES: Final = ("query", "document")
POOLINGS: Final = ("mean", "cls")
"""The poolings that evalkit has, by sentence-transformers' names."""
DOT_PRODUCTS: Final = ("dot", "dot_product")
"""Similarities that do not normalise."""
ST_VERSION: Final = "sentence-transformers 6.2"
"""The version whose rules are followed."""
MAX_SHOWN: Final = 80
"""Longest text of a setting that is shown in full, in characters."""
MODEL_MAX_LENGTH: Final = 1_000_000
"""A tokenizer's model_max_length from here up means that it has no limit."""
_Library: TypeAlias = Literal["stanford", "pylate"]
"""The library whose rules a late-interaction checkpoint follows."""


class Fact(NamedTuple):
    """One setting with the file and key that it was read from; these are empty if the value is assumed."""

    value: Any
    source: str = ""


class Inferred(NamedTuple):
    """A model's settings, in the order of a config file."""

    name: str
    facts: Mapping[str, Fact]
    origin: str
    unused_prompts: tuple[str, ...] = ()
    """Names of prompts in its files that stand before no text."""

    def values(self) -> dict[str, Any]:
        """Return the settings as in a config's YAML."""
        return {"name": self.name, **{key: fact.value for key, fact in self.facts.items()}}

    def lines(self) -> list[str]:
        """Return a line per file with the settings read from it, one with unused prompts, one with what was assumed."""
        by_file: dict[str, list[str]] = {}
        for key, fact in self.facts.items():
            if key == "checkpoints":
                by_file.setdefault(_file_of(fact.source), []).append(f"dim {', '.join(fact.value)}")
            elif key != "source":
                by_file.setdefault(_file_of(fact.source), []).append(f"{key} {_shown(fact.value)}")
        assumed = by_file.pop("", ["nothing"])
        read = [f"{file}: {', '.join(facts)}" for file, facts in by_file.items()]
        if self.unused_prompts:
            names = ", ".join(self.unused_prompts)
            read.append(f"not used, as in encode_query and encode_document of {ST_VERSION}: prompts {names}")
        return [*read, f"assumed (no file says so): {', '.join(assumed)}"]


class _Files(NamedTuple):
    """The contents of a checkpoint's small files; empty for a file that does not exist."""

    folder: Path
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    st_config: Mapping[str, Any]
    modules: Sequence[tuple[str, str]]
    """The kind and folder of each module in modules.json."""


def infer(source: CheckpointSource, *, name: str) -> Inferred:
    """Infer a model's config from its checkpoint; of a hub repository only the small files are fetched.

    Raises ModelError if the files do not say how vectors are computed, or if no backbone can load the checkpoint.
    """
    found = small_files(source)
    folder = found.folder
    files = _Files(
        folder,
        read_json(folder / CONFIG),
        _optional_json(folder, METADATA),
        _optional_json(folder, ST_CONFIG),
        modules(folder),
    )
    layout.refuse_modules(folder)
    kinds = [kind for kind, _ in files.modules]
    if files.metadata or "query_prefix" in files.st_config or files.st_config.get("similarity_fn_name") == "MaxSim":
        facts = _late_interaction(files)
    elif "Pooling" in kinds:
        facts = _single_vector(files)
    else:
        msg = (
            f"{found.origin}: no file says how vectors are made of its hidden states; wanted {METADATA} (Stanford "
            f"ColBERT), {ST_CONFIG} with query_prefix (PyLate) or {MODULES} with Pooling (sentence-transformers)"
        )
        raise ModelError(f"{msg}; write the config by hand, after one that evalkit ls models shows")
    dim = facts.pop("dim")
    location = {key: value for key, value in vars(source).items() if value}
    if found.revision is not None:
        location["revision"] = found.revision
    ordered = {
        "kind": facts.pop("kind"),
        **_backbone(files, origin=found.origin),
        "checkpoints": Fact({str(dim.value): location}, dim.source),
        **facts,
        "dtype": _dtype(files.config),
        **_parameters(folder),
        "licence": _licence(folder),
        "source": Fact(
            f"read by evalkit new model from {', '.join(sorted(_files_read(folder)))} of {found.origin}",
            "the files' names",
        ),
    }
    unused = _unused_prompts(files) if ordered["kind"].value == "single_vector" else ()
    return Inferred(name, ordered, found.origin, unused)


def _late_interaction(files: _Files) -> dict[str, Fact]:
    """Return a late-interaction model's settings, under Stanford ColBERT's rules or PyLate's."""
    library: _Library = "pylate" if files.modules else "stanford"
    facts = {"kind": Fact("late_interaction", METADATA if files.metadata else ST_CONFIG)}
    if library == "stanford":
        facts["dim"] = _first_set((files.metadata, "dim", METADATA)) or Fact(128)
        facts["head"] = Fact("linear", METADATA)
    else:
        facts["head"], facts["dim"] = _dense(files)
        layout.refuse_late_interaction(files.folder, files.st_config, dim=facts["dim"].value)
    for side in ("query", "document"):
        facts[side] = _side_rules(files, side, library)
    facts |= {"pooling": Fact("tokens", facts["kind"].source), "normalize": Fact(value=True)}
    return facts | _skiplist(files, library)


def _side_rules(files: _Files, side: str, library: _Library) -> Fact:
    """Return a late-interaction model's rules for queries or documents; only queries are expanded."""
    is_query = side == "query"
    short = "query" if is_query else "doc"  # Stanford ColBERT's name of the side
    max_tokens = _first_set(
        (files.st_config, f"{side}_length", ST_CONFIG), (files.metadata, f"{short}_maxlen", METADATA)
    ) or Fact(32 if is_query else 180)
    marker = _first_set(
        (files.st_config, f"{side}_prefix", ST_CONFIG), (files.metadata, f"{short}_token_id", METADATA)
    ) or Fact(_default_marker(side, library))
    facts = {"max_tokens": max_tokens, "marker": marker}
    rules: dict[str, Any] = {"max_tokens": max_tokens.value}
    if marker.value:
        rules["marker"] = marker.value
    if is_query:
        expands = _first_set((files.st_config, "do_query_expansion", ST_CONFIG)) or Fact(value=True)
        attends = _first_set(
            (files.st_config, "attend_to_expansion_tokens", ST_CONFIG),
            (files.metadata, "attend_to_mask_tokens", METADATA),
        ) or Fact(value=False)
        facts |= {"expansion": expands, "attend_to_expansion": attends}
        if expands.value:
            rules |= {"expansion": True, "attend_to_expansion": bool(attends.value)}
    if prompt := _prompts(files)[side]:
        rules["prompt"] = prompt
    assumed = [key for key, fact in facts.items() if not fact.source]
    sources = sorted({_file_of(fact.source) for fact in facts.values() if fact.source})
    return Fact(rules, f"{', '.join(sources)}{'; assumed: ' + ', '.join(assumed) if assumed and sources else ''}")


def _default_marker(side: str, library: _Library) -> str:
    """Return the library's marker of one side for a checkpoint that names none."""
    if library == "stanford":
        return "[unused0]" if side == "query" else "[unused1]"
    return "[Q] " if side == "query" else "[D] "


def _skiplist(files: _Files, library: _Library) -> dict[str, Fact]:
    """Return the skiplist, and its words if they are not the library's punctuation."""
    if library == "stanford":
        drops = _first_set((files.metadata, "mask_punctuation", METADATA)) or Fact(value=True)
        return {"skiplist": Fact("stanford" if drops.value else "none", drops.source)}
    words = files.st_config.get("skiplist_words")
    if words is None or list(words) == list(string.punctuation):
        return {"skiplist": Fact("pylate", f"{ST_CONFIG}: skiplist_words" if words else "")}
    if not words:
        return {"skiplist": Fact("none", f"{ST_CONFIG}: skiplist_words")}
    source = f"{ST_CONFIG}: skiplist_words"
    return {"skiplist": Fact("pylate", source), "skiplist_words": Fact(list(map(str, words)), source)}


def _single_vector(files: _Files) -> dict[str, Fact]:
    """Return a single-vector model's settings, under sentence-transformers' rules."""
    path = next(path for kind, path in files.modules if kind == "Pooling")
    pooling = _pooling(files.folder / path / CONFIG)
    head, dim = _dense(files)
    layout.refuse_single_vector(files.folder, files.st_config, dim=dim.value)
    rules: dict[str, Fact] = {}
    limit = _length(files)
    for side, prompt in _single_vector_prompts(files).items():
        rules[side] = Fact({"max_tokens": limit.value, **({"prompt": prompt} if prompt else {})}, limit.source)
    return {
        "kind": Fact("single_vector", MODULES),
        "dim": dim,
        "head": head,
        **rules,
        "pooling": pooling,
        "normalize": _normalize(files),
        "skiplist": Fact("none", MODULES),
    }


def _normalize(files: _Files) -> Fact:
    """Return whether vectors are normalised: by a module, or because they are compared by cosine.

    That is what sentence-transformers does without a similarity. It reads "dot" only; "dot_product" is its own other
    name of it. Raises ModelError for another similarity.
    """
    key = "similarity_fn_name"
    name = files.st_config.get(key)
    if name not in (None, "cosine", *DOT_PRODUCTS):
        msg = f"{files.folder / ST_CONFIG}: got {key} {name!r}, wanted cosine or dot; evalkit supports no other"
        raise ModelError(f"{msg}; in a copy, set one of the two if the model may be compared by it")
    if any(kind == "Normalize" for kind, _ in files.modules):
        return Fact(value=True, source=MODULES)
    return Fact(name not in DOT_PRODUCTS, "" if name is None else f"{ST_CONFIG}: {key}")


def _pooling(path: Path) -> Fact:
    """Return the pooling in a Pooling module's config. Raises ModelError if evalkit does not support it."""
    modes = layout.poolings(path)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        msg = f"{path}: got pooling {', '.join(modes) or 'none'}, wanted {' or '.join(POOLINGS)}"
        raise ModelError(f"{msg}; evalkit supports no other")
    if not read_json(path).get("include_prompt", True):
        msg = f"{path}: got include_prompt false, wanted pooling over the whole text"
        raise ModelError(f"{msg}; evalkit supports no other")
    return Fact(modes[0], f"{path.parent.name}/{CONFIG}")


def _dense(files: _Files) -> tuple[Fact, Fact]:
    """Return head and dim: the output width of the last Dense module, else the hidden size."""
    paths = [path for kind, path in files.modules if kind == "Dense"]
    if not paths:
        return Fact("none", MODULES), Fact(_hidden_size(files.config), f"{CONFIG}: hidden_size")
    last = read_json(files.folder / paths[-1] / CONFIG)
    return Fact("dense", MODULES), Fact(last.get("out_features"), f"{paths[-1]}/{CONFIG}: out_features")


def _hidden_size(config: Mapping[str, Any]) -> Any:
    """Return the hidden size in a config.json, whose key depends on the architecture; None if it has none."""
    return next((config[key] for key in ("hidden_size", "dim", "d_model") if key in config), None)


def _single_vector_prompts(files: _Files) -> dict[str, str]:
    """Return the prompt of each side as in encode_query and encode_document of sentence-transformers 6.2.

    Both names always exist there and are empty if no file sets them, so neither the default prompt nor those named
    passage and corpus are ever used. Versions before 5 have no sides. Raises ModelError for an unknown default.
    """
    prompts, default = _saved_prompts(files), files.st_config.get("default_prompt_name")
    if default is not None and default not in {*SIDES, *prompts}:
        msg = f"{files.folder / ST_CONFIG}: got default_prompt_name {default!r}, wanted one of the file's prompts"
        raise ModelError(f"{msg} ({', '.join(prompts) or 'none'}); set it to one of them, or to null")
    return {side: prompts.get(side) or "" for side in SIDES}


def _unused_prompts(files: _Files) -> tuple[str, ...]:
    """Return the names of a single-vector model's prompts that stand before no text."""
    return tuple(name for name, prompt in _saved_prompts(files).items() if prompt and name not in SIDES)


def _saved_prompts(files: _Files) -> dict[str, str | None]:
    """Return the prompts in a checkpoint's file by name. Raises ModelError if they are not texts."""
    prompts = files.st_config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        msg = f"{files.folder / ST_CONFIG}: got prompts {str(prompts)[:MAX_SHOWN]}, wanted texts by name"
        raise ModelError(f"{msg}; correct the file")
    return prompts


def _prompts(files: _Files) -> dict[str, str]:
    """Return the prompt of each side of a late-interaction model: the one with its name, else the default prompt."""
    prompts = _saved_prompts(files)
    default = prompts.get(files.st_config.get("default_prompt_name", "")) or ""
    named = {"query": QUERY_PROMPTS, "document": DOCUMENT_PROMPTS}
    return {
        side: next((text for name in names if (text := prompts.get(name))), default) for side, names in named.items()
    }


def _length(files: _Files) -> Fact:
    """Return the most tokens of a single-vector model: sentence-transformers' limit, else the architecture's."""
    name, values = layout.length_config(files.folder)
    if limit := _first_set((values, "max_seq_length", name)):
        return limit
    known = (tokenizer_config(files.folder), "model_max_length", TOKENIZER_CONFIG)
    limits = [
        fact
        for fact in (_first_set(known), _first_set((files.config, "max_position_embeddings", CONFIG)))
        if fact and type(fact.value) is int and 0 < fact.value < MODEL_MAX_LENGTH
    ]
    return min(limits, key=lambda fact: fact.value, default=Fact(512))


def _backbone(files: _Files, *, origin: str) -> dict[str, Fact]:
    """Return the backbone that loads the checkpoint, and the architecture for those of transformers."""
    config, kind = files.config, files.config.get("model_type")
    length_config, settings = layout.length_config(files.folder)
    if settings.get("do_lower_case"):
        msg = f"{origin}: {length_config} has do_lower_case true, wanted a tokenizer that does this itself"
        raise ModelError(f"{msg}; evalkit does not change the case of texts")
    source = f"{CONFIG}: model_type"
    if kind == "xmod":
        adapters: dict[str, list[str]] = {}
        for code in map(str, config.get("languages") or ()):
            adapters.setdefault(code.partition("_")[0], []).append(code)
        first = {language: codes[0] for language, codes in adapters.items()}
        several = [
            f"for {language} the first of {', '.join(codes)}" for language, codes in adapters.items() if codes[1:]
        ]
        return {"backbone": Fact("xmod", source), "adapter": Fact(first, "; ".join((f"{CONFIG}: languages", *several)))}
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
    """Return the licence in the metadata block of the model card, or "unknown"."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *([^\n#]+)\n(?:.*\n)*?---", text)
    return Fact(found[1].strip().strip("'\""), f"{CARD}: license") if found else Fact("unknown")


def _files_read(folder: Path) -> list[str]:
    """Return the names of the files that settings were read from."""
    named = (CONFIG, METADATA, MODULES, ST_CONFIG, layout.length_config(folder)[0], TOKENIZER)
    return [name for name in named if (folder / name).is_file()]


def _optional_json(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


def _first_set(*places: tuple[Mapping[str, Any], str, str]) -> Fact | None:
    """Return the first value that is set, with its file and key; each place is (values, key, file)."""
    for values, key, file in places:
        if values.get(key) is not None:
            return Fact(values[key], f"{file}: {key}")
    return None


def _file_of(source: str) -> str:
    """Return the file of a fact's source, "FILE: KEY" or "FILES; assumed: KEYS"."""
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
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
