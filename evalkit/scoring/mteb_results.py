"""mteb's names of datasets and metrics, and the results that mteb wrote, as cells of the system `mteb:MODEL`.

mteb writes `MODEL/REVISION/TASK.json`, with `model_meta.json` in the same folder. A result file has only means and no
run, so its cells appear in tables and boards but cannot be compared query by query. The release of mteb is kept with
the scores because releases differ: mteb changed its tie rule of MRR (#5136) and its bm25s (#4405) in 2026.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalkit import texts
from evalkit.config.settings import METRICS, DatasetConfig
from evalkit.errors import ScoreError
from evalkit.storage import paths, seal, untrusted
from evalkit.storage.paths import write_atomic
from evalkit.storage.results import CellScores

TASKS = {  # datasets with a task of their own
    "beir/nfcorpus": "NFCorpus",
    "beir/fiqa": "FiQA2018",
    "beir/trec-covid": "TRECCOVID",
    "beir/arguana": "ArguAna",
    "beir/quora": "QuoraRetrieval",
    "beir/scidocs": "SCIDOCS",
    "beir/scifact": "SciFact",
    "beir/webis-touche2020": "Touche2020",
    "beir/dbpedia-entity": "DBPedia",
    "beir/fever": "FEVER",
    "beir/climate-fever": "ClimateFEVER",
    "beir/hotpotqa": "HotpotQA",
    "beir/nq": "NQ",
    "msmarco/dev-small": "MSMARCO",
    "nanobeir/arguana": "NanoArguAnaRetrieval",
    "nanobeir/climate-fever": "NanoClimateFeverRetrieval",
    "nanobeir/dbpedia-entity": "NanoDBPediaRetrieval",
    "nanobeir/fever": "NanoFEVERRetrieval",
    "nanobeir/fiqa": "NanoFiQA2018Retrieval",
    "nanobeir/hotpotqa": "NanoHotpotQARetrieval",
    "nanobeir/msmarco": "NanoMSMARCORetrieval",
    "nanobeir/nfcorpus": "NanoNFCorpusRetrieval",
    "nanobeir/nq": "NanoNQRetrieval",
    "nanobeir/quora": "NanoQuoraRetrieval",
    "nanobeir/scidocs": "NanoSCIDOCSRetrieval",
    "nanobeir/scifact": "NanoSciFactRetrieval",
    "nanobeir/webis-touche2020": "NanoTouche2020Retrieval",
}
FAMILIES = {"miracl": "MIRACLRetrieval", "xquad": "XQuADRetrieval", "mmarco": "mMARCO"}
"""Tasks with one subset per language, by family of datasets; MTEB itself has no task mMARCO."""
SPLITS = {"nanobeir": "train", "xquad": "validation"}
"""MTEB's name of a family's split, where it differs from the dataset's."""
SYSTEM = "mteb:"
"""The beginning of the name of a system that mteb measured."""
MEASURED_BY = "measured_by"
"""The key in a cell's `environment` with the release of mteb."""
SUBSET = "subset"
"""The key in a cell's `environment` with mteb's subset, if it is not the dataset's."""
SCHEMA = 1
"""The version of the records that `keep` writes."""
DEFAULT = "default"
"""mteb's subset of a task that has no others."""
META = "model_meta.json"
UNKNOWN = "of an unknown version"
WANTED = "wanted a result that mteb 1.11 or later wrote, MODEL/REVISION/TASK.json"


def task_of(dataset: str) -> tuple[str, str]:
    """Return MTEB's task and subset of a dataset; the task of an unknown dataset is its name.

    >>> task_of("miracl/sw"), task_of("beir/fiqa"), task_of("demo")
    (('MIRACLRetrieval', 'sw'), ('FiQA2018', 'default'), ('demo', 'default'))
    """
    if dataset in TASKS:
        return TASKS[dataset], "default"
    family, _, language = dataset.partition("/")
    return (FAMILIES[family], language) if family in FAMILIES and language else (dataset.replace("/", "-"), "default")


def split_of(dataset: str, split: str) -> str:
    """Return MTEB's name of a dataset's split.

    >>> split_of("xquad/en", "test"), split_of("beir/fiqa", "test")
    ('validation', 'test')
    """
    return SPLITS.get(dataset.partition("/")[0], split)


def metric_of(metric: str) -> str:
    """Return a metric as MTEB spells it.

    >>> metric_of("ndcg@10")
    'ndcg_at_10'
    """
    return metric.replace("@", "_at_")


class Wanted(NamedTuple):
    """The facts of a dataset's config that select a cell in a result file."""

    name: str
    split: str
    language: str
    main_metric: str


def wanted(config: DatasetConfig) -> Wanted:
    """Return these facts of a composed config."""
    return Wanted(config.name, config.split, config.language, config.main_metric)


class Result(NamedTuple):
    """The content of one result file of mteb."""

    path: Path
    model: str
    """mteb's name of the model: organisation/name."""
    revision: str
    task: str
    version: str
    """The release of mteb that measured it."""
    entries: Mapping[tuple[str, str], Mapping[str, Any]]
    """mteb's metrics by name, for each (split, subset)."""
    dataset_revision: str


