"""Score a saved run under other common rules, to find those that reproduce the published number.

The result depends only on the run's folder: its hits, the hits that the self-id rule dropped, and its judgements.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evalkit import ranking
from evalkit.analysis import comparability
from evalkit.config.settings import METRIC
from evalkit.datasets import learned
from evalkit.datasets.survey import ContentHash
from evalkit.errors import DatasetError, EvalkitError, ScoreError
from evalkit.models import metadata
from evalkit.models.metadata import Variant
from evalkit.run import identity
from evalkit.scoring import metrics, published
from evalkit.scoring.decimals import rounded
from evalkit.scoring.published import PublishedScore, Verdict
from evalkit.storage import cell_config, evaluated, paths, results, trec
from evalkit.storage.results import CellScores
from evalkit.types import Dataset, Hit, Qrels, Run

if TYPE_CHECKING:
    from evalkit.config.settings import DatasetConfig
    from evalkit.datasets.splits import OtherSplit

OPTIONS: Mapping[str, Mapping[str, str]] = {
    "self_ids": {
        "drop": "the query's own id dropped",
        "keep": "the query's own id kept",
        "drop-late": "the query's own id dropped after the cut, not before",
    },
    "ties": {
        "trec_eval": "ties by document id descending (trec_eval)",
        "ascending": "ties by document id ascending (Anserini)",
        "last": "ties with relevant documents last",
        "first": "ties with relevant documents first",
    },
    "missing": {"zero": "a query without hits scores 0", "skip": "queries without hits left out of the mean"},
    "queries": {"all": "all judged queries", "relevant": "only queries that have a relevant document"},
    "unmatched": {
        "as_run": "documents with score 0 as the run has them",
        "leave_out": "documents with score 0 left out (Lucene)",
    },
    "gain": {"linear": "linear gain", "exponential": "exponential gain (2^grade - 1)"},
}
"""The values of each rule, with their descriptions; the cutoff is a number."""
GAINS = {"linear": "ndcg", "exponential": "ndcg_burges"}
"""NDCG's name in ranx by its gain."""
CUTOFFS = (5, 20, 100)
"""The cutoffs that are tried besides the metric's own."""
MOST_CHANGES = 2
"""The maximum number of rules changed together, because more changes would reproduce any number by chance."""


class Rules(NamedTuple):
    """One way to score a run; OPTIONS has the values of each rule."""

    self_ids: str
    ties: str
    missing: str
    queries: str
    unmatched: str
    gain: str
    cutoff: int | None
    """None for a metric over all hits."""

    def differing(self, other: Rules) -> tuple[str, ...]:
        """Describe how these rules differ from others."""
        words = [
            texts[getattr(self, name)] for name, texts in OPTIONS.items() if getattr(self, name) != getattr(other, name)
        ]
        return (*words, f"cutoff {self.cutoff}") if self.cutoff != other.cutoff else tuple(words)


class Replayed(NamedTuple):
    """A run's value under one set of rules."""

    changed: tuple[str, ...]
    """Descriptions of the changed rules; empty for the run's own rules."""
    value: float
    queries: int | None
    """The number of queries; None for a subset whose size the run did not record."""


class Reproduction(NamedTuple):
    """A published score and the rule sets with the fewest changes that give it."""

    score: PublishedScore
    verdict: Verdict
    """The verdict under the run's own rules."""
    reproduced_by: tuple[Replayed, ...]


class Material(NamedTuple):
    """A saved run as it was retrieved, before rules were applied."""

    cell: CellScores
    run: Run
    """The run, including the hits that the self-id rule dropped."""
    qrels: Qrels
    depth: int | None
    """Documents kept per query; None if it was not recorded."""


def load(results_dir: Path, cell: CellScores, *, dataset_path: Path | None = None) -> Material:
    """Read the run and the judgements of a finished cell; judgements without a copy in the results are the dataset's.

    `dataset_path` is the dataset's folder if it moved. Raises ScoreError if a file is missing, damaged or edited, and
    if the judgements are not those that the run was scored with.
    """
    folder = paths.run_dir(results_dir, cell.run_id)
    dropped_path = folder / results.DROPPED
    qrels = judgements(results_dir, cell, dataset_path=dataset_path)
    results.require_unedited(results_dir, cell, results.RUN, results.DROPPED)
    kept = results.read_run(folder / results.RUN)
    if cell.self_hits and cell.protocol.get("drop_self") and not dropped_path.is_file():
        msg = f"{dropped_path}: got no such file, wanted the {cell.self_hits} hits that the self-id rule dropped"
        raise ScoreError(f"{msg}; restore it, or delete the cell's {results.SCORES} and run the cell again")
    dropped = results.read_run(dropped_path) if dropped_path.is_file() else {}
    run = {query: ranking.rank_hits([*kept.get(query, []), *dropped.get(query, [])]) for query in {**kept, **dropped}}
    return Material(cell, run, qrels, cell.protocol.get("depth"))


