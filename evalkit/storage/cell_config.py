"""A config as plain values, and the config.yaml of a finished cell, which contains no path of the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evalkit.config.settings import RunConfig, run_config
from evalkit.errors import ConfigError
from evalkit.storage import results, untrusted
from evalkit.storage.paths import run_dir, write_atomic

LOCAL = "local.yaml"
"""The paths of this machine, separate from the settings. The file may be deleted, and is not published.

They are absolute, so that they mean the same from every folder.
"""
DATASET_PATH = "dataset.path"


def plain(value: Any) -> Any:
    """Convert frozen dataclasses, tuples and paths to values that YAML can contain."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def config_of(values: Mapping[str, Any], *, dataset_path: Path | None = None) -> RunConfig:
    """Undo `plain` for the settings of a cell; `dataset_path` is the dataset's new place if it was moved.

    Raises ConfigError, KeyError, TypeError or AttributeError if these are not settings of this version of evalkit.
    """
    settings = {("dim" if name == "dims" else name): value for name, value in values.items()}
    if dataset_path is not None:
        settings["dataset"] = {**settings["dataset"], "path": str(dataset_path)}
    if settings["dim"] == [None]:
        settings["dim"] = None
    return run_config(settings)


def write(config: RunConfig, folder: Path, *, scored_again: bool = False) -> None:
    """Write a cell's settings to its folder, and this machine's paths to a separate file.

    The settings therefore have the same meaning on every machine and reveal nothing about this one. `scored_again`
    keeps the existing settings, except the dataset and the metrics.
    """
    values = plain(config)
    local = {name: str(Path(_pop_setting(values, name)).absolute()) for name in _path_settings(values)}
    if scored_again and (before := _mapping(folder / results.CONFIG)):
        values = {**before, "dataset": values["dataset"], "metrics": values["metrics"]}
        others = {name: value for name, value in _mapping(folder / LOCAL).items() if name != DATASET_PATH}
        local = {**others, **{name: value for name, value in local.items() if name == DATASET_PATH}}
    for name, content in ((LOCAL, local), (results.CONFIG, values)):
        write_atomic(folder / name, yaml.safe_dump(content, sort_keys=False).encode())


def _mapping(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; an empty mapping if it does not exist or cannot be read."""
    try:
        found = untrusted.read_yaml(path)
    except untrusted.UnreadableError:
        return {}
    return found if isinstance(found, dict) else {}


def _path_settings(values: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the settings that contain a path."""
    checkpoints = [f"model.checkpoints.{dim}.path" for dim in (values["model"].get("checkpoints") or {})]
    reranker = ["reranker.checkpoint.path"] if values.get("reranker") else []
    names = ["results_dir", "cache_dir", DATASET_PATH, *checkpoints, *reranker]
    return [name for name in names if _setting(values, name) is not None]


def _group_of(values: Any, name: str) -> tuple[Any, str]:
    """Return the mapping that contains a setting, given by its dotted name, and the setting's key there."""
    *above, last = name.split(".")
    for part in above:
        values = values[part]
    return values, last


def _setting(values: Any, name: str) -> Any:
    group, key = _group_of(values, name)
    return group[key]


def _pop_setting(values: dict[str, Any], name: str) -> Any:
    """Return a setting by its dotted name and replace it by null."""
    group, key = _group_of(values, name)
    value, group[key] = group[key], None
    return value


def saved(results_dir: Path, cell: results.CellScores, *, dataset_path: Path | None = None) -> RunConfig:
    """Return the config of a finished cell; the dataset's source that it used comes first.

    Paths are those of the original machine, if the cell's folder still contains them.

    Raises ConfigError if the config cannot be read any more, and ScoreError if it was edited.
    """
    path = run_dir(results_dir, cell.run_id) / results.CONFIG
    results.require_unedited(results_dir, cell, results.CONFIG)
    try:
        values = untrusted.read_yaml(path)
        for name, value in _mapping(path.with_name(LOCAL)).items():
            group, key = _group_of(values, name)
            group[key] = value
        values["results_dir"] = values.get("results_dir") or str(results_dir)
        values["cache_dir"] = values.get("cache_dir") or str(results_dir.parent / "cache")
        config = config_of(values, dataset_path=dataset_path)
    except (untrusted.UnreadableError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path}: not the settings of a cell ({error}); run the cell again"
        raise ConfigError(msg) from error
    used = str(cell.environment.get("dataset_source")).partition(" ")[0]
    sources = tuple(sorted(config.dataset.sources, key=lambda name: name != used))
    return dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, sources=sources))
