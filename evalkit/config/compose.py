"""Turn command-line overrides into a validated config; every name is checked before Hydra composes anything.

Hydra's own messages name its internals; these name the word that the user typed and the nearest valid ones.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evalkit import texts
from evalkit.config.files import settings_in
from evalkit.config.settings import (
    GIVEN,
    GROUPS,
    LISTING,
    MODEL_KINDS,
    DatasetConfig,
    EngineConfig,
    RerankerConfig,
    RunConfig,
    RunFileConfig,
    SearchConfig,
    StoreConfig,
    at_home,
    configs_dir,
    group_files,
    group_names,
    own_configs_dirs,
    run_config,
    type_name,
)
from evalkit.errors import ConfigError, EvalkitError, lines, nearest

log = logging.getLogger(__name__)

SECTIONS: Mapping[str, tuple[type[Any], ...]] = {
    "model": tuple(kind for kind in dict.fromkeys(MODEL_KINDS.values()) if kind is not RunFileConfig),
    "dataset": (DatasetConfig,),
    "engine": (EngineConfig,),
    "reranker": (RerankerConfig,),
    "search": (SearchConfig,),
    "store": (StoreConfig,),
}
"""The dataclass of each part of the config; its fields are the valid settings."""

PATHS = re.compile(r"results_dir|cache_dir|dataset\.path|model\.checkpoints\.\w+\.path")
"""Settings with a path, which may contain characters that Hydra's grammar reserves: ~ = ( ) and letters such as ü."""

READABLE = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "SCRATCH", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
    *("HF_HOME", "IR_DATASETS_HOME", "SLURM_JOB_ID", "SLURM_TMPDIR"),
)
"""The environment variables that settings may read, besides EVALKIT_…."""

REPLACED_MAPS = re.compile(r"model\.(checkpoints(\.\w+)?|(query|document)\.max_tokens|k1|b|fields|analyzer|adapter)")
"""Settings that map names (a dim, a dataset, a language) to values: `{…}` replaces the map and does not extend it."""
CHECKPOINT_PLACE = re.compile(r"(model\.checkpoints\.\w+)\.(package|repo)")
"""The place of a checkpoint. If one is given, places that are tried before it are removed."""

LISTS = ("dim", "metrics")
"""Settings for which several values are a list: `dim=128,64` is not a sweep."""
LISTED = "ranx's names, added to the three of every result: metrics=[map,recall@50]"
"""The description of `metrics` in `evalkit ls settings`."""
SWEEP_FLAGS = ("-m", "--multirun")
SHOW_FLAGS = ("--cfg", "-c", "--info", "-i")


def _cache_folder() -> str:
    """Return the default of `cache_dir`. Without HOME, the home folder is read from the user database."""
    if chosen := os.environ.get("EVALKIT_CACHE"):
        return chosen
    home = os.path.expanduser("~")  # noqa: PTH111 (if there is no home, Path.home raises RuntimeError)
    if home == "~":
        raise ConfigError("got neither EVALKIT_CACHE nor a home folder; set cache_dir=DIR or EVALKIT_CACHE")
    return f"{home}/.cache/evalkit"


OmegaConf.register_new_resolver("cache_folder", _cache_folder, replace=True)


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the config of one combination of settings. Raises ConfigError for an unknown name, key or value.

    Raises ConfigError also if a word has several values: a sweep needs `-m`. Calls in several threads take turns,
    because Hydra has one state per process.
    """
    blocks = expanded(overrides)
    if blocks[0] != list(overrides) and len(combinations(overrides)) > 1:
        msg = f"{' '.join(word for word in overrides if _sweeps_of(word))} is a sweep; add -m to run its combinations"
        raise ConfigError(msg)
    checked = check_overrides(blocks[0], sweep=False)
    with _composing:
        return _composed(checked)


_composing = threading.RLock()


def _composed(checked: Sequence[str]) -> RunConfig:
    """Return the config of checked overrides."""
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
            composed = hydra.compose("config", overrides=[*_search_path(), *checked])
            return _validated(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error


class Outcome(NamedTuple):
    """The outcome of one combination of a sweep."""

    combination: str
    """The combination's words among those that have several values; empty if there are none."""
    done: Mapping[str, Any]
    """The return value of `run`; empty if it failed."""
    error: str | None
    """The message of the error that stopped it; None if it succeeded."""


