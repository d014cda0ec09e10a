"""Write configs for models and datasets of the user's own, from the facts in a checkpoint or a folder.

`evalkit new` keeps the config in a file. A folder or a repository in place of a name (`model=./checkpoint`) makes the
same config for one command, and prints first which facts were read and which were assumed.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from evalkit.config.files import settings_in
from evalkit.config.settings import (
    GIVEN,
    CheckpointSource,
    DatasetConfig,
    EncoderConfig,
    folder_name,
    from_mapping,
    group_files,
    group_names,
)
from evalkit.datasets import infer as datasets
from evalkit.errors import ConfigError
from evalkit.storage.paths import write_atomic

PATH: Final = re.compile(r"(\.{1,2}|~[^/]*)?/.*|\.{1,2}|~")
"""A word that must be a path, because no config's name begins like this."""
REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")
NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
"""A name that is valid in a file name, on the command line and in a table."""


class Written(NamedTuple):
    """A new config: its file, and the lines that say which facts were read or assumed."""

    path: Path
    lines: tuple[str, ...]


def new_model(name: str, source: str, folder: Path) -> Written:
    """Write `model/NAME.yaml` in a folder of configs from a checkpoint's own files.

    Raises ConfigError for a name that is invalid or taken, and other EvalkitError subclasses for unusable files.
    """
    path = _new_config_file("model", name, folder)
    text, lines = _model_text(name, checkpoint_source(source))
    write_atomic(path, text.encode())
    return Written(path, tuple(lines))


def new_dataset(
    name: str, source: str, folder: Path, *, language: str | None, split: str | None, cache_dir: Path
) -> Written:
    """Write `dataset/NAME.yaml` in a folder of configs from a BEIR-format folder, after a pass over its documents.

    Raises ConfigError for a name that is invalid or taken, and other EvalkitError subclasses for unusable data.
    """
    path = _new_config_file("dataset", name, folder)
    facts = datasets.infer(Path(source), name=name, language=language, split=split)
    facts = datasets.measured(facts, cache_dir=cache_dir)
    write_atomic(path, _dataset_text(facts).encode())
    return Written(path, tuple(datasets.lines(facts)))


