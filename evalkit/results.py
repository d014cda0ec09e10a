"""One finished cell on disk: `scores.json`, written last, so that its existence means completion."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalkit.errors import ScoreError
from evalkit.paths import run_dir, write_whole

SCHEMA = 1
"""Version of scores.json; a file of a newer version is refused, not guessed at."""
SCORES = "scores.json"
RUN = "run.trec.gz"
PER_QUERY = "per_query.tsv"
CONFIG = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """What one cell (model, dim, dataset) scored, under which protocol, with what."""

    run_id: str
    model: str
    dim: int | None
    dataset: str
    split: str
    language: str
    main_metric: str
    metrics: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]
    """Means over named subsets of the queries, where the dataset has such."""
    counts: Mapping[str, int]
    """Documents, queries, judgements, and what a rule dropped."""
    deviations: tuple[str, ...]
    """What differs from the published dataset and was accepted with `dataset.verify=false`."""
    protocol: Mapping[str, Any]
    """Every setting and checksum that decides the score."""
    wall_s: Mapping[str, float]
    environment: Mapping[str, Any]
    schema_version: int = SCHEMA


def write(scores: CellScores, results_dir: Path) -> Path:
    """Write a cell's scores.json. Raises ScoreError for a value that is not a finite number."""
    for name, value in scores.metrics.items():
        if not math.isfinite(value):
            msg = f"{scores.run_id}: {name} is {value}, wanted a finite number; nothing was written"
            raise ScoreError(msg)
    path = run_dir(results_dir, scores.run_id) / SCORES
    text = json.dumps(dataclasses.asdict(scores), ensure_ascii=False, allow_nan=False, indent=2)
    write_whole(path, f"{text}\n".encode())
    return path


def read(path: Path) -> CellScores:
    """Read a scores.json. Raises ScoreError when it is cut short, of a newer schema or lacks a field."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); wanted the scores.json of a finished run"
        raise ScoreError(msg) from error
    except ValueError as error:
        msg = f"{path}: not whole JSON ({error}); delete it and run the cell again"
        raise ScoreError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path}: got a {type(values).__name__}, wanted a JSON object; delete it and run the cell again"
        raise ScoreError(msg)
    version = values.get("schema_version")
    if version != SCHEMA:
        msg = (
            f"{path}: schema_version is {version!r}, this evalkit reads {SCHEMA}; update evalkit or run the cell again"
        )
        raise ScoreError(msg)
    names = {field.name for field in dataclasses.fields(CellScores)}
    if set(values) != names:
        wrong = ", ".join(sorted(set(values) ^ names))
        msg = f"{path}: missing or unknown fields: {wrong}; delete it and run the cell again"
        raise ScoreError(msg)
    return CellScores(**{**values, "deviations": tuple(values["deviations"])})


def finished(results_dir: Path, run_id: str) -> CellScores | None:
    """Return the scores of a cell that is already done, or None."""
    path = run_dir(results_dir, run_id) / SCORES
    return read(path) if path.is_file() else None


def per_query_table(per_query: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> str:
    """Return each query's metric values as tab-separated text, a row per query in the order given."""
    rows = ["\t".join(("query_id", *metrics))]
    rows += ["\t".join((query, *(repr(values[metric]) for metric in metrics))) for query, values in per_query.items()]
    return "\n".join(rows) + "\n"


def group_means(per_query: Mapping[str, Mapping[str, float]], queries: Sequence[str]) -> dict[str, float]:
    """Return the mean of every metric over some of the queries."""
    names = list(per_query[queries[0]])
    return {name: math.fsum(per_query[query][name] for query in queries) / len(queries) for name in names}


def plain(value: Any) -> Any:
    """Return frozen dataclasses, tuples and paths as what YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_all(results_dir: Path) -> list[CellScores]:
    """Return every finished cell under a results folder, by run id. Raises ScoreError for a damaged one."""
    return [read(path) for path in sorted((results_dir / "runs").glob(f"*/{SCORES}"))]