def judgements(results_dir: Path, cell: CellScores, *, dataset_path: Path | None = None) -> Qrels:
    """Return the judgements that a finished cell was scored with: its copy of them, or the dataset's.

    `dataset_path` is the dataset's folder if it moved. Raises ScoreError as `load` does.
    """
    path = paths.run_dir(results_dir, cell.run_id) / results.QRELS
    if cell.environment.get(results.QRELS_CHECKSUM) == results.BEING_SCORED:
        msg = f"{cell.run_id}: got a cell whose scoring was interrupted, wanted a finished one; run the cell again"
        raise ScoreError(msg)
    results.require_unedited(results_dir, cell, results.QRELS)
    if path.is_file():
        qrels: Qrels = trec.read_qrels(path)
        _refuse_other_qrels(cell, qrels, where=str(path))
    else:
        qrels = _dataset_qrels(results_dir, cell, dataset_path)
        _refuse_other_qrels(cell, qrels, where=cell.dataset)
    return qrels


def _refuse_other_qrels(cell: CellScores, qrels: Qrels, *, where: str) -> None:
    """Raise ScoreError unless judgements have the checksum that the cell recorded; older cells recorded none."""
    recorded, checksum = cell.environment.get(results.QRELS_CHECKSUM), identity.qrels_checksum(qrels)
    if recorded in (None, checksum):
        return
    msg = f"{cell.run_id}: got judgements of checksum {checksum} from {where}, wanted the {recorded} of its scores"
    raise ScoreError(f"{msg}; give the same copy of the dataset by --dataset-path, or run the cell again")


def _dataset_qrels(results_dir: Path, cell: CellScores, dataset_path: Path | None) -> Qrels:
    """Return the dataset's judgements, for datasets whose licence forbids a copy in the results (nfcorpus)."""
    from evalkit import datasets

    wanted = f"{cell.run_id}: got no {results.QRELS}, wanted that file or the cell's dataset on disk"
    try:
        config = cell_config.saved(results_dir, cell, dataset_path=dataset_path).dataset
        if datasets.on_disk(config) is None:
            msg = f"{config.name} is not on disk"
            raise DatasetError(msg)
        qrels = datasets.load(config, with_corpus=False).qrels
    except EvalkitError as error:
        msg = f"{wanted} ({error}); give its folder by --dataset-path, or fetch it"
        raise ScoreError(msg) from error
    got, scored = sum(map(len, qrels.values())), cell.counts.get("judgements")
    if got != scored:
        msg = f"{cell.run_id}: got {got} judgements from {cell.dataset}, wanted the {scored} of its scores"
        raise ScoreError(f"{msg}; give the same copy of the dataset by --dataset-path")
    return qrels


def other_splits(material: Material, config: DatasetConfig) -> tuple[list[OtherSplit], list[str]]:
    """Return the dataset's other splits on disk, and a line for each that cannot be read; see `datasets.splits`.

    Raises EvalkitError if the dataset is not on disk, or is not the one that the run was made with.
    """
    from evalkit import datasets
    from evalkit.datasets import splits
    from evalkit.storage.network import network_off

    found, unread = splits.others(config, asked(material))
    if found:
        with network_off():
            dataset = datasets.load(dataclasses.replace(config, verify=False), with_corpus=False)
            _refuse_other_qrels(material.cell, dataset.qrels, where=dataset.source)
            _refuse_other_texts(material.cell, dataset)
    return found, unread


def _refuse_other_texts(cell: CellScores, dataset: Dataset) -> None:
    """Raise ChangedError unless queries and corpus are those of the run, as far as it recorded their checksums.

    The corpus is read, unless the run had it from the same source with a revision, which always gives the same one.
    """
    here = {"queries": identity.texts_checksum(dataset.queries)}
    revisioned = dataset.source.partition(" ")[0] in learned.REVISIONED
    if not (revisioned and cell.environment.get("dataset_source") == dataset.source) and "corpus" in cell.protocol:
        content = ContentHash()
        for document in dataset.corpus.documents():
            content.add(document)
        here["corpus"] = content.hexdigest()
    evaluated.refuse_other_texts(cell, here, source=dataset.source)


