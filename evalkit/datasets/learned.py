"""The checksum that a corpus had when it was first read whole; every later read is held against it.

Few datasets have a published checksum, and ir-datasets does not verify files that were laid into its folder by hand. A
source with a revision (an id of an ir-datasets version, a commit on the Hub) must give the same corpus every time, so
its first whole read is kept in the cache. A user's own folder may change, and is not remembered.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, NamedTuple

import xxhash

from evalkit.config.settings import DatasetConfig
from evalkit.datasets.survey import Survey
from evalkit.storage import seal
from evalkit.storage.paths import learned_file, write_whole
from evalkit.types import Dataset

_REVISIONED: Final = ("ir_datasets", "hub", "mirror")

Verified = Literal["checksum", "learned", "counts", "nothing"]
"""What a corpus was held against: a checksum in the config, that of an earlier read, published counts, or nothing."""


class Learned(NamedTuple):
    """A corpus' checksum, and the file that remembers it."""

    checksum: str
    path: Path


def recall(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> Learned | None:
    """Return the checksum of the first whole read of a dataset from its source, or None where there was none."""
    path = _path(cache_dir, dataset, config)
    if path is None:
        return None
    try:
        return Learned(str(seal.read(path.read_bytes())["checksum"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remembered_in(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> tuple[Path, ...]:
    """Return the file that remembers a dataset's first whole read, where there is one; for bundles."""
    path = _path(cache_dir, dataset, config)
    return (path,) if path is not None and path.is_file() else ()


def dataset_of(path: Path) -> str:
    """Return the name of the dataset that a file of this module remembers, or nothing where it is damaged."""
    try:
        return str(seal.read(path.read_bytes())["dataset"])
    except (OSError, ValueError, KeyError):
        return ""


def keep(cache_dir: Path, dataset: Dataset, config: DatasetConfig, survey: Survey) -> None:
    """Remember a corpus that was read whole and does not deviate."""
    if (path := _path(cache_dir, dataset, config)) is not None:
        facts = {**_facts(dataset, config), "documents": survey.documents, "checksum": survey.checksum}
        write_whole(path, f"{json.dumps(seal.seal(facts), ensure_ascii=False, indent=1)}\n".encode())


def verified(config: DatasetConfig, learned: Learned | None) -> Verified:
    """Name the strongest proof that a corpus was held against."""
    if config.checksum is not None:
        return "checksum"
    if learned is not None:
        return "learned"
    counts = (config.counts.documents, config.counts.queries, config.counts.judgements)
    return "counts" if any(count is not None for count in counts) else "nothing"


def _path(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> Path | None:
    if dataset.source.partition(" ")[0] not in _REVISIONED:
        return None
    return learned_file(cache_dir, dataset.name, xxhash.xxh3_64_hexdigest(json.dumps(_facts(dataset, config)).encode()))


def _facts(dataset: Dataset, config: DatasetConfig) -> dict[str, str]:
    return {"dataset": dataset.name, "source": dataset.source, "template": config.template}
