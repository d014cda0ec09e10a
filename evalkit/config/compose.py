"""Command-line overrides to a validated config: every name is checked before Hydra composes anything.

Hydra's own messages name its internals; these name what the user typed and what is nearest to it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evalkit.config.settings import (
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
    type_name,
)
from evalkit.errors import ConfigError, EvalkitError, nearest
from evalkit.storage.paths import make_folder, write_whole

SECTIONS: Mapping[str, tuple[type[Any], ...]] = {
    "model": tuple(dict.fromkeys(MODEL_KINDS.values())),
    "dataset": (DatasetConfig,),
    "engine": (EngineConfig,),
    "reranker": (RerankerConfig,),
    "search": (SearchConfig,),
    "store": (StoreConfig,),
}
"""The dataclasses that stand behind each part of the config: their fields are the valid settings."""

PATHS = re.compile(r"results_dir|cache_dir|dataset\.path|model\.checkpoints\.\w+\.path")
"""Settings that hold a path, which may have signs that Hydra's grammar keeps for itself: ~ = ( ) and letters as ü."""

SWEEP_FLAGS = ("-m", "--multirun")
SHOW_FLAGS = ("--cfg", "-c", "--info", "-i")


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the config of one run. Raises ConfigError for an unknown name, key or value, or for several values."""
    if any(_sweeps_of(word) for word in overrides):
        msg = f"{' '.join(word for word in overrides if _sweeps_of(word))} is a sweep; add -m to run each of its cells"
        raise ConfigError(msg)
    checked = check_overrides(overrides, sweep=False)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
            composed = hydra.compose("config", overrides=checked)
            return _validated(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error


class Outcome(NamedTuple):
    """What one combination of a sweep came to."""

    combination: str
    """The words that gave several values; empty where none did."""
    done: tuple[str, ...]
    """What the job returned."""
    error: str | None


def hand_to_hydra(
    arguments: Sequence[str], run: Callable[[RunConfig], Sequence[str]], *, complain: Callable[[str], None]
) -> list[Outcome]:
    """Let Hydra itself carry out a sweep or show a config: `-m`, `--cfg job`, launcher and sweeper plugins.

    `run` is called once for every combination, and `complain` at once with a line for each that a user's mistake
    stops: one bad combination must not cost the rest. A launcher may call both in other processes, so they are
    functions of a module. Raises ConfigError before anything runs when a name is wrong, and after a config was shown
    that could not be run.
    """
    words = [word for word in arguments if _is_override(word)]
    rest = [word for word in arguments if not _is_override(word)]
    sweep, shown = (any(word in flags for word in rest) for flags in (SWEEP_FLAGS, SHOW_FLAGS))
    if sweep and shown:
        msg = f"got {' '.join(rest)}, wanted one of them: a sweep's configs are shown one by one (also: evalkit plan)"
        raise ConfigError(msg)
    if not sweep and any(_sweeps_of(word) for word in words):
        compose(words)
    blocks = [(block, check_overrides(block, sweep=sweep)) for block in (expanded(words) if sweep else [words])]
    launcher = _launcher(words)
    if sweep:  # Hydra keeps its own record of a sweep there, and would answer with a traceback
        folder = compose([word for word in words if word.startswith("cache_dir=")]).cache_dir / "hydra"
        make_folder(folder)
    else:
        folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=folder) as outcomes:
        for place, (block, checked) in enumerate(blocks):
            swept = frozenset(override.key_or_group for _, override in _parsed(block) if override.is_sweep_override())
            if len(blocks) > 1:
                swept |= {"model", "dataset"}
            job = _job(run, complain, swept, Path(outcomes).absolute() / f"{place:03}")
            entry = hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")(job)
            before = sys.argv
            sys.argv = ["evalkit", *rest, *checked]
            try:
                entry()
            except SystemExit:
                if not sweep or launcher == "basic":
                    raise
                complain(f"hydra/launcher={launcher} lost a job; see its own lines above, or its logs under {folder}")
            finally:
                sys.argv = before
        found = [_read_outcome(path) for path in sorted(Path(outcomes).rglob("*.json"))]
    if shown:
        compose(words)
    if sweep and len(found) < (wanted := len(combinations(words))):
        found.append(Outcome(f"{wanted - len(found)} more", (), "ended without a word"))
    return found


def _job(
    run: Callable[[RunConfig], Sequence[str]], complain: Callable[[str], None], swept: frozenset[str], outcomes: Path
) -> Callable[[DictConfig], None]:
    """Return what Hydra calls for each combination: it leaves a file, for a launcher may call it in any process."""

    def job(composed: DictConfig) -> None:
        done: Sequence[str] = ()
        failure: str | None = None
        given = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
        combination = " ".join(word for word in given if word.partition("=")[0] in swept)
        try:
            done = run(_validated(composed))
        except EvalkitError as error:
            failure = str(error)
            complain(f"{combination}: {failure}" if combination else failure)
        number = int(HydraConfig.get().job.num) if swept else 0
        facts = {"combination": combination, "done": list(done), "error": failure}
        write_whole(outcomes / f"{number:06}.json", json.dumps(facts).encode())

    return job


def _read_outcome(path: Path) -> Outcome:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(facts["combination"], tuple(facts["done"]), facts["error"])


LAUNCHERS: Mapping[str, tuple[str, str]] = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
"""Launchers that come with a package of their own: its module, and the extra of ours that installs it."""


def _launcher(words: Sequence[str]) -> str:
    """Return the launcher that is asked for. Raises ConfigError where its package is not installed."""
    name = next((word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")), "basic")
    module, extra = LAUNCHERS.get(name, ("hydra", ""))
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # hydra_plugins itself, which comes with the first plugin
        found = None
    if found is None:
        msg = f"hydra/launcher={name} is not installed; pip install 'evalkit[{extra}]'"
        raise ConfigError(msg)
    return name


def combinations(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every combination of words that give several values each. Raises ConfigError for a wrong word.

    >>> combinations(["model=demo,bm25", "dim=128,64"])
    [('model=demo', 'dim=128,64'), ('model=bm25', 'dim=128,64')]
    """
    found: list[tuple[str, ...]] = []
    for block in expanded(overrides):
        check_overrides(block, sweep=True)
        choices = []
        for word, override in _parsed(block):
            several = override.is_sweep_override() and override.key_or_group != "dim"
            key = override.key_or_group
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if several else [word])
        found += product(*choices)
    return list(dict.fromkeys(found))