def read(path: Path) -> Result:
    """Read a result file of mteb; the model is read from `model_meta.json` or from the folders' names.

    Raises ScoreError for any other file, and for names that cannot be part of a path.
    """
    try:
        values = untrusted.read_json_object(path, nan_as_null=True)  # nAUC may be NaN
    except untrusted.UnreadableError as error:
        msg = f"{path}: cannot be read as JSON ({error}), {WANTED}; copy the file again"
        raise ScoreError(msg) from error
    task, scores, version = values.get("task_name"), values.get("scores"), values.get("mteb_version")
    if not isinstance(task, str) or not isinstance(scores, dict):
        missing = "task_name" if not isinstance(task, str) else "scores"
        msg = f"{path}: got no {missing}, {WANTED}"
        raise ScoreError(msg)
    entries: dict[tuple[str, str], Mapping[str, Any]] = {}
    for split, found in scores.items():
        for entry in found if isinstance(found, list) else [found]:
            if not isinstance(entry, dict):
                msg = f"{path}: got scores of split {split!r} that are not a list of subsets, {WANTED}"
                raise ScoreError(msg)
            subset = str(entry.get("hf_subset", DEFAULT))
            if (split, subset) in entries:
                msg = f"{path}: got subset {subset!r} of split {split!r} twice, wanted every subset once"
                raise ScoreError(f"{msg}; keep the entry that is meant")
            entries[split, subset] = entry
    model, revision = _model(path)
    version = f"mteb {version}" if isinstance(version, str) and version else f"mteb {UNKNOWN}"
    return Result(path, model, revision, task, version, entries, str(values.get("dataset_revision") or ""))


def _model(path: Path) -> tuple[str, str]:
    """Return the model's name and revision, from model_meta.json if it exists, else from the folders' names."""
    revision, model = path.absolute().parent.name, path.absolute().parent.parent.name.replace("__", "/")
    meta = path.parent / META
    if meta.is_file():
        try:
            values = untrusted.read_json_object(meta, nan_as_null=True)
        except untrusted.UnreadableError as error:
            msg = f"{meta}: cannot be read as JSON ({error}), wanted mteb's metadata of the model; delete or repair it"
            raise ScoreError(msg) from error
        model, revision = str(values.get("name") or model), str(values.get("revision") or revision)
    for what, name in (("model", model), ("revision", revision)):
        if (why := texts.unusable_name(name, parts=what == "model")) is not None:
            msg = f"{path}: got {what} {name!r}, {why}; move the file to MODEL/REVISION/TASK.json, as mteb writes it"
            raise ScoreError(msg)
    return model, revision


def chosen(result: Result, datasets: Sequence[Wanted], *, dataset: Wanted | None = None) -> list[Wanted]:
    """Return those of `datasets` that a result has scores of.

    If `dataset` is given, it is returned, unless its task is another one than the result's; a task that mteb does not
    have can only be read this way. Raises ScoreError for a result of another task than that of `dataset`, and, without
    `dataset`, if the task or its subsets belong to no known dataset.
    """
    by_task: dict[str, list[Wanted]] = {}
    for one in datasets:
        by_task.setdefault(task_of(one.name)[0], []).append(one)
    subsets = {subset for _, subset in result.entries}
    known = by_task.get(result.task, [])
    if dataset is not None:
        task, _ = task_of(dataset.name)
        if result.task != task and (known or task in (*TASKS.values(), *FAMILIES.values())):
            msg = f"{result.path}: got a result of task {result.task}, wanted one of {task} ({dataset.name})"
            raise ScoreError(f"{msg}; give that task's file, or another dataset=NAME")
        return [dataset]
    if not known:
        msg = f"{result.path}: got a result of task {result.task!r}, which is no dataset of evalkit"
        raise ScoreError(f"{msg}; wanted {', '.join(sorted(by_task)[:5])} and so on, or dataset=NAME")
    found = [one for one in known if task_of(one.name)[1] in subsets]
    if not found:
        wanted = ", ".join(task_of(one.name)[1] for one in known)
        msg = f"{result.path}: got subsets {', '.join(sorted(subsets)) or 'none'} of {result.task}, wanted {wanted}"
        raise ScoreError(msg)
    return found