def hand_to_hydra(
    arguments: Sequence[str],
    run: Callable[[RunConfig], Mapping[str, Any]],
    *,
    complain: Callable[[str], None],
    make_folder: Callable[[Path], None],
    write: Callable[[Path, bytes], None],
) -> list[Outcome]:
    """Let Hydra run a sweep or show a config: `-m`, `--cfg job`, launcher and sweeper plugins.

    `run` is called once for every combination. If it raises EvalkitError, `complain` is called with the message at
    once, and the other combinations still run. `make_folder` creates the folder for Hydra's record of a sweep, and
    `write` writes the file with a combination's outcome. A launcher may call `run`, `complain` and `write` in other
    processes, so they must be importable by name.

    Raises ConfigError before anything runs if a name is wrong, and after showing a config that could not be run.
    """
    words = [word for word in arguments if _is_override(word)]
    rest = [word for word in arguments if not _is_override(word)]
    sweep, shown = (any(word in flags for word in rest) for flags in (SWEEP_FLAGS, SHOW_FLAGS))
    if sweep and shown:
        msg = f"got {' '.join(rest)}, wanted one of them: a config is shown for one combination (also: evalkit plan)"
        raise ConfigError(msg)
    if not sweep and any(_sweeps_of(word) for word in words):
        compose(words)
    blocks = [(block, check_overrides(block, sweep=sweep)) for block in expanded(words)[: None if sweep else 1]]
    launcher = _launcher(words)
    if sweep:  # Hydra prints a traceback if it cannot create a folder
        folder = compose([word for word in words if word.startswith("cache_dir=")]).cache_dir / "hydra"
        make_folder(folder)
    else:
        folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="sweep-", dir=folder) as outcomes:
        for place, (block, checked) in enumerate(blocks):
            swept = frozenset(override.key_or_group for _, override in _parsed(block) if override.is_sweep_override())
            if len(blocks) > 1:
                swept |= {"model", "dataset"}
            job = _job(run, complain, write, swept, Path(outcomes).absolute() / f"{place:03}")
            entry = hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")(job)
            before = sys.argv
            sys.argv = ["evalkit", *rest, *_search_path(), *checked]
            try:
                entry()
            except SystemExit:
                if not sweep or launcher == "basic":
                    raise
                complain(f"hydra/launcher={launcher} failed; see its messages above, or its logs under {folder}")
            finally:
                sys.argv = before
        found = [_read_outcome(path) for path in sorted(Path(outcomes).rglob("*.json"))]
    if shown:
        compose(words)
    if sweep and len(found) < (wanted := len(combinations(words))):
        found.append(Outcome(f"{wanted - len(found)} more", {}, "ended without a message"))
    return found


_last_reason: list[str] = []
"""The last printed reason and remedy for a failed download; a sweep without a network prints them only once."""


def _say_failed(combination: str, error: EvalkitError, complain: Callable[[str], None]) -> None:
    """Call `complain` with the combination that failed and the reason: one line, or four for a failed download."""
    first, *rest = lines(error)
    if not combination:
        said = [first, *rest]
    elif rest and rest == _last_reason:
        said = [f"{combination}: could not be fetched, for the same reason; {first}"]
    elif rest:
        _last_reason[:] = rest
        said = [f"{combination}: could not be fetched", *(f"  {line}" for line in (first, *rest))]
    else:
        said = [f"{combination}: {first}"]
    for line in said:
        complain(line)


def _job(
    run: Callable[[RunConfig], Mapping[str, Any]],
    complain: Callable[[str], None],
    write: Callable[[Path, bytes], None],
    swept: frozenset[str],
    outcomes: Path,
) -> Callable[[DictConfig], None]:
    """Return the function that Hydra calls for each combination, in any process; it writes its result to a file."""

    def job(composed: DictConfig) -> None:
        done: Mapping[str, Any] = {}
        failure: str | None = None
        given = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
        combination = " ".join(word for word in given if word.partition("=")[0] in swept)
        try:
            done = run(_validated(composed))
        except EvalkitError as error:
            failure = str(error)
            _say_failed(combination, error, complain)
        number = int(HydraConfig.get().job.num) if swept else 0  # Hydra counts the combinations of a sweep
        facts = {"combination": combination, "done": done, "error": failure}
        write(outcomes / f"{number:06}.json", json.dumps(facts).encode())

    return job


def _read_outcome(path: Path) -> Outcome:
    return Outcome(**json.loads(path.read_text(encoding="utf-8")))


LAUNCHERS: Mapping[str, tuple[str, str]] = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
"""Launchers in packages of their own: the module, and evalkit's extra that installs it."""


