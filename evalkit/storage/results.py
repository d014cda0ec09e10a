"""The folder of a finished cell: run, judgements, values by query, config, and `scores.json`, which is written last.

So a cell is finished if its scores.json exists. This module reads and writes that file, which contains a checksum of
its own content, and the checksums of the other files in the folder. Files that were damaged or edited afterwards are
refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import xxhash

from evalkit import texts
from evalkit.errors import ScoreError
from evalkit.storage import keys, seal, trec, untrusted
from evalkit.storage.paths import run_dir, runs_dir, write_atomic
from evalkit.types import Hit

SCHEMA = 2
"""Version of scores.json; a file of another version is refused. Version 1 had no checksums."""
SCORES = "scores.json"
RUN = "run.trec.gz"
QRELS = "qrels.trec.gz"
"""The judgements that the run was scored with, so that scoring again needs no dataset."""
DROPPED = "dropped.trec.gz"
"""The hits that the self-id rule dropped from the run; there is no file if it dropped none."""
PER_QUERY = "per_query.tsv"
FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "model", "dataset", "split", "language", "main_metric"), (str,)),
    **dict.fromkeys(("metrics", "groups", "counts", "protocol", "wall_s", "environment", "files"), (dict,)),
    "dim": (int, NoneType),
    "deviations": (list,),
}
"""The JSON type of each field; it is verified, because the file may have been edited by hand."""
JSON_NAMES = {str: "a text", dict: "an object", list: "a list", int: "a whole number", NoneType: "null"}
CONFIG = "config.yaml"
CHECKED_FILES = (RUN, QRELS, PER_QUERY, CONFIG, DROPPED)
"""The files whose checksums scores.json contains."""
QRELS_CHECKSUM = "qrels_checksum"
"""The key in `environment` of the judgements' checksum (`evalkit.run.identity.qrels_checksum`)."""
INDEX = "index"
"""The key in `environment` of an index's cost and of the exact run that it is compared with (search=plaid)."""
BEING_SCORED = "being scored again"
"""The value of this key while a finished cell's files are rewritten: no judgements have this checksum."""
_AGAIN = "delete it and run the cell again"
_SHOWN_CHARACTERS = 16
"""Characters of a value that are shown to distinguish two results: the first ones of a checksum."""


@dataclass(frozen=True, kw_only=True)
class CellScores:
    """The scores of one cell (model, dim, dataset), its protocol and its environment."""

    run_id: str
    model: str
    dim: int | None
    dataset: str
    split: str
    language: str
    main_metric: str
    metrics: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]
    """Means over named subsets of the queries, if the dataset has any."""
    counts: Mapping[str, int]
    """Numbers of documents, queries, judgements, and hits that a rule dropped."""
    deviations: tuple[str, ...]
    """Differences from the published dataset: accepted with `dataset.verify=false`, or from the one of this name."""
    protocol: Mapping[str, Any]
    """Every setting and checksum that decides the scores."""
    wall_s: Mapping[str, float]
    """Seconds by stage."""
    environment: Mapping[str, Any]
    """Facts that do not decide the scores: versions, device, the dataset's source, the origin of the weights."""
    schema_version: int = SCHEMA
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The checksum of each other file of the cell when scores.json was written; `write` computes them."""

    @property
    def self_hits(self) -> int | None:
        """Hits whose document id is the query's id, kept or dropped; None if they were not counted."""
        return self.counts.get("dropped_self" if self.protocol.get("drop_self") else "kept_self")

    @property
    def search(self) -> str:
        """The search: `exact`, or the name of an index."""
        return str(self.protocol.get("search", "exact"))


def write(scores: CellScores, results_dir: Path) -> Path:
    """Write a cell's scores.json with its own checksum and those of the cell's other files, which must exist already.

    Raises ScoreError for a value that is not a finite number.
    """
    for name, value in scores.metrics.items():
        if not math.isfinite(value):
            msg = f"{scores.run_id}: {name} is {value}, wanted a finite number; nothing was written"
            raise ScoreError(msg)
    path = run_dir(results_dir, scores.run_id) / SCORES
    checksums = {name: checksum for name in CHECKED_FILES if (checksum := _checksum(path.parent / name)) is not None}
    values = seal.seal(dataclasses.asdict(scores) | {"files": checksums})
    write_atomic(path, f"{json.dumps(values, ensure_ascii=False, allow_nan=False, indent=2)}\n".encode())
    return path