def expanded(words: Sequence[str]) -> list[list[str]]:
    """Return the sweeps that words stand for: those that an experiment lists, else the words themselves.

    A word that is given replaces what the experiment's sweeps say of the same setting.
    """
    sweeps = [sweep for word in words for sweep in _sweeps_of(word)]
    if not sweeps:
        return [list(words)]
    given = {word.lstrip("+").partition("=")[0] for word in words}
    rest = [word for word in words if not _sweeps_of(word)]
    found = [[*(word for word in sweep.split() if word.partition("=")[0] not in given), *rest] for sweep in sweeps]
    return [block for place, block in enumerate(found) if block not in found[:place]]


def _sweeps_of(word: str) -> list[str]:
    """Return the sweeps that an experiment lists under `sweeps`; none for any other word."""
    group, _, name = word.partition("=")
    if group != "experiment" or name not in group_names("experiment"):
        return []
    values = yaml.safe_load((configs_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    return [str(sweep) for sweep in values.get("sweeps", ())]


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _validated(composed: DictConfig) -> RunConfig:
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return run_config({str(key): value for key, value in values.items() if key != "sweeps"})


def check_overrides(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Return the overrides as Hydra needs them, every group, name and key checked.

    A setting that a YAML file leaves to its default may be given like any other. `dim=128,64` means the list, swept
    or not: dims that share a backbone then share one pass over the corpus. Raises ConfigError.
    """
    return [_checked(word, override, sweep=sweep) for word, override in _parsed(overrides)]


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Yield every word as Hydra's grammar can read it, and what it reads: paths quoted, names' patterns spelled out."""
    parser = OverridesParser.create()
    for word in overrides:
        if not _is_override(word):
            msg = f"got {word!r}, wanted setting=value, for example model=bm25"
            raise ConfigError(msg)
        key, _, text = word.partition("=")
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            if not PATHS.fullmatch(key):
                msg = f"got {word!r}, wanted setting=value as Hydra's grammar has it"
                raise ConfigError(f"{msg} ({_first_line(error)}); quote the value: {key}='\"…\"'") from error
            quoted = ("'{}'".format(os.path.expanduser(part).replace("'", "\\'")) for part in text.split(","))  # noqa: PTH111
            word = f"{key}={','.join(quoted)}"  # noqa: PLW2901 (the word as Hydra can read it)
            override = parser.parse_override(word)
        pattern: Any = override.value()
        if isinstance(pattern, Glob) and override.key_or_group in GROUPS:
            # Hydra's own patterns do not look into sub-folders such as dataset/beir.
            names = pattern.filter(list(group_names(override.key_or_group)))
            if not names:
                msg = f"{word} matches no {override.key_or_group} (evalkit ls {override.key_or_group}s)"
                raise ConfigError(msg)
            word = f"{key}={'choice({})'.format(','.join(names))}"  # noqa: PLW2901 (the same names, spelled out)
            override = parser.parse_override(word)
        yield word, override


def _checked(word: str, override: Override, *, sweep: bool) -> str:
    key, text = override.key_or_group, word.partition("=")[2]
    if key.split(".")[0].split("/")[0] == "hydra":
        return word
    if override.is_delete():
        msg = f"got {word!r}, wanted setting=value; no setting can be taken out"
        raise ConfigError(msg)
    if key == "dim" and override.is_choice_sweep():
        return f"dim=[{','.join(override.sweep_string_iterator())}]"
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
        msg = f"setting {key!r} unknown; {nearest(key, valid)} (evalkit ls settings)"
        raise ConfigError(msg)
    return f"{key}={text}" if key in ("results_dir", "cache_dir") else f"++{key}={text}"


def _values(override: Override) -> list[Any]:
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.value()]


def all_settings() -> dict[str, str]:
    """Return every setting that may be given on the command line and what it takes, groups first."""
    folders = dict.fromkeys(("results_dir", "cache_dir"), "a folder")
    named = {**{group: f"a name (evalkit ls {group}s)" for group in GROUPS}, "dim": "a number or a list", **folders}
    found: dict[str, list[str]] = {}
    for section, classes in SECTIONS.items():
        for cls in classes:
            for key, takes in _fields(cls, section):
                found.setdefault(key, []).append(takes)
    return named | {key: " or ".join(dict.fromkeys(takes)) for key, takes in found.items()}


def _fields(cls: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}.{field.name}", hints[field.name]
        yield key, type_name(hint)
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from _fields(typing.cast("type[Any]", option), key)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