def _launcher(words: Sequence[str]) -> str:
    """Return the requested launcher. Raises ConfigError if its package is not installed."""
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
    """Return every combination of the words' values, as words. Raises ConfigError for an invalid word.

    >>> combinations(["model=demo,bm25", "dim=128,64"])
    [('model=demo', 'dim=128,64'), ('model=bm25', 'dim=128,64')]
    """
    found: list[tuple[str, ...]] = []
    for block in expanded(overrides):
        check_overrides(block, sweep=True)
        choices = []
        for word, override in _parsed(block):
            several = override.is_sweep_override() and override.key_or_group not in LISTS
            key = override.key_or_group
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if several else [word])
        found += product(*choices)
    return list(dict.fromkeys(found))


def expanded(words: Sequence[str]) -> list[list[str]]:
    """Return the lists of words to run: one for each sweep that an experiment lists, else the given words.

    A given word replaces the same setting in the experiment's sweeps. Raises ConfigError for several experiments if
    one of them lists sweeps.
    """
    sweeps = [sweep for word in words for sweep in _sweeps_of(word)]
    if not sweeps:
        return [list(words)]
    given = {word.lstrip("+").partition("=")[0] for word in words}
    rest = [word for word in words if not _sweeps_of(word)]  # an experiment that lists sweeps has no other settings
    found = [[*(word for word in sweep.split() if word.partition("=")[0] not in given), *rest] for sweep in sweeps]
    return [block for place, block in enumerate(found) if block not in found[:place]]


def _sweeps_of(word: str) -> list[str]:
    """Return the sweeps that an experiment lists under `sweeps`; empty for any other word."""
    group, _, value = word.partition("=")
    if group != "experiment":
        return []
    names = value.split(",")
    found = [sweep for name in names if name in group_names("experiment") for sweep in _listed_sweeps(name)]
    if found and len(names) > 1:
        msg = f"{word}: got {len(names)} experiments, of which one lists sweeps; run each by its own command"
        raise ConfigError(msg)
    return found


def _listed_sweeps(experiment: str) -> list[str]:
    values = settings_in(group_files("experiment")[experiment], "experiment")
    return [str(sweep) for sweep in values.get("sweeps", ())]


def _search_path() -> list[str]:
    """Return the override that adds the user's own folders to Hydra's search path; empty if there are none."""
    folders = ",".join(_quoted(f"file://{folder}") for folder in own_configs_dirs())
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def _validated(composed: DictConfig) -> RunConfig:
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        setting = f"{error.full_key}: " if error.full_key else ""
        if own := _own_error(error):
            raise ConfigError(f"{setting}{own}") from error
        hint = "; an environment variable is written ${oc.env:NAME}" if setting else ""
        raise ConfigError(f"{setting}{_first_line(error)}{hint}") from error
    assert isinstance(values, dict)
    _refuse_secrets(values)
    config = run_config({str(key): value for key, value in values.items()})
    if isinstance(config.model, RunFileConfig):
        msg = f"model {config.model.name!r}: got a system that only has a run file, wanted a model to run"
        raise ConfigError(f"{msg}; evalkit score RUN_FILE --system {config.model.name} scores it")
    return config


def _own_error(error: BaseException | None) -> ConfigError | None:
    """Return the ConfigError among an error and its causes, or None."""
    while error is not None and not isinstance(error, ConfigError):
        error = error.__cause__ or error.__context__
    return error


def _refuse_secrets(values: Mapping[Any, Any], prefix: str = "") -> None:
    """Raise ConfigError for a setting whose value is a secret: settings are written to files."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_secrets(value, f"{prefix}{key}.")
        elif name := texts.secret_in(str(value)):
            msg = f"{prefix}{key}: got the value of {name}, which is a secret; settings are written to files"
            raise ConfigError(f"{msg}: leave it in the environment")


def _environment(name: str, *default: str) -> str:
    """Resolve `${oc.env:NAME}` and `${oc.env:NAME,default}` for names that cannot hold secrets.

    Raises ConfigError for any other name, and for a variable that is not set and has no default. `_validated` puts the
    setting's name before the message.
    """
    if not name.startswith("EVALKIT_") and name not in READABLE:
        msg = f"got ${{oc.env:{name}}}, a variable that may not be read into settings, which are written to files"
        raise ConfigError(f"{msg}; wanted EVALKIT_… or one of {', '.join(READABLE)}")
    found = os.environ.get(name)
    if found is None and not default:
        msg = f"got ${{oc.env:{name}}}, but {name} is not set; set it, or give the value itself"
        raise ConfigError(msg)
    return found if found is not None else str(default[0])


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def check_overrides(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Check every group, name and key of overrides, and return them as Hydra needs them.

    A setting that no YAML file mentions may be given like any other. `dim=128,64` means the list, in sweeps too: dims
    that share a backbone then share one pass over the corpus. `dataset.path` without a dataset means `dataset=folder`,
    because the default, the demo, is not read from a folder. Raises ConfigError for an invalid word, and without
    `sweep` for a word of several values.
    """
    parsed = list(_parsed(overrides))
    checked = [
        part for word, override in parsed for part in (*_emptied(override), _checked(word, override, sweep=sweep))
    ]
    keys = {override.key_or_group for _, override in parsed}
    if "dataset.path" in keys and keys.isdisjoint({"dataset", "experiment"}):
        _say_folder()
        checked.append("dataset=folder")
    return checked


