"""What sentence-transformers can save with a model that evalkit does not compute: refused, with the file and the value.

A model that is read without one of these settings gives other vectors, with no visible sign. The rules are those of
sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from evalkit.errors import ModelError
from evalkit.models.checkpoint import CONFIG, MODULES, ST_CONFIG, modules, read_json, read_list

LENGTH_CONFIGS: Final = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""The files with the Transformer module's settings; sentence-transformers reads the first that is not empty."""
KNOWN_MODULES: Final = ("Transformer", "Pooling", "Dense", "Normalize")
LIBRARIES: Final = ("sentence_transformers", "pylate")
"""Packages whose modules are known; a checkpoint's own code may name its classes alike."""
VECTOR: Final = "sentence_embedding"
"""sentence-transformers' name of a text's one vector."""
USUAL: Final = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "tokenizer_name_or_path": None,
}
"""Settings of the Transformer module by which it returns the last hidden states of the checkpoint's own tokens."""
TEXT_OUTPUT: Final = {"method": "forward", "method_output_name": "last_hidden_state"}
ARGUMENTS: Final = ("tokenizer_args", "processor_kwargs", "processing_kwargs", "config_args", "config_kwargs")
MODEL_ARGUMENTS: Final = ("model_args", "model_kwargs")
HARMLESS_ARGUMENTS: Final = (
    "trust_remote_code",
    "attn_implementation",
    "add_pooling_layer",
    "dtype",
    "torch_dtype",
    "use_safetensors",
)
"""Arguments that change no vector, or only its last bits."""
POOLING_KEYS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Names of poolings, by their older keys, in sentence-transformers' order."""


