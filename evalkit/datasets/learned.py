"""Store the checksum of a corpus's first complete read, so that later reads can be compared with it.

Few datasets have a published checksum, and ir-datasets does not verify files that were copied into its folder. A source
with a revision (an id in an ir-datasets version, a commit on the Hub) must always give the same corpus, so the checksum
of its first complete read is kept in the cache. A user's own folder may change, so its checksum is not kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, NamedTuple

import xxhash

from evalkit.config.settings import DatasetConfig
from evalkit.datasets.survey import Survey
from evalkit.storage import seal
from evalkit.storage.paths import learned_file, write_atomic
from evalkit.types import Dataset

REVISIONED: Final = ("ir_datasets", "hub", "mirror")
"""The sources with a revision, each of which always gives the same corpus."""

Verified = Literal["checksum", "learned", "counts", "nothing"]
"""What a corpus was verified against: the config's checksum, that of the first read, published counts, or nothing."""


class Learned(NamedTuple):
    """The checksum of a corpus, and the file that contains it."""

    checksum: str
    path: Path


def recall(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> Learned | None:
    """Return the checksum of a corpus's first complete read from its source, or None if it is missing or damaged."""
    path = _path(cache_dir, dataset, config)
    if path is None:
        return None
    try:
        return Learned(str(seal.read(path.read_bytes())["checksum"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remembered_in(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> tuple[Path, ...]:
    """Return the file with the checksum of a dataset's first complete read, if there is one; for bundles."""
    path = _path(cache_dir, dataset, config)
    return (path,) if path is not None and path.is_file() else ()


def dataset_of(path: Path) -> str:
    """Return the name of the dataset that a file of this module belongs to, or "" if the file is damaged."""
    try:
        return str(seal.read(path.read_bytes())["dataset"])
    except (OSError, ValueError, KeyError):
        return ""


def keep(cache_dir: Path, dataset: Dataset, config: DatasetConfig, survey: Survey) -> None:
    """Store the checksum of a corpus that was read completely and has no deviation; a user's folder is left out."""
    if (path := _path(cache_dir, dataset, config)) is not None:
        facts = {**_facts(dataset, config), "documents": survey.documents, "checksum": survey.checksum}
        write_atomic(path, f"{json.dumps(seal.seal(facts), ensure_ascii=False, indent=1)}\n".encode())


def verified(config: DatasetConfig, learned: Learned | None) -> Verified:
    """Return the strongest of the values that a corpus was verified against."""
    if config.checksum is not None:
        return "checksum"
    if learned is not None:
        return "learned"
    counts = (config.counts.documents, config.counts.queries, config.counts.judgements)
    return "counts" if any(count is not None for count in counts) else "nothing"


def _path(cache_dir: Path, dataset: Dataset, config: DatasetConfig) -> Path | None:
    if dataset.source.partition(" ")[0] not in REVISIONED:
        return None
    return learned_file(cache_dir, dataset.name, xxhash.xxh3_64_hexdigest(json.dumps(_facts(dataset, config)).encode()))


def _facts(dataset: Dataset, config: DatasetConfig) -> dict[str, str]:
    return {"dataset": dataset.name, "source": dataset.source, "template": config.template}