@cache
def _say_folder() -> None:
    """Log once that a path without a dataset means `dataset=folder`."""
    log.warning("dataset.path is given without dataset=NAME, so it is read as dataset=folder and named by its folder")


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Yield every word in Hydra's grammar with its parsed override; quote paths, and expand patterns of names.

    Raises ConfigError for a word that is not an override, contains a secret, or is a pattern that matches no name.
    """
    parser = OverridesParser.create()
    for typed in overrides:
        _refuse_unusable(typed)
        if not _is_override(typed):
            groups = [group for group in GROUPS if typed in group_names(group)]
            named = " or ".join(f"{group}={typed}" for group in groups)
            meant = f"; did you mean {named}?" if groups else ", for example model=bm25"
            msg = f"got {typed!r}, wanted setting=value{meant}"
            raise ConfigError(msg)
        key, _, text = typed.partition("=")
        word = f"{key}={_path_quoted(key, text)}" if PATHS.fullmatch(key.lstrip("+")) else typed
        try:
            override = parser.parse_override(word)
            pattern: Any = override.value()
        except HydraException as error:
            msg = f"got {typed!r}, wanted setting=value in Hydra's grammar"
            raise ConfigError(f"{msg} ({_first_line(error)}); quote the value: {key}='\"…\"'") from error
        if isinstance(pattern, Glob) and override.key_or_group in GROUPS:
            # Hydra's own patterns do not look into sub-folders such as dataset/beir.
            names = pattern.filter(list(group_names(override.key_or_group)))
            if not names:
                msg = f"{word} matches no {override.key_or_group} (evalkit ls {LISTING[override.key_or_group]})"
                raise ConfigError(msg)
            word = f"{key}={'choice({})'.format(','.join(names))}"
            override = parser.parse_override(word)
        yield word, override


def _refuse_unusable(word: str) -> None:
    """Raise ConfigError for a word that contains a secret, or bytes that are not UTF-8."""
    if name := texts.secret_in(word):
        msg = f"{word.partition('=')[0]}: got the value of {name}, which is a secret; settings are written to files"
        raise ConfigError(f"{msg}: leave it in the environment")
    try:
        word.encode()
    except UnicodeEncodeError as error:
        msg = f"got {word!r}, wanted text in UTF-8; rename the file or folder, or set PYTHONUTF8=1"
        raise ConfigError(msg) from error


def _path_quoted(key: str, text: str) -> str:
    """Quote a path for Hydra, so that it stays as typed: 1_0, true and 2026_09_24 can be names.

    A comma separates several paths, as it separates other values. Quoted text is kept, and so is null.
    """
    if not text or text[0] in "'\"" or text.startswith(("choice(", "glob(")):
        return text
    if text == "null" and key.lstrip("+") not in ("results_dir", "cache_dir"):
        return text
    parts = (at_home(key, part) if part.startswith("~") else part for part in text.split(","))
    return ",".join(_quoted(part) for part in parts)


def _quoted(text: str) -> str:
    """Quote for Hydra's grammar: a backslash escapes a quote, and a backslash that precedes a quote."""
    return "'{}'".format(re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text))