def read(path: Path) -> CellScores:
    """Read a scores.json.

    Raises ScoreError if it is truncated, has another schema, lacks a field or does not have its own checksum.
    """
    try:
        values = untrusted.json_object(path.read_bytes())
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); wanted the scores.json of a finished cell"
        raise ScoreError(msg) from error
    except ValueError as error:
        msg = f"{path}: not valid JSON ({error}); {_AGAIN}"
        raise ScoreError(msg) from error
    version = values.get("schema_version")
    if version != SCHEMA:
        msg = (
            f"{path}: schema_version is {version!r}, this evalkit reads {SCHEMA}; update evalkit or run the cell again"
        )
        raise ScoreError(msg)
    try:
        values = seal.unseal(values)
    except ValueError as error:
        msg = f"{path}: was damaged or edited ({error}); restore it, or {_AGAIN}"
        raise ScoreError(msg) from error
    names = {each.name for each in dataclasses.fields(CellScores)}
    if set(values) != names:
        wrong = ", ".join(sorted(set(values) ^ names))
        msg = f"{path}: missing or unknown fields: {wrong}; {_AGAIN}"
        raise ScoreError(msg)
    try:
        mistake = next(_mistakes(path, values), None)
    except (TypeError, AttributeError) as error:
        mistake = f"not scores ({error}); {_AGAIN}"
    if mistake is not None:
        msg = f"{path}: {mistake}"
        raise ScoreError(msg)
    return CellScores(**{**values, "deviations": tuple(values["deviations"])})


def _mistakes(path: Path, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the impossible values in the fields of a scores.json, each with what to do."""
    for name, kinds in FIELD_TYPES.items():
        if type(values[name]) not in kinds:
            yield f"{name} is {values[name]!r}, wanted {' or '.join(JSON_NAMES[kind] for kind in kinds)}; {_AGAIN}"
            return  # the rest needs fields of the right types
    if path.parent.name != values["run_id"]:
        undecoded = os.fsencode(path.parent.name) == values["run_id"].encode()  # a locale of ASCII alone
        remedy = "set PYTHONUTF8=1, which reads such names" if undecoded else "give the folder its name back"
        yield f"run_id is {values['run_id']!r}, wanted its folder's name; {remedy}"
    yield from _unusable_names(values)
    sections = [("", "metrics"), ("count of ", "counts"), ("seconds of ", "wall_s")]
    parts = [(where, values[name]) for where, name in sections]
    for where, numbers in (*parts, *((f"{name} ", group) for name, group in values["groups"].items())):
        most = math.inf if where in ("count of ", "seconds of ") else 1
        for name, value in numbers.items():
            if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
                wanted = "a number from 0 to 1" if most == 1 else "a finite number from 0 on"
                yield f"{where}{name} is {value!r}, wanted {wanted}; {_AGAIN}"
    recomputed = keys.run_id(*(values[name] for name in ("dataset", "split", "model", "dim", "protocol")))
    if recomputed != values["run_id"]:
        yield (
            f"run_id is {values['run_id']}, wanted {recomputed} for the dataset, split, model, dim and protocol stated "
            f"here: one of them was changed since the cell was computed; {_AGAIN}"
        )
    if values["main_metric"] not in values["metrics"]:
        yield f"got no {values['main_metric']}, its main metric; {_AGAIN}"


def _unusable_names(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield problems of the names that a report uses as paths."""
    checkpoint = values["environment"].get("checkpoint")
    revision = checkpoint.get("revision") if isinstance(checkpoint, dict) else None
    if problem := texts.unusable_system(values["model"]):
        yield f"model is {str(values['model'])[: texts.NAME_BYTES]!r}, {problem}; {_AGAIN}"
    for name, value in (*((name, values[name]) for name in ("dataset", "split")), ("revision", revision)):
        if value is not None and (problem := texts.unusable_name(value, parts=name == "dataset")):
            yield f"{name} is {str(value)[: texts.NAME_BYTES]!r}, {problem}; {_AGAIN}"


def finished(results_dir: Path, run_id: str) -> CellScores | None:
    """Return the scores of a finished cell, or None."""
    path = run_dir(results_dir, run_id) / SCORES
    try:
        exists = path.is_file()
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); wanted the scores.json of a finished cell, or no file"
        raise ScoreError(msg) from error
    return read(path) if exists else None


def _checksum(path: Path) -> str | None:
    """Return the checksum of a file, or None if it does not exist or cannot be read."""
    try:
        return xxhash.xxh3_128_hexdigest(path.read_bytes())
    except OSError:
        return None


