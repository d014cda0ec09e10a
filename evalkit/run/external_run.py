"""Import the run file of another program as a finished cell of a system of its own, for tables and comparisons.

`scripts/peer.py run` writes a `peer.json` next to its run file: the library's versions and settings, times and peak
memory. If there is one, it is checked against the run file and recorded in the result.
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
from evalkit.run import cell_files, environment, identity, pipeline
from evalkit.run.cells import Task
from evalkit.storage import keys, results, trec, untrusted
from evalkit.storage.results import CellScores
from evalkit.types import Hit, Run

FACTS = "peer.json"
"""The file next to a run file with the facts of the program that wrote it."""
COUNTS = ("documents", "queries")
"""The counts of the dataset in these facts that must be those of the dataset here."""


def import_run(run_file: Path, system: str, config: RunConfig, *, console: Console) -> CellScores:
    """Score a run file under a dataset's rules and write the finished cell of a system called `system`.

    All hits of the file are kept: if a query has more than `search.depth`, that becomes the number of the longest list.

    Raises ScoreError, before anything is written, if the run belongs to another dataset or the `peer.json` to another
    run file. Raises ConfigError for an invalid system name.
    """
    model = RunFileConfig(kind="run_file", name=system)
    facts = read_facts(run_file)
    dim = facts.get("dim")
    config = dataclasses.replace(config, model=model, dims=(dim,))
    found = results.read_run(run_file)
    task = pipeline.prepare(config, console=console)
    _refuse_other_dataset(run_file, found, facts, task)
    started = time.monotonic()
    asked = dict.fromkeys((*(query.id for query in task.dataset.queries), *task.dataset.qrels))
    judged = {query: found[query] for query in asked if query in found}
    task = _deep_enough(task, judged)
    protocol = {
        "run_file": _checksum(judged),
        **_settings(facts),
        **identity.corpus_facts(task.survey, task.config),
        **identity.search_facts(task.dataset, task.config),
    }
    run_id = keys.run_id(task.dataset.name, task.dataset.split, system, dim, protocol)
    written = cell_files.write(task, run_id, judged)
    vectors = {} if "document_vectors" not in facts else {"document_vectors": int(facts["document_vectors"])}
    scores = CellScores(
        run_id=run_id,
        model=system,
        dim=dim,
        dataset=task.dataset.name,
        split=task.dataset.split,
        language=task.dataset.language,
        main_metric=task.dataset.main_metric,
        metrics=written.scores.means,
        groups=cell_files.group_means(task, written.scores),
        counts={**cell_files.counts(task, written), **vectors},
        deviations=task.deviations,
        protocol=protocol,
        wall_s={**_seconds(facts), "score": round(time.monotonic() - started, 3)},
        environment={
            **environment.environment(None),
            **cell_files.scoring_facts(task),
            cell_files.FINISHED: datetime.now(UTC).isoformat(timespec="seconds"),
            "checkpoint": None,
            "made_by": {name: value for name, value in facts.items() if name not in ("run_sha256", "seconds")},
        },
    )
    results.write(scores, config.results_dir)
    return scores


def _deep_enough(task: Task, run: Run) -> Task:
    """Return the task with a search depth that keeps every hit which the dataset's self-id rule keeps."""
    kept = run
    if task.dataset.drop_self:
        kept = {query: [hit for hit in hits if hit.document_id != query] for query, hits in run.items()}
    depth = max(task.config.search.depth, *map(len, kept.values()))
    return task._replace(
        config=dataclasses.replace(task.config, search=dataclasses.replace(task.config.search, depth=depth))
    )


def read_facts(run_file: Path) -> dict[str, Any]:
    """Return the content of the `peer.json` next to a run file; empty if there is none.

    Raises ScoreError if it cannot be read or was written for another run file.
    """
    path = run_file.with_name(FACTS)
    if not path.is_file():
        return {}
    try:
        facts = untrusted.read_json_object(path)
    except untrusted.UnreadableError as error:
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
    """Raise ScoreError if queries, documents or the counts in `facts` show that a run belongs to another dataset."""
    dataset = task.dataset
    where, remedy = f"{run_file}: got", "check that the run is of this dataset and split"
    known = {query.id for query in dataset.queries} | dataset.qrels.keys()
    trec.unanswered(run_file, found, dataset, known)
    counts = {"documents": task.survey.documents, "queries": len(dataset.queries)}
    recorded = facts.get("dataset", {})
    for name in COUNTS:
        if name in recorded and recorded[name] != counts[name]:
            msg = f"{where} a run of {recorded[name]:,} {name}, wanted the {counts[name]:,} of {dataset.name}"
            raise ScoreError(f"{msg}; {remedy}")
    if warning := trec.unmatched(found, dataset.qrels):
        msg = f"{run_file}: {warning}"
        raise ScoreError(msg)
    retrieved = {hit.document_id for query in known & found.keys() for hit in found[query]}
    for document in dataset.corpus.documents():
        retrieved.discard(document.id)
    if retrieved:
        msg = f"{where} {len(retrieved):,} documents that are not in {dataset.name} ({min(retrieved)!r} and so on)"
        raise ScoreError(f"{msg}, wanted its own only; {remedy}")


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the peer's scores, as far as its facts have them."""
    names = ("library", "search", "versions", "settings", "checkpoint")
    return {"made_by": {name: facts[name] for name in names if name in facts}} if facts else {}


def _seconds(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the peer's times by stage, and the time of encoding and search together."""
    known = {
        name: float(value)
        for name, value in facts.get("seconds", {}).items()
        if type(value) in (int, float) and value >= 0
    }
    spent = sum(value for name, value in known.items() if name not in ("load", "sample"))
    return {**known, "encode_and_search": round(spent, 3)} if known else {}


def _checksum(run: Mapping[str, list[Hit]]) -> str:
    """Return a checksum of a run's hits that is independent of the order of queries and the format of numbers."""
    digest = xxhash.xxh3_128()
    for query in sorted(run):
        for hit in run[query]:
            digest.update(f"{query}\0{hit.document_id}\0{hit.score!r}\0".encode())
    return digest.hexdigest()