def _checked(word: str, override: Override, *, sweep: bool) -> str:
    """Return a word as Hydra needs it. Raises ConfigError for an unknown name or key, or for several values."""
    key, text = override.key_or_group, word.partition("=")[2]
    if key.split(".")[0].split("/")[0] == "hydra":
        return word
    if override.is_delete():
        msg = f"got {word!r}, wanted setting=value; settings cannot be removed"
        raise ConfigError(msg)
    if key in LISTS and override.is_choice_sweep():
        # Several lists are one list: dim=[128,96],[64] means all three dims, each once.
        values = ",".join(override.sweep_string_iterator()).replace("[", "").replace("]", "").split(",")
        return f"{key}=[{','.join(dict.fromkeys(values))}]"
    if override.is_sweep_override() and not sweep:
        several = word if not PATHS.fullmatch(key) else word.replace("'", "")
        msg = f"{several} gives several values; add -m to run each of them"
        quote = f", or quote a comma that is part of the path: {key}='\"…,…\"'" if PATHS.fullmatch(key) else ""
        raise ConfigError(f"{msg}{quote}")
    if key in GROUPS:
        for name in _values(override):
            if name not in (None, *group_names(key)):
                msg = f"{key} {str(name)!r} unknown; {_meant(str(name), group_names(key))} (evalkit ls {LISTING[key]})"
                raise ConfigError(msg)
            _refuse_other_name(key, name)
        return word
    valid = all_settings()
    if key not in valid and not key.startswith("model.checkpoints."):
        msg = f"setting {key!r} unknown; {_meant(key, valid)} (evalkit ls settings)"
        raise ConfigError(msg)
    return f"{key}={text}" if key in ("results_dir", "cache_dir", *LISTS) else f"++{key}={text}"


def _emptied(override: Override) -> list[str]:
    """Return the overrides that first remove the values that a word replaces; Hydra would merge old and new ones."""
    key = override.key_or_group
    if REPLACED_MAPS.fullmatch(key) and isinstance(override.value(), dict):
        return [f"++{key}=null"]
    if place := CHECKPOINT_PLACE.fullmatch(key):
        return [f"++{place[1]}.{other}=null" for other in ("path", "package") if other != place[2]]
    return []


def _refuse_other_name(group: str, name: str | None) -> None:
    """Raise ConfigError for a user's config whose `name` is not its file's name: results would have another name."""
    if name is None or group not in ("model", "dataset") or not own_configs_dirs():
        return
    path = group_files(group)[name]
    if path.is_relative_to(configs_dir()):
        return
    values = settings_in(path, group)
    if values.get("name") != name.removeprefix(f"{GIVEN}/"):
        msg = f"{path}: got name {values.get('name')!r}, wanted {name!r}, the name of the file; rename one of the two"
        raise ConfigError(msg)


MEANT: Mapping[str, tuple[str, ...]] = {
    "batch": ("engine.batch_tokens",),
    "batch_size": ("engine.batch_tokens",),
    "dims": ("dim",),
    "force": ("--force",),
    "gpu": ("engine.device",),
    "k": ("search.depth",),
    "max_length": ("model.document.max_tokens", "model.query.max_tokens"),
    "output": ("results_dir",),
    "output_dir": ("results_dir",),
    "path": ("dataset.path",),
    "top_k": ("search.depth",),
    "wide": ("--wide",),
}
"""Common other names of settings, with evalkit's names."""


def _meant(name: str, valid: Iterable[str]) -> str:
    """Return a clause with likely meanings of a word: a synonym, names that contain it as a part, or similar ones.

    >>> _meant("msmarco", ["mmarco/zh", "msmarco/dev-small"]), _meant("batch_size", [])
    ('did you mean msmarco/dev-small?', 'did you mean engine.batch_tokens?')
    """
    valid = list(valid)
    known = MEANT.get(name) if name not in valid else None
    parts = known or tuple(one for one in valid if name in re.split(r"[/.]", one))[:MOST_MEANT]
    return f"did you mean {' or '.join(parts)}?" if parts else nearest(name, valid)


MOST_MEANT = 3
"""Most names with a shared part that a message lists."""


def completions(incomplete: str, *, whole: bool = True) -> list[str]:
    """Return the completions of a word, such as `model=demo`; without `whole`, only the part after the `=`."""
    key, equals, value = incomplete.partition("=")
    if not equals:
        first = [f"{name}=" for name in (*GROUPS, "dim", "results_dir", "cache_dir")]
        known = first if not incomplete else [*first, *(f"{name}=" for name in all_settings() if "." in name)]
        return [name for name in known if name.startswith(incomplete)]
    before, _, last = value.rpartition(",")
    front = f"{before}," if before else ""
    names = [front + name for name in group_names(key) if name.startswith(last)] if key in GROUPS else []
    return [f"{key}={name}" if whole else name for name in names]


def _values(override: Override) -> list[Any]:
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    return [override.value()]


def all_settings() -> dict[str, str]:
    """Return every setting of the command line with a description of its type; groups come first."""
    folders = dict.fromkeys(("results_dir", "cache_dir"), "a folder")
    named = {
        **{group: f"a name (evalkit ls {LISTING[group]})" for group in GROUPS},
        "dim": "a number or a list",
        "metrics": LISTED,
        **folders,
    }
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
