"""Command-line overrides to a validated config: every name is checked before Hydra composes anything.

Hydra's own messages name its internals; these name what the user typed and what is nearest to it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evalkit.config import (
    GROUPS,
    MODEL_KINDS,
    DatasetConfig,
    EngineConfig,
    RerankerConfig,
    RunConfig,
    SearchConfig,
    StoreConfig,
    configs_dir,
    group_names,
    run_config,
)
from evalkit.errors import ConfigError, EvalkitError, nearest

SECTIONS: Mapping[str, tuple[type[Any], ...]] = {
    "model": tuple(dict.fromkeys(MODEL_KINDS.values())),
    "dataset": (DatasetConfig,),
    "engine": (EngineConfig,),
    "reranker": (RerankerConfig,),
    "search": (SearchConfig,),
    "store": (StoreConfig,),
}
"""The dataclasses that stand behind each part of the config: their fields are the valid settings."""


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the config of one run. Raises ConfigError for an unknown name, key or value, or for several values."""
    checked = check_overrides(overrides, sweep=False)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
            composed = hydra.compose("config", overrides=checked)
            return _validated(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error


def hand_to_hydra(
    arguments: Sequence[str], run: Callable[[RunConfig], None], *, complain: Callable[[EvalkitError], None]
) -> None:
    """Let Hydra itself carry out a sweep or show a config: `-m`, `--cfg job`, launcher and sweeper plugins.

    `run` is called once for every combination, and `complain` for each that a user's mistake stops: one bad
    combination must not cost the rest. Raises ConfigError before anything runs when a name is wrong.
    """
    words = [word for word in arguments if _is_override(word)]
    rest = [word for word in arguments if not _is_override(word)]
    sweep = any(word in ("-m", "--multirun") for word in rest)

    def job(composed: DictConfig) -> None:
        try:
            run(_validated(composed))
        except EvalkitError as error:
            complain(error)

    entry = hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")(job)
    before = sys.argv
    sys.argv = ["evalkit", *rest, *check_overrides(words, sweep=sweep)]
    try:
        entry()
    finally:
        sys.argv = before


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _validated(composed: DictConfig) -> RunConfig:
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return run_config({str(key): value for key, value in values.items()})


def check_overrides(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Return the overrides as Hydra needs them, every group, name and key checked.

    A setting that a YAML file leaves to its default may be given like any other. `dim=128,64` means the list, swept
    or not: dims that share a backbone then share one pass over the corpus. Raises ConfigError.
    """
    for word in overrides:
        if not _is_override(word):
            msg = f"got {word!r}, wanted setting=value, for example model=bm25"
            raise ConfigError(msg)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_first_line(error)) from error
    return [_checked(word, override, sweep=sweep) for word, override in zip(overrides, parsed, strict=True)]


def _checked(word: str, override: Override, *, sweep: bool) -> str:
    key, text = override.key_or_group, word.partition("=")[2]
    if key.split(".")[0].split("/")[0] == "hydra" or override.is_delete():
        return word
    if key == "dim" and override.is_choice_sweep():
        return f"dim=[{text}]"
    if override.is_sweep_override() and not sweep:
        msg = f"{word} gives several values; add -m to run each of them"
        raise ConfigError(msg)
    if key in GROUPS:
        for name in _values(override):
            if name not in (None, *group_names(key)):
                msg = f"{key} {str(name)!r} unknown; {nearest(str(name), group_names(key))} (evalkit ls {key}s)"
                raise ConfigError(msg)
        return word
    valid = all_settings()
    if key not in valid and not key.startswith("model.checkpoints."):
        msg = f"setting {key!r} unknown; {nearest(key, valid)}"
        raise ConfigError(msg)
    if key in ("results_dir", "cache_dir"):
        return f"{key}={os.path.expanduser(text)}"  # noqa: PTH111 (the text may be quoted for Hydra)
    return f"++{key}={text}"


def _values(override: Override) -> list[Any]:
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.value()]


def all_settings() -> list[str]:
    """Return every setting that may be given on the command line, groups first."""
    return [*GROUPS, "dim", "results_dir", "cache_dir", *dict.fromkeys(_section_keys())]


def _section_keys() -> Iterator[str]:
    for section, classes in SECTIONS.items():
        for cls in classes:
            yield from _field_keys(cls, section)


def _field_keys(cls: type[Any], prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{prefix}.{field.name}"
        yield key
        hint = hints[field.name]
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from _field_keys(typing.cast("type[Any]", option), key)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