def length_config(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the name and content of the file with the Transformer module's settings, which may not exist."""
    for name in LENGTH_CONFIGS:
        if (folder / name).is_file() and (values := read_json(folder / name)):
            return name, values
    return LENGTH_CONFIGS[0], {}


def poolings(path: Path) -> list[str]:
    """Return the poolings in a Pooling module's config, in the order in which their vectors are concatenated."""
    values = read_json(path)
    mode = values.get("pooling_mode")
    if mode is not None:
        return [str(one) for one in mode] if isinstance(mode, list) else [str(mode)]
    return [name for key, name in POOLING_KEYS.items() if values.get(key)] or ["mean"]


def refuse_modules(folder: Path) -> None:
    """Raise ModelError for a module that is not known, or a Transformer module in a folder of its own."""
    for entry in read_list(folder / MODULES) if (folder / MODULES).is_file() else []:
        name, path = str(entry.get("type")), str(entry.get("path", ""))
        kind = name.rpartition(".")[2]
        if kind not in KNOWN_MODULES:
            _refuse(folder / MODULES, f"a module {kind} in {path!r}", ", ".join(KNOWN_MODULES))
        if name.partition(".")[0] not in LIBRARIES:
            _refuse(folder / MODULES, f"the module {name}", f"a class of {' or '.join(LIBRARIES)}")
        if kind == "Transformer" and path not in {"", "."}:
            _refuse(folder / MODULES, f"a Transformer module in {path!r}", "it in the checkpoint's own folder")


def refuse_single_vector(folder: Path, st_config: Mapping[str, Any], *, dim: Any) -> None:
    """Raise ModelError if a single-vector model's vectors of `dim` numbers are made in a way that evalkit does not.

    Its way: hidden states of the last layer, pooling, Dense modules, normalisation.
    """
    if (kind := st_config.get("model_type")) not in (None, "SentenceTransformer"):
        _refuse(folder / ST_CONFIG, f"model_type {kind!r}", "SentenceTransformer")
    _refuse_truncation(folder, st_config, dim=dim)
    _refuse_order(folder)
    _refuse_transformer(folder)


def refuse_late_interaction(folder: Path, st_config: Mapping[str, Any], *, dim: Any) -> None:
    """Raise ModelError if a PyLate model's vectors of `dim` numbers are made in a way that evalkit does not.

    Its way: hidden states of the last layer, Dense modules, normalisation.
    """
    kinds = [kind for kind, _ in modules(folder)]
    if not _follows(kinds, ["Transformer"]):
        _refuse_kinds(folder, kinds, "Transformer, then Dense, then Normalize, the last two optional")
    _refuse_truncation(folder, st_config, dim=dim)
    _refuse_transformer(folder)


def _refuse_truncation(folder: Path, st_config: Mapping[str, Any], *, dim: Any) -> None:
    """Raise ModelError if only the first numbers of each vector are to be kept."""
    size = st_config.get("truncate_dim")
    if size is None or (type(size) is int and type(dim) is int and size >= dim):
        return
    msg = f"{folder / ST_CONFIG}: got truncate_dim {size}, wanted vectors of all {dim} numbers; evalkit cuts none off"
    raise ModelError(f"{msg}; to evaluate them whole, remove truncate_dim from a copy of the checkpoint")


def _refuse_order(folder: Path) -> None:
    found = modules(folder)
    kinds = [kind for kind, _ in found]
    if not _follows(kinds, ["Transformer", "Pooling"]):
        _refuse_kinds(folder, kinds, "Transformer, Pooling, then Dense, then Normalize, the last two optional")
    for kind, path in found:
        config = folder / path / CONFIG
        if kind not in {"Dense", "Normalize"} or not config.is_file():
            continue
        values = read_json(config)
        for key in ("module_input_name", "module_output_name"):
            if values.get(key) not in (None, VECTOR):
                got = f"a {kind} module in {path!r} with {key} {values[key]!r}"
                _refuse(folder / MODULES, got, f"{VECTOR}, the text's one vector")
        if kind == "Dense" and "activation_function" not in values:
            _refuse(config, "no activation_function", "its name, such as torch.nn.modules.linear.Identity")


def _follows(kinds: Sequence[str], first: Sequence[str]) -> bool:
    """Whether modules are `first`, then Dense modules, then at most one Normalize module."""
    rest = list(kinds[len(first) :])
    if rest and rest[-1] == "Normalize":
        rest.pop()
    return list(kinds[: len(first)]) == list(first) and all(kind == "Dense" for kind in rest)


def _refuse_transformer(folder: Path) -> None:
    """Raise ModelError if the Transformer module returns another output, or loads files with arguments of its own."""
    name, values = length_config(folder)
    for key, usual in USUAL.items():
        if values.get(key) not in (None, usual):
            _refuse(folder / name, f"{key} {values[key]!r}", f"{usual!r}" if usual else "none")
    text = _object(folder / name, values, "modality_config").get("text")
    if text not in (None, TEXT_OUTPUT):
        _refuse(folder / name, f"modality_config text {text}", f"{TEXT_OUTPUT}")
    for key in (*ARGUMENTS, *MODEL_ARGUMENTS):
        harmless = HARMLESS_ARGUMENTS if key in MODEL_ARGUMENTS else HARMLESS_ARGUMENTS[:1]
        arguments = _object(folder / name, values, key)
        if given := {word: value for word, value in arguments.items() if word not in harmless}:
            _refuse(folder / name, f"{key} {given}", "none")


def _object(path: Path, values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the JSON object at a key, empty if there is none. Raises ModelError for another value."""
    found = values.get(key) or {}
    if not isinstance(found, dict):
        _refuse(path, f"{key} {found!r}", "a JSON object")
    return found


def _refuse_kinds(folder: Path, kinds: Sequence[str], wanted: str) -> NoReturn:
    _refuse(folder / MODULES, f"the modules {', '.join(kinds)}", f"{wanted}, in this order")


def _refuse(path: Path, got: str, wanted: str) -> NoReturn:
    msg = f"{path}: got {got}, wanted {wanted}; evalkit supports no other"
    raise ModelError(msg)
