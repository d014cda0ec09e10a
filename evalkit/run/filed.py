"""A run file of another program, filed as a cell of a system of its own, so that every table and test can read it.

Beside the run file may lie `peer.json`, which `scripts/peer.py run` leaves: the library's versions and settings, its
seconds and its peak memory. What it says of the run file is checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash
from rich.console import Console

from evalkit.config.settings import RunConfig, RunFileConfig
from evalkit.errors import ScoreError
from evalkit.run import environment, identity, pipeline, ranked, scored
from evalkit.run.cells import Task
from evalkit.storage import keys, outside, results, trec
from evalkit.storage.results import CellScores
from evalkit.types import Hit, Run

FACTS = "peer.json"
"""What a peer says of its run file, beside it."""
COUNTS = ("documents", "queries")


def file_run(run_file: Path, system: str, config: RunConfig, *, console: Console) -> CellScores:
    """Score a run file under a dataset's rules and write the finished cell of a system called `system`.

    Raises ScoreError for a run that is not of the dataset, and for a `peer.json` that is not of the run file; then
    nothing is written. Raises ConfigError for a name that cannot be a system's.
    """
    model = RunFileConfig(kind="run_file", name=system)
    facts = read_facts(run_file)
    dim = facts.get("dim")
    config = dataclasses.replace(config, model=model, dims=(dim,))
    found = results.read_run(run_file)
    task = pipeline.prepare(config, console=console)
    _refuse_other_dataset(run_file, found, facts, task)
    started = time.monotonic()
    judged = {query.id: found[query.id] for query in task.dataset.queries if query.id in found}
    protocol = {
        "run_file": _checksum(judged),
        **_settings(facts),
        **identity.corpus_facts(task.survey, task.config),
        **identity.search_facts(task.dataset, task.config),
    }
    run_id = keys.run_id(task.dataset.name, task.dataset.split, system, dim, protocol)
    written = ranked.write_files(task, run_id, {query: hits[: task.depth] for query, hits in judged.items()})
    vectors = {} if "document_vectors" not in facts else {"document_vectors": int(facts["document_vectors"])}
    scores = CellScores(
        run_id=run_id,
        model=system,
        dim=dim,
        dataset=task.dataset.name,
        split=task.dataset.split,
        language=task.dataset.language,
        main_metric=task.dataset.main_metric,
        metrics=written.values.means,
        groups=scored.group_means(task, written.values),
        counts={**ranked.counts(task, written), **vectors},
        deviations=task.deviations,
        protocol=protocol,
        wall_s={**_seconds(facts), "score": round(time.monotonic() - started, 3)},
        environment={
            **environment.environment(None),
            **scored.facts(task),
            scored.FINISHED: datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": None,
            "made_by": {name: value for name, value in facts.items() if name not in ("run_sha256", "seconds")},
        },
    )
    results.write(scores, config.results_dir)
    return scores


def read_facts(run_file: Path) -> dict[str, Any]:
    """Return what `peer.json` beside a run file says; nothing where there is none.

    Raises ScoreError where it cannot be read, or was written for another run file.
    """
    path = run_file.with_name(FACTS)
    if not path.is_file():
        return {}
    try:
        facts = outside.read_json_object(path)
    except outside.UnreadableError as error:
        msg = f"{path}: {error}; run the peer again, or move the run file away from it"
        raise ScoreError(msg) from error
    got = hashlib.sha256(run_file.read_bytes()).hexdigest()
    if facts.get("run_sha256") != got:
        msg = f"{path}: got the facts of another run file than {run_file.name}, wanted its own (sha256 {got[:12]}…)"
        raise ScoreError(f"{msg}; run the peer again, or move the run file away from it")
    dim = facts.get("dim")
    if dim is not None and (type(dim) is not int or dim < 1):
        msg = f"{path}: got dim {dim!r}, wanted a whole number from 1 on; run the peer again"
        raise ScoreError(msg)
    if not isinstance(facts.get("seconds", {}), dict) or not isinstance(facts.get("dataset", {}), dict):
        msg = f"{path}: got no objects for seconds and dataset, wanted what scripts/peer.py writes; run the peer again"
        raise ScoreError(msg)
    return facts


def _refuse_other_dataset(run_file: Path, found: Run, facts: Mapping[str, Any], task: Task) -> None:
    """Raise ScoreError unless a run can be of the dataset: its queries, its documents, and the counts of its facts."""
    dataset = task.dataset
    where, remedy = f"{run_file}: got", "check that the run is of this dataset and split"
    known = {query.id for query in dataset.queries}
    if not found.keys() & known:
        got, wanted = next(iter(found), None), dataset.queries[0].id
        msg = f"{where} no query that {dataset.name} ({dataset.split}) judges, but {got!r} and so on"
        raise ScoreError(f"{msg}, wanted {wanted!r} and so on; check dataset and dataset.split")
    counts = {"documents": task.survey.documents, "queries": len(dataset.queries)}
    said = facts.get("dataset", {})
    for name in COUNTS:
        if name in said and said[name] != counts[name]:
            msg = f"{where} a run of {said[name]:,} {name}, wanted the {counts[name]:,} of {dataset.name}"
            raise ScoreError(f"{msg}; {remedy}")
    if warning := trec.unmatched(found, dataset.qrels):
        msg = f"{run_file}: {warning}"
        raise ScoreError(msg)
    retrieved = {hit.document_id for query in known & found.keys() for hit in found[query]}
    for document in dataset.corpus.documents():
        retrieved.discard(document.id)
    if retrieved:
        msg = f"{where} {len(retrieved):,} documents that {dataset.name} has not ({min(retrieved)!r} and so on)"
        raise ScoreError(f"{msg}, wanted its own only; {remedy}")


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the peer's scores, as far as it says them."""
    names = ("library", "search", "versions", "settings", "checkpoint")
    return {"made_by": {name: facts[name] for name in names if name in facts}} if facts else {}


def _seconds(facts: Mapping[str, Any]) -> dict[str, float]:
    known = {
        name: float(value)
        for name, value in facts.get("seconds", {}).items()
        if type(value) in (int, float) and value >= 0
    }
    spent = sum(value for name, value in known.items() if name not in ("load", "sample"))
    return {**known, "encode_and_search": round(spent, 3)} if known else {}


def _checksum(run: Mapping[str, list[Hit]]) -> str:
    """Return a checksum of a run's hits, which does not depend on the order of queries or on how numbers are spelt."""
    digest = xxhash.xxh3_128()
    for query in sorted(run):
        for hit in run[query]:
            digest.update(f"{query}\0{hit.document_id}\0{hit.score!r}\0".encode())
    return digest.hexdigest()
