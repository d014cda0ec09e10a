"""The other splits of a dataset: judgements of the same documents for other queries, some of which may be shared.

A run contains hits for the queries of one split. It can be scored on another split for the queries that both share (MS
MARCO's dev and dev/small, trec-dl's judgements of dev queries). A split without shared queries needs a run of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from evalkit import datasets
from evalkit.config.settings import DatasetConfig
from evalkit.datasets.folder import qrels_file, read_qrels
from evalkit.datasets.hub import load_hub, qrels_splits
from evalkit.datasets.irds import judgements
from evalkit.errors import DatasetError, EvalkitError
from evalkit.storage.network import network_off
from evalkit.types import Qrels


class OtherSplit(NamedTuple):
    """A split of the dataset other than the run's."""

    name: str
    judged: int
    """Number of its judged queries."""
    qrels: Qrels
    """Its judgements of queries that the run contains."""


def others(config: DatasetConfig, asked: Collection[str]) -> tuple[list[OtherSplit], list[str]]:
    """Return every other split on disk, and a line for each split whose judgements are missing or cannot be read.

    `asked` are the ids of the run's queries. Nothing is fetched. Raises DatasetError if the dataset is not on disk.
    """
    source = datasets.on_disk(config)
    if source is None:
        where = f"dataset.path={config.path}" if config.path else f"dataset {config.name}"
        msg = f"{where}: not on disk; give its present folder by --dataset-path, or fetch it first"
        raise DatasetError(msg)
    found, unread = [], []
    with network_off():
        for name, read in _READERS.get(source, _none)(config):
            try:
                qrels = read()
            except (EvalkitError, OSError, RuntimeError, ValueError, KeyError) as error:
                unread.append(f"split {name}: {' '.join(str(error).split())[:200]}")
                continue
            shared = {query: grades for query, grades in qrels.items() if query in asked}
            found.append(OtherSplit(name, len(qrels), shared))
    return sorted(found), unread


_Readers = Iterator[tuple[str, Callable[[], Qrels]]]
"""Pairs (name of a split, function that reads its judgements)."""


def _none(_config: DatasetConfig) -> _Readers:
    """Yield nothing: the demo has one split, and the splits of a NanoBEIR repository are other datasets."""
    yield from ()


def _folder(config: DatasetConfig) -> _Readers:
    folder = Path(str(config.path))
    names = {
        path.name.removesuffix(".gz").removesuffix(".tsv")
        for pattern in ("*.tsv", "*.tsv.gz")
        for path in (folder / "qrels").glob(pattern)
        if path.is_file()
    }
    for name in sorted(names - {config.split}):
        yield name, partial(_folder_qrels, folder, name)


def _folder_qrels(folder: Path, name: str) -> Qrels:
    return read_qrels(qrels_file(folder, name))


def _ir_datasets(config: DatasetConfig) -> _Readers:
    """Yield the other ids with the same documents: those below the shortest prefix of the id that has documents."""
    import ir_datasets

    own = str(config.ir_datasets_id)
    parts = own.split("/")
    prefixes = ["/".join(parts[: place + 1]) for place in range(len(parts))]
    base = next(name for name in prefixes if name in ir_datasets.registry and ir_datasets.load(name).has("docs"))

    for name in sorted(ir_datasets.registry):
        if name.startswith(f"{base}/") and name != own and ir_datasets.load(name).has("qrels"):
            yield name.removeprefix(f"{base}/"), partial(judgements, name)


def _hub(config: DatasetConfig) -> _Readers:
    copy = config.hub
    assert copy is not None  # datasets.on_disk found it
    own, names = copy.split or config.split, qrels_splits(copy)
    for name in names if len(names) > 1 else ():  # the only split is the run's own: no other could be read
        if name != own:
            other = dataclasses.replace(config, hub=dataclasses.replace(copy, split=name))
            yield name, partial(_hub_qrels, other)


def _hub_qrels(config: DatasetConfig) -> Qrels:
    return load_hub(config).qrels


_READERS: Mapping[str, Callable[[DatasetConfig], _Readers]] = {
    "folder": _folder,
    "ir_datasets": _ir_datasets,
    "hub": _hub,
}
"""The function that finds the other splits of each source; the sources without one have no other splits."""