def checkpoint_source(given: str) -> CheckpointSource:
    """Parse the source of a checkpoint: an existing folder, else a Hub repository OWNER/NAME or OWNER/NAME@COMMIT.

    Raises ConfigError for anything else.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        return CheckpointSource(path=str(folder.absolute()))
    repo, _, revision = given.partition("@")
    if PATH.fullmatch(given) or not REPOSITORY.fullmatch(repo):
        msg = f"got {given!r}, wanted the folder of a checkpoint, or a hub repository as OWNER/NAME"
        raise ConfigError(f"{msg}; there is no such folder")
    return CheckpointSource(repo=repo, revision=revision or None)


ASSUMED = ("language", "drop_self", "main_metric")
"""Settings that no file of a dataset states, and that a word of the command may give."""


def with_temporary_configs(words: Sequence[str], *, say: Callable[[str], None]) -> tuple[list[str], Path | None]:
    """Replace folders and repositories among the words by names; return the words and a folder with their configs.

    `say` is called with each fact that was read or assumed. The folder is None if the words have only names. Raises
    EvalkitError subclasses for a folder or repository that cannot be read.
    """
    configs: Path | None = None
    changed: list[str] = []
    for word in words:
        group, equals, text = word.partition("=")
        values = text.split(",")
        if not equals or group not in ("model", "dataset") or not any(_is_given(group, value) for value in values):
            changed.append(word)
            continue
        configs = configs or _scratch()
        names = [
            _write_temporary(group, value, words, configs, say) if _is_given(group, value) else value
            for value in values
        ]
        changed.append(f"{group}={','.join(names)}")
    return changed, configs


def _stated_fact(key: str, text: str) -> datasets.Fact:
    """Return a fact of a dataset that a word of the command states."""
    return datasets.Fact(text == "true" if key == "drop_self" else text, "as you said")


def _is_given(group: str, value: str) -> bool:
    """Whether a value is a folder or a repository rather than a name."""
    if value in group_names(group):
        return False
    if PATH.fullmatch(value):
        return True
    if group == "model" and REPOSITORY.fullmatch(value.partition("@")[0]):
        return True
    return "/" in value and Path(value).is_dir()


def _write_temporary(group: str, value: str, words: Sequence[str], configs: Path, say: Callable[[str], None]) -> str:
    """Write a config for one command and return the name that selects it."""
    chosen_name = next(
        (word.partition("=")[2] for word in words if word.lstrip("+").startswith(f"{group}.name=")), None
    )
    source = None if group == "dataset" else checkpoint_source(value)
    repo = None if source is None else source.repo
    default = _default_name(group, value) if repo is None else repo.partition("/")[2]
    name = chosen_name or default
    if chosen_name is None:
        _refuse_taken(group, name, value, source)
    if source is not None:
        text, lines = _model_text(name, source)
    else:
        split = next((word.partition("=")[2] for word in words if word.lstrip("+").startswith("dataset.split=")), None)
        facts = datasets.infer(Path(value), name=name, split=split)
        given = (word.lstrip("+").removeprefix("dataset.").partition("=") for word in words if "dataset." in word)
        facts |= {key: _stated_fact(key, text) for key, _, text in given if key in ASSUMED}
        text, lines = _dataset_text(facts), datasets.lines(facts)
    word = f"{GIVEN}/{name}"
    write_atomic(configs / group / f"{word}.yaml", text.encode())
    say(f"{group} {name}, made from {value}")
    for line in lines:
        say(f"  {line}")
    return word


def _default_name(group: str, value: str) -> str:
    """Return a folder's name, without characters that are invalid in a file name or on the command line.

    A dataset gets the name that `dataset=folder` gives it, so that both are the same dataset.
    """
    if group == "dataset":
        return folder_name(value)
    name = Path(value).expanduser().absolute().resolve().name
    cleaned = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return cleaned or "own"


def _refuse_taken(group: str, name: str, value: str, source: CheckpointSource | None) -> None:
    """Raise ConfigError if another config has the default name, because results of the two would be mixed up."""
    if name not in group_names(group):
        return
    own: Any = settings_in(group_files(group)[name], group)
    same = source is not None and any(
        known.get("repo") == source.repo for known in (own.get("checkpoints") or {}).values() if source.repo
    )
    if same:
        msg = f"{group} {value!r}: got a repository that a config reads, wanted that config: {group}={name}"
        raise ConfigError(f"{msg}; or give yours a name of its own: {group}.name=NAME")
    msg = f"{group} {value!r}: got {name!r} as its name, which a config has ({group_files(group)[name]})"
    raise ConfigError(f"{msg}; wanted a name of its own: {group}.name=NAME")


def _scratch() -> Path:
    """Create a temporary folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="evalkit-configs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _new_config_file(group: str, name: str, folder: Path) -> Path:
    """Return the file of a new config. Raises ConfigError for a name that cannot be one or is taken."""
    if not NAME.fullmatch(name):
        msg = f"{group} {name!r}: wanted letters, digits, - and _, with / between folders, for example team/{group}-1"
        raise ConfigError(msg)
    path = folder.expanduser() / group / f"{name}.yaml"
    if path.exists():
        msg = f"{path} is there already; wanted a new name, or remove the file first"
        raise ConfigError(msg)
    if name in group_names(group):
        msg = f"{group} {name!r} is a config already ({group_files(group)[name]}); wanted a name of its own"
        raise ConfigError(msg)
    return path


def _model_text(name: str, source: CheckpointSource) -> tuple[str, list[str]]:
    """Return a model's YAML with the source of every fact, and the lines to print. Raises EvalkitError subclasses."""
    from evalkit.models.infer import infer

    found = infer(source, name=name)
    text = _yaml(
        f"{name}: written from {found.origin}; what is marked as assumed no file of it says.",
        {"name": (name, ""), **{key: (fact.value, fact.source or "assumed") for key, fact in found.facts.items()}},
    )
    values = {key: value for key, value in found.values().items() if key != "adapter"}
    from_mapping(EncoderConfig, values, where="model")  # fails now if the facts are no valid config
    return text, found.lines()


def _dataset_text(facts: Mapping[str, datasets.Fact]) -> str:
    values = {key: fact.value for key, fact in facts.items()}
    from_mapping(DatasetConfig, values, where="dataset")
    return _yaml(
        f"{values['name']}: a BEIR-format folder; what is marked as assumed no file of it says.",
        {key: (fact.value, fact.source or "assumed") for key, fact in facts.items()},
    )


def _yaml(title: str, settings: Mapping[str, tuple[Any, str]]) -> str:
    """Return settings as YAML, one per line with its source as a comment; checkpoints have a line for each dim."""
    lines = [f"# {title}"]
    for key, (value, note) in settings.items():
        comment = f"  # {' '.join(note.split())}" if note else ""
        if key == "checkpoints":
            lines.append(f"{key}:{comment}")
            lines += [f"  {_flow(dim)}: {_flow(place)}" for dim, place in value.items()]
        else:
            lines.append(f"{key}: {_flow(value)}{comment}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text.strip().removesuffix("...").strip()
