"""How a cell's dataset is named for people: with its split, unless that is the split on which it is usually scored."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from evalkit.config.files import settings_in
from evalkit.config.settings import configs_dir, own_configs_dirs
from evalkit.errors import ConfigError
from evalkit.storage.results import CellScores

USUAL_SPLIT = "test"
"""The usual split of a dataset without a config of its own."""


def shown(cell: CellScores) -> str:
    """Return a cell's dataset, followed by its split in parentheses if that is not the dataset's usual one.

    Every table and plot groups cells by this name, so that two splits never meet under one.
    """
    return cell.dataset if cell.split == _usual_split(cell.dataset) else f"{cell.dataset} ({cell.split})"


def family(cell: CellScores) -> str:
    """Return the name of the collection over which a cell is averaged: no mean is over two splits of a dataset."""
    return cell.dataset.partition("/")[0] + shown(cell).removeprefix(cell.dataset)


def order(cell: CellScores) -> tuple[object, ...]:
    """Return the key by which tables sort cells: those on one split together, the greatest dim first."""
    return cell.dataset, cell.split, cell.model, -(cell.dim or 0), cell.search != "exact"


def _usual_split(dataset: str) -> str:
    """Return the split in the dataset's config, which has the dataset's name."""
    for folder in (configs_dir(), *own_configs_dirs()):
        path = folder / "dataset" / f"{dataset}.yaml"
        if path.is_file():
            return _split_in(path, path.stat().st_mtime_ns)
    return USUAL_SPLIT


@lru_cache(maxsize=1024)
def _split_in(path: Path, _modified: int) -> str:
    try:
        return str(settings_in(path, "dataset").get("split", USUAL_SPLIT))
    except ConfigError:
        return USUAL_SPLIT