def cell(result: Result, dataset: Wanted) -> CellScores:
    """Return a result's means on one dataset as a cell of the system `mteb:MODEL`.

    A task of the user's own may have other names of split and subset than the dataset. If it has only one entry, the
    cell is of that split, which is then another one than the dataset's, and of that subset.

    Raises ScoreError if its split, its subset or the dataset's main metric is missing, or if a value is not a number
    from 0 to 1.
    """
    task, subset = task_of(dataset.name)
    split = split_of(dataset.name, dataset.split)
    entry = result.entries.get((split, subset))
    known = dataset.split
    if entry is None and result.task != task and len(result.entries) == 1:
        ((known, subset), entry) = next(iter(result.entries.items()))
        for what, name in (("split", known), ("subset", subset)):
            if (why := texts.unusable_name(name)) is not None:
                raise ScoreError(f"{result.path}: got {what} {name!r}, {why}; rename it in the file")
    if entry is None:
        got = ", ".join(f"{one}/{other}" for one, other in sorted(result.entries)) or "none"
        msg = f"{result.path}: got splits and subsets {got}, wanted {split}/{subset} for {dataset.name}"
        raise ScoreError(f"{msg} ({dataset.split})")
    metrics = {name: entry[metric_of(name)] for name in METRICS if metric_of(name) in entry}
    if dataset.main_metric not in metrics:
        msg = f"{result.path}: got no {metric_of(dataset.main_metric)} for {dataset.name}, {WANTED} of a retrieval task"
        raise ScoreError(msg)
    for name, value in metrics.items():
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= 1:
            msg = f"{result.path}: got {metric_of(name)} {value!r} for {dataset.name}, wanted a number from 0 to 1"
            raise ScoreError(msg)
    return _cell(
        {
            "model": result.model,
            "revision": result.revision,
            "task": result.task,
            "version": result.version,
            "dataset_revision": result.dataset_revision,
            **dataset._asdict(),
            "split": known,
            **({} if subset in (DEFAULT, task_of(dataset.name)[1]) else {SUBSET: subset}),
            "metrics": {name: float(value) for name, value in metrics.items()},
        }
    )


def _cell(facts: Mapping[str, Any]) -> CellScores:
    folder = f"{facts['model'].replace('/', '__')}/{facts['revision']}"
    return CellScores(
        run_id=f"{facts['version']}: {folder}/{facts['task']}.json, {facts['name']}",
        model=f"{SYSTEM}{facts['model']}",
        dim=None,
        dataset=facts["name"],
        split=facts["split"],
        language=facts["language"],
        main_metric=facts["main_metric"],
        metrics=dict(facts["metrics"]),
        groups={},
        counts={},
        deviations=(),
        protocol={"dataset_revision": facts["dataset_revision"]},
        wall_s={},
        environment={
            MEASURED_BY: facts["version"],
            **{name: facts[name] for name in ("revision", "task", SUBSET) if name in facts},
        },
    )


def keep(cells: Sequence[CellScores], results_dir: Path) -> list[Path]:
    """Write a sealed record of each cell below a results folder, where `kept` finds it; return their paths.

    A record of the same split and subset is replaced. Raises ScoreError for one of another split or subset.
    """
    written = []
    for one in cells:
        facts = {
            "schema_version": SCHEMA,
            "model": one.model.removeprefix(SYSTEM),
            "version": one.environment[MEASURED_BY],
            **{name: one.environment[name] for name in ("revision", "task", SUBSET) if name in one.environment},
            "dataset_revision": one.protocol["dataset_revision"],
            "name": one.dataset,
            **{name: getattr(one, name) for name in ("split", "language", "main_metric")},
            "metrics": dict(one.metrics),
        }
        path = paths.mteb_file(results_dir, facts["model"], facts["revision"], one.dataset)
        _refuse_other_split(path, facts)
        write_atomic(path, f"{json.dumps(seal.seal(facts), ensure_ascii=False, allow_nan=False, indent=2)}\n".encode())
        written.append(path)
    return written


def _refuse_other_split(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise ScoreError if the record at a path is of another split or subset; a damaged one may be replaced."""
    try:
        before = seal.read(path.read_bytes())
    except (OSError, ValueError):
        return
    for name in ("split", SUBSET):
        if before.get(name) != facts.get(name):
            msg = f"{path}: keeps {name} {before.get(name)!r}, got a result of {name} {facts.get(name)!r}"
            raise ScoreError(f"{msg}; keep it in another results_dir, or remove that file")


def kept(results_dir: Path) -> tuple[tuple[CellScores, ...], tuple[str, ...]]:
    """Return the cells that `keep` wrote, and a line for every record that is damaged or is not its cell's only one."""
    found: dict[tuple[str, str], list[tuple[Path, CellScores]]] = {}
    problems = []
    for path in sorted((results_dir / paths.MTEB).rglob("*.json")):
        try:
            values = seal.read(path.read_bytes())
            if (version := values.get("schema_version")) != SCHEMA:
                msg = f"its schema_version is {version!r}, this evalkit reads {SCHEMA}"
                raise ValueError(msg)
            one = _cell(values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(
                f"{path}: was damaged or edited ({error}); keep mteb's result again (evalkit score --mteb --keep)"
            )
            continue
        found.setdefault((one.model, one.dataset), []).append((path, one))
    for (system, dataset), claiming in found.items():
        if len(claiming) > 1:
            names = " and ".join(str(path) for path, _ in claiming)
            problems.append(f"{system} on {dataset}: got {len(claiming)} results, {names}; remove all but one")
    return tuple(claiming[0][1] for claiming in found.values() if len(claiming) == 1), tuple(problems)