def edited(results_dir: Path, cell: CellScores, *, names: Sequence[str] = CHECKED_FILES) -> dict[str, str]:
    """Return, by name, a line for each file of a cell that has changed since the cell was finished.

    Deleted files are not listed: some may have to be deleted, for example judgements that must not be passed on.
    """
    folder = run_dir(results_dir, cell.run_id)
    wanted = cell.files or read(folder / SCORES).files  # a cell that was just computed has no checksums yet
    found = {}
    for name in names:
        got = _checksum(folder / name)
        if got is not None and got != wanted.get(name):
            recorded = f"the {wanted[name]} of {SCORES}" if name in wanted else f"no such file, by {SCORES}"
            found[name] = f"{folder / name}: was damaged or edited: got checksum {got}, wanted {recorded}"
    return found


def require_unedited(results_dir: Path, cell: CellScores, *names: str) -> None:
    """Raise ScoreError that names the file if one of these files has changed since the cell was finished."""
    for line in edited(results_dir, cell, names=names).values():
        msg = f"{line}; restore it, or delete the cell's {SCORES} and run the cell again"
        raise ScoreError(msg)


def read_run(path: Path) -> dict[str, list[Hit]]:
    """Read a TREC run of any system; a run of evalkit may have no hits.

    An empty file is accepted only if the scores.json in its folder has its checksum: any other one may be truncated.
    Raises ScoreError.
    """
    try:
        return trec.read_run(path)
    except trec.EmptyRunError:
        scores = path.parent / SCORES
        if not scores.is_file() or read(scores).files.get(path.name) != _checksum(path):
            raise
        return {}


def corpus_of(path: Path) -> str | None:
    """Return the checksum of the corpus of one of evalkit's own run files; None for any other file.

    Raises ScoreError if the scores.json in its folder is damaged or edited.
    """
    scores = path.parent / SCORES
    if path.name not in (RUN, DROPPED) or not scores.is_file():
        return None
    found = read(scores).protocol.get("corpus")
    return found if isinstance(found, str) else None


def begin_scoring(results_dir: Path, run_id: str) -> None:
    """Mark a finished cell's scores as outdated before its other files are rewritten.

    If the process is killed in between, the next job finds scores without valid judgements and scores the cell again.
    """
    if (scores := finished(results_dir, run_id)) is not None:
        marked = {**scores.environment, QRELS_CHECKSUM: BEING_SCORED}
        write(dataclasses.replace(scores, environment=marked), results_dir)


def read_all(results_dir: Path) -> list[CellScores]:
    """Return every finished cell under a results folder, by run id. Raises ScoreError for a damaged one."""
    return [read(path) for path in sorted(runs_dir(results_dir).glob(f"*/{SCORES}"))]


def readable(results_dir: Path) -> tuple[list[CellScores], list[str]]:
    """Return every cell that can be read, and a line for each that cannot."""
    cells, problems = [], []
    for path in sorted(runs_dir(results_dir).glob(f"*/{SCORES}")):
        try:
            cells.append(read(path))
        except ScoreError as error:
            problems.append(str(error))
    return cells, problems


def differing(cells: Sequence[CellScores]) -> list[str]:
    """Return the settings in which several results differ, for example results of one cell."""
    settings = [_settings(cell) for cell in cells]
    names = sorted({name for known in settings for name in known})
    return [name for name in names if len({repr(known.get(name)) for known in settings}) > 1]


def distinctions(cells: Iterable[CellScores]) -> dict[str, str]:
    """Return by run id a suffix with the settings that distinguish a result from others of its cell.

    It is for example ` (k1=0.8)`, and empty for the only result of a cell with exact search.
    """
    by_cell: dict[tuple[str, int | None, str, str], dict[str, CellScores]] = {}
    for cell in cells:
        by_cell.setdefault((cell.model, cell.dim, cell.dataset, cell.search), {})[cell.run_id] = cell
    found = {}
    for (*_, search), results_of_cell in by_cell.items():
        names = differing(list(results_of_cell.values()))
        if search != "exact":
            names = ["search", *dict.fromkeys(["index.nbits", *names])]
        for run_id, cell in results_of_cell.items():
            known = _settings(cell)
            values = ", ".join(f"{name}={str(known.get(name))[:_SHOWN_CHARACTERS]}" for name in names)
            found[run_id] = f" ({values})" if values else ""
    return found


def _settings(cell: CellScores) -> dict[str, Any]:
    return {"split": cell.split, **flat(cell.protocol)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
