"""Proof that a cell used the weights with which its system's scores were published.

The packaged config of a system (configs/model/SYSTEM.yaml) names its published weights at each dim. Other weights given
on the command line do not change this reference; they are reported as a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from evalkit.config.settings import CheckpointSource, configs_dir
from evalkit.models.checkpoint import PICKLE, WEIGHTS, Checkpoint
from evalkit.storage import hub

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores

Proof = Literal["checksums", "repository", "vectors"]
"""How weights were proved to be the published ones.

`checksums`: every file that affects vectors has the checksum in the packaged config. `repository`: every such file is a
content-addressed blob of the published repository at the published commit. `vectors`: the loaded model reproduced the
published vectors. A plain file in a snapshot folder or the folder's name is not a proof.
"""
FILES = (WEIGHTS, PICKLE)
PARAMETERS_RTOL = 0.01
"""Largest accepted relative difference between a model's parameter count and the published one.

Published counts are rounded and leave out poolers or heads. The count detects a model of another size, such as a small
stand-in repository in the cache. It cannot detect changed weights; the proofs do that.
"""
_SHOWN_DIGITS = 8


class PublishedWeights(NamedTuple):
    """A system's weights according to its packaged config."""

    checkpoints: Mapping[str, CheckpointSource]
    """By dim, as text; empty for BM25, which has no weights."""
    parameters: int | None
    """The published number of parameters, if known."""


def published_weights(system: str) -> PublishedWeights | None:
    """Return a system's weights from its packaged config; None for a system without one."""
    return _packaged(configs_dir() / "model").get(system)


@cache
def _packaged(folder: Path) -> dict[str, PublishedWeights]:
    """Return the weights of every model config in a folder, by system."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        sources = {dim: CheckpointSource(**source) for dim, source in values.get("checkpoints", {}).items()}
        found[str(values["name"])] = PublishedWeights(sources, values.get("parameters"))
    return found


def prove(system: str, dim: int, checkpoint: Checkpoint, *, vectors_reproduced: bool) -> Proof | None:
    """Return the strongest proof that a loaded checkpoint is the published one of a system at a dim, or None.

    `vectors_reproduced` is true if the canary reproduced the vectors that are published for the system at this dim.
    """
    known = published_weights(system)
    source = None if known is None else known.checkpoints.get(str(dim))
    if source is None:
        return None
    if source.checksums and checkpoint.checksums == dict(source.checksums):
        return "checksums"
    provenance = {"origin": checkpoint.origin, "revision": checkpoint.revision}
    if _is_repository(source, provenance) and checkpoint.addressed >= set(checkpoint.checksums):
        return "repository"
    return "vectors" if vectors_reproduced else None


def record(
    system: str, dim: int, checkpoint: Checkpoint, *, parameters: int, vectors_reproduced: bool
) -> dict[str, Any]:
    """Return the entry of scores.json for a checkpoint: origin, checksums, parameter count and proof."""
    proof = prove(system, dim, checkpoint, vectors_reproduced=vectors_reproduced)
    return {**checkpoint.facts(), "parameters": parameters, "proof": proof}


def differing(cell: CellScores) -> tuple[str, ...]:
    """Return a line if a cell's weights are not proved to be the published ones of its system, otherwise nothing.

    A cell measured before proofs were recorded must have the checksums of the packaged config.
    """
    known = published_weights(cell.model)
    checksums = _mapping(cell.protocol.get("checkpoint"))
    if known is None or not (known.checkpoints or checksums):
        return ()
    recorded = _mapping(cell.environment.get("checkpoint"))
    ours = f"weights are {_shown(recorded, checksums)}"
    source = known.checkpoints.get(str(cell.dim))
    if source is None:
        return (f"{ours}, published with none" + (f" at dim {cell.dim}" if known.checkpoints else ""),)
    if source.checksums and checksums == dict(source.checksums):
        return ()
    theirs = f"published with {_published(source)}"
    if not _is_proved(source, recorded, checksums):
        same_commit = _is_repository(source, recorded) and not _other_weights(source, checksums)
        return (f"{ours}, {theirs}" + ("; nothing proves that its files are that commit's" if same_commit else ""),)
    count, wanted = recorded.get("parameters"), known.parameters
    if wanted is not None and (type(count) is not int or abs(count - wanted) > PARAMETERS_RTOL * wanted):
        shown = f"{count:,}" if type(count) is int else "an unknown number of"
        return (f"{ours} of {shown} parameters, {theirs} of {wanted:,}",)
    return ()


def _is_proved(source: CheckpointSource, recorded: Mapping[str, Any], checksums: Mapping[str, Any]) -> bool:
    """Tell whether a recorded proof identifies weights as the published ones.

    The proof must cover the files in the run id, and no file may contradict a checksum in the packaged config.
    """
    proof = recorded.get("proof")
    proved = proof == "vectors" or (proof == "repository" and _is_repository(source, recorded))
    return (
        proved and bool(checksums) and recorded.get("checksums") == checksums and not _other_weights(source, checksums)
    )


def _other_weights(source: CheckpointSource, checksums: Mapping[str, Any]) -> bool:
    """Tell whether a weights file's checksum differs from the config's. JSON files are skipped: layouts may vary."""
    return any(checksums.get(name, known) != known for name, known in source.checksums.items() if name in FILES)


def declared_otherwise(system: str, dim: int | None, source: CheckpointSource | None) -> tuple[str, ...]:
    """Return a line if a config's checkpoint `source` for a system at a dim is not that of the packaged config."""
    known = published_weights(system)
    packaged = None if known is None else known.checkpoints.get(str(dim))
    if source is None or packaged is None or source == packaged:
        return ()
    return (f"weights are {source.path or _published(source)}, published with {_published(packaged)}",)


def _is_repository(source: CheckpointSource, recorded: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is from the published repository: at the pinned commit, or at any if none is pinned."""
    origin, revision = recorded.get("origin"), recorded.get("revision")
    is_commit = isinstance(revision, str) and hub.COMMIT.fullmatch(revision) is not None
    return is_commit and source.repo is not None and origin == source.repo and source.revision in (None, revision)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shown(recorded: Mapping[str, Any], checksums: Mapping[str, Any]) -> str:
    """Describe a cell's weights: their origin and the first digits of revision and checksums."""
    origin, revision = recorded.get("origin"), recorded.get("revision")
    name = str(origin or "unknown") + (f"@{str(revision)[:_SHOWN_DIGITS]}" if revision else "")
    files = [f"{file} xxh3 {str(checksums[file])[:_SHOWN_DIGITS]}…" for file in FILES if file in checksums]
    return f"{name} ({', '.join(files)})" if files else name


def _published(source: CheckpointSource) -> str:
    """Describe a checkpoint source: repository and revision, package or path."""
    if source.repo is not None:
        return source.repo + (f"@{source.revision[:_SHOWN_DIGITS]}" if source.revision else "")
    return f"package {source.package}" if source.package else str(source.path)