def own_rules(material: Material, metric: str) -> Rules:
    """Return the rules under which the run was scored."""
    self_ids = "drop" if material.cell.protocol.get("drop_self") else "keep"
    parts = _parts(metric)
    gain = "exponential" if parts.name == "ndcg_burges" else "linear"
    return Rules(self_ids, "trec_eval", "zero", "all", "as_run", gain, parts.cutoff)


class _Parts(NamedTuple):
    """The parts of a metric's name: `ndcg@10-l2`."""

    name: str
    cutoff: int | None
    level: int
    """The least relevant grade."""


def _parts(metric: str) -> _Parts:
    """Return the parts of a metric's name. Raises ScoreError for a name that no rule can be applied to."""
    found = METRIC.fullmatch(metric)
    if found is None:
        msg = f"got metric {metric!r}, wanted one that can be scored again"
        raise ScoreError(f"{msg}, such as ndcg@10, map or recall@50-l2")
    return _Parts(found[1].partition("@")[0], int(found[3]) if found[3] else None, int(found[5] or 1))


def score(material: Material, rules: Rules, metric: str) -> Replayed:
    """Return a run's mean of a metric under given rules. Raises ScoreError if they leave no query."""
    own, parts = own_rules(material, metric), _parts(metric)
    qrels = {
        query: grades
        for query, grades in material.qrels.items()
        if rules.queries == "all" or any(grade >= parts.level for grade in grades.values())
    }
    ranked = {
        query: _ranked(query, material.run.get(query, []), grades, rules, material.depth)
        for query, grades in qrels.items()
    }
    if rules.missing == "skip":
        qrels = {query: grades for query, grades in qrels.items() if ranked[query]}
    if not qrels:
        msg = f"{material.cell.run_id}: {', '.join(rules.differing(own))}: got no query, wanted at least one"
        raise ScoreError(f"{msg}; check the run's judgements")
    name = parts.name if rules.gain == own.gain else GAINS[rules.gain]
    cut = "" if rules.cutoff is None else f"@{rules.cutoff}"
    changed = f"{name}{cut}{f'-l{parts.level}' if parts.level > 1 else ''}"
    return Replayed(rules.differing(own), metrics.score(ranked, qrels, [changed]).means[changed], len(qrels))


def _ranked(query: str, hits: Sequence[Hit], grades: Mapping[str, int], rules: Rules, depth: int | None) -> list[Hit]:
    """Return the hits under given rules, with strictly decreasing scores, so that nothing reorders them later."""
    order: dict[str, Callable[[Hit], object]] = {
        "trec_eval": lambda _hit: 0,  # a run is already in this order
        "ascending": lambda hit: hit.document_id.encode(),
        "last": lambda hit: grades.get(hit.document_id, 0),
        "first": lambda hit: -grades.get(hit.document_id, 0),
    }
    retrieved = [hit for hit in hits if rules.unmatched == "as_run" or hit.score > 0]
    ranked = sorted(retrieved, key=lambda hit: (-hit.score, order[rules.ties](hit)))
    if rules.self_ids == "drop-late":
        ranked = ranked[: rules.cutoff]
    if rules.self_ids != "keep":
        ranked = [hit for hit in ranked if hit.document_id != query]
    ranked = ranked[:depth]
    return [Hit(hit.document_id, float(len(ranked) - place)) for place, hit in enumerate(ranked)]


def candidates(material: Material, metric: str) -> list[Rules]:
    """Return the rule sets that can change this run's score, the run's own first.

    Each differs from the run's own rules in at most MOST_CHANGES, and only in rules that matter to its hits and grades.
    """
    own, parts = own_rules(material, metric), _parts(metric)
    grades = [list(judged.values()) for judged in material.qrels.values()]
    can_differ = {
        "self_ids": any(hit.document_id == query for query, hits in material.run.items() for hit in hits),
        "ties": any(a.score == b.score for hits in material.run.values() for a, b in itertools.pairwise(hits)),
        # A run without any hit, or judgements without any grade above 0, would leave no query to score.
        "missing": len({bool(material.run.get(query)) for query in material.qrels}) > 1,
        "queries": len({any(grade >= parts.level for grade in judged) for judged in grades}) > 1,
        "unmatched": "k1" in material.cell.protocol
        and any(hit.score <= 0 for hits in material.run.values() for hit in hits),
        "gain": metric.startswith("ndcg") and any(grade > 1 for judged in grades for grade in judged),
    }
    values: list[Sequence[object]] = [
        tuple(texts) if can_differ[name] else (getattr(own, name),) for name, texts in OPTIONS.items()
    ]
    others = () if parts.name == "r-precision" else CUTOFFS  # it looks at as many documents as are relevant
    cutoffs = (own.cutoff, *(cutoff for cutoff in others if cutoff <= (material.depth or cutoff)))
    found = [Rules._make(parts) for parts in itertools.product(*values, dict.fromkeys(cutoffs))]
    few = [rules for rules in found if len(rules.differing(own)) <= MOST_CHANGES]
    return sorted(few, key=lambda rules: len(rules.differing(own)))


def replay(material: Material, metric: str) -> list[Replayed]:
    """Score a run under its own rules and under every single change.

    If single changes do not reproduce every published score, pairs of changes follow. The recorded means over named
    groups of queries count as single changes.
    """
    groups = [
        Replayed((f"only the queries of {name}",), means[metric], None)
        for name, means in sorted(material.cell.groups.items())
        if metric in means
    ]
    found: list[Replayed] = []
    for changes, members in itertools.groupby(
        candidates(material, metric), key=lambda rules: len(rules.differing(own_rules(material, metric)))
    ):
        if changes == MOST_CHANGES and all(one.reproduced_by for one in reproductions(material, found, metric)):
            break
        found += [score(material, rules, metric) for rules in members]
        found += groups if changes == 1 else []
    return found


def asked(material: Material) -> set[str]:
    """Return the ids of the run's queries: those with hits and those in its judgements."""
    return {*material.run, *material.qrels}


def replay_splits(material: Material, others: Sequence[OtherSplit], metric: str) -> list[Replayed]:
    """Score a run under its own rules with the judgements of other splits, for the queries that they share.

    If a split judges more queries, two means are given: over the shared queries, as trec_eval computes it, and over all
    with 0 for queries that the run lacks, as trec_eval -c does.
    """
    found = []
    for other in others:
        if not other.qrels:
            continue
        value = score(material._replace(qrels=other.qrels), own_rules(material, metric), metric).value
        shared = len(other.qrels)
        if shared == other.judged:
            found.append(Replayed((f"judgements of split {other.name}",), value, shared))
            continue
        words = f"judgements of split {other.name}, {shared:,} of whose {other.judged:,} queries are in the run"
        found.append(Replayed((f"{words}; the others left out",), value, shared))
        found.append(Replayed((f"{words}; the others 0",), value * shared / other.judged, other.judged))
    return found


def disjoint(material: Material, others: Sequence[OtherSplit]) -> list[str]:
    """Return a line for every split that judges none of the run's queries."""
    return [
        f"split {other.name}: none of its {other.judged:,} judged queries is among the run's {len(asked(material)):,}; "
        f"only a run of that split's queries can be scored by it (dataset.split={other.name})"
        for other in others
        if not other.qrels
    ]


def reproductions(
    material: Material, replayed: Sequence[Replayed], metric: str, *, deviation: float = 0.0
) -> list[Reproduction]:
    """Return each published score of the cell with the simplest rule sets that give it at its printed digits.

    The first entry of `replayed` has the run's own rules; the verdict is on its value. `deviation` is the cell's
    measured deviation between re-runs, which the verdict allows for.
    """
    found = []
    cell = material.cell
    for one in published.find(cell.model, cell.dim, cell.dataset, metric):
        equal = [entry for entry in replayed if rounded(entry.value, one.digits) == one.value]
        fewest = min((len(entry.changed) for entry in equal), default=0)
        verdict = published.verdict(
            replayed[0].value,
            one,
            deviation=deviation,
            declared_loss=one.index_loss,
            differs=comparability.differing(cell, one),
        )
        found.append(Reproduction(one, verdict, tuple(entry for entry in equal if len(entry.changed) == fewest)))
    return found


class OtherState(NamedTuple):
    """Another state of the model's repository, and the cell that was computed in that state, if there is one."""

    variant: Variant
    cell: CellScores | None


def other_states(cell: CellScores, cells: Sequence[CellScores]) -> list[OtherState]:
    """Return the known variants of a cell's model; they change vectors, so no scoring rule can replace them.

    A cell in another state counts only if it was evaluated on the same.
    """
    systems = [one for one in cells if (one.model, one.dim) == (cell.model, cell.dim)]
    same_system = [one for one in systems if not evaluated.differences(one, cell)]
    found = []
    for variant in metadata.variants(cell.model):
        if _setting_of(cell, variant.setting) != variant.value:
            made = (one for one in same_system if _setting_of(one, variant.setting) == variant.value)
            found.append(OtherState(variant, next(made, None)))
    return found


def _setting_of(cell: CellScores, name: str) -> object:
    return results.flat(cell.protocol).get(name)
