"""Decide whether a cell can be compared with published scores of its system, and whether cells have a common mean.

Every verdict, table, average and export uses these functions, so that a cell is treated in the same way everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.config.files import settings_in
from evalkit.config.settings import Bm25Config, EncoderConfig, TextRules, configs_dir, group_files, value_for
from evalkit.errors import ConfigError
from evalkit.models import weights
from evalkit.scoring import published
from evalkit.scoring.mteb_results import MEASURED_BY
from evalkit.scoring.published import PublishedScore
from evalkit.storage import evaluated, results
from evalkit.storage.results import INDEX

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores

IGNORED_WITHIN_PROTOCOL = frozenset(
    (
        *("corpus", "queries", "run_file", "dataset_revision"),
        *("attention", "elementwise", "batch_tokens", "shard_tokens", "cut", "heads", "encoding_rules"),
        "depth",
    )
)
"""Settings that may differ within one protocol.

They are the dataset's content, settings that change only the last bits of vectors, and the depth: it is never below the
cutoff of an averaged metric.
"""
OF_SYSTEM = frozenset(
    (
        *("pooling", "normalize", "skiplist", "skiplist_words", "adapter"),
        *(
            f"{side}.{rule}"
            for side in ("query", "document")
            for rule in ("max_tokens", "marker", "expansion", "attend_to_expansion")
        ),
        *("k1", "b", "fields", "analyzer", "lengths", "unmatched", "ties"),
    )
)
"""Settings of a model's packaged config that are part of the system, whether or not a published score states them.

The dtype is not among them: a job may compute more precisely than others did, and a lower precision is compared where
a score states it. Nor is rope_theta, which is inferred: the published vectors decide it where their checkpoint is here.
"""
LEFT_OUT = {"k1": ("lengths", "unmatched"), "pooling": ("adapter", "skiplist_words")}
"""Settings that a protocol leaves out at their defaults, by a setting that every such protocol has."""
OF_LANGUAGE = ("analyzer", "adapter")
"""Settings that a model may have per language."""
OF_DATASET = ("drop_self", "split")
"""Settings that a dataset's config decides."""
OF_MTEB = {MEASURED_BY: "the release of mteb", "revision": "the model's revision"}
"""Facts in the environment of cells that mteb measured, which their protocol lacks."""


def departures(cell: CellScores) -> tuple[str, ...]:
    """Return the ways in which a cell departs from the system and the dataset that it is named after.

    These are its deviations from the dataset, and weights other than the published ones.
    """
    return (*cell.deviations, *weights.differing(cell))


def differing(cell: CellScores, score: PublishedScore) -> tuple[str, ...]:
    """Return all differences between a cell and the conditions under which a score was published."""
    indexed = () if cell.search == "exact" or "search" in score.settings else (f"search is {cell.search}, not exact",)
    return (
        *departures(cell),
        *indexed,
        *published.differing(score, cell.protocol, cell.split, self_hits=cell.self_hits),
        *edited_settings(_with_defaults(cell), score, system=cell.model, dataset=cell.dataset, language=cell.language),
    )


def edited_settings(
    settings: Mapping[str, Any], score: PublishedScore, *, system: str, dataset: str, language: str
) -> tuple[str, ...]:
    """Return a sentence for each setting that is not that of the system's packaged config, where the score states none.

    `settings` are by dotted name. The config decides what its system is, as far as nobody published it; for a system
    without a packaged config nothing is returned.
    """
    path = configs_dir() / "model" / f"{system}.yaml"
    if not path.is_file():
        return ()
    config = _settings(path, "model", path.stat().st_mtime_ns)
    found = []
    for name in sorted(OF_SYSTEM & settings.keys() - score.settings.keys()):
        wanted = _plain(_packaged(config, name, language if name in OF_LANGUAGE else dataset))
        got = _plain(settings[name])
        if got != wanted:
            found.append(f"{name} is {published.shown(got)}, {published.shown(wanted)} in the config of {system}")
    return tuple(found)


def _packaged(config: Mapping[str, Any], name: str, of: str) -> object:
    """Return a setting of a model's packaged config, its value for a dataset or language if it has several."""
    *groups, last = name.split(".")
    values: Mapping[str, Any] = config
    for group in groups:
        values = values[group]
    found = values.get(last, _default(name))
    return value_for(found, of) if isinstance(found, Mapping) else found


def _default(name: str) -> object:
    """Return the default of a setting of OF_SYSTEM; None if it has none."""
    *groups, last = name.split(".")
    kinds: tuple[type[Any], ...] = (TextRules,) if groups else (EncoderConfig, Bm25Config)
    fields = (field for kind in kinds for field in dataclasses.fields(kind) if field.name == last)
    return next((field.default for field in fields if field.default is not dataclasses.MISSING), None)


def _with_defaults(cell: CellScores) -> dict[str, Any]:
    """Return a cell's settings by dotted name, with those that its protocol leaves out at their defaults."""
    settings = results.flat(cell.protocol)
    if "run_file" in settings:  # has only declared settings
        return settings
    left_out = (name for known, names in LEFT_OUT.items() if known in settings for name in names)
    return {**{name: _default(name) for name in left_out}, **settings}


def _plain(value: object) -> object:
    """Return a tuple as a list, as in a result."""
    return list(value) if isinstance(value, tuple) else value


def representative(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the cells that measure their system as published: the only ones in the card's tables, means and exports.

    Such a cell has no departures, was searched exactly, and has the known settings of at least one score that is
    published for it. If none is published, its settings do not matter.
    """
    return tuple(cell for cell in cells if not departures(cell) and cell.search == "exact" and _as_published(cell))


def varying(cells: Sequence[CellScores]) -> tuple[str, ...]:
    """Return what differs among cells of one system on several datasets so that they have no common mean.

    Settings may differ as far as the dataset decides them: by the rules in its config, by the values that the model's
    config gives per dataset, by its language, and by the exceptions of a published table with these cells.
    """
    names = [
        name
        for name in results.differing(cells)
        if name not in IGNORED_WITHIN_PROTOCOL and not _decided_by_dataset(cells, name)
    ]
    facts = [what for fact, what in OF_MTEB.items() if len({str(cell.environment.get(fact)) for cell in cells}) > 1]
    return (*names, *facts)


def _decided_by_dataset(cells: Sequence[CellScores], name: str) -> bool:
    """Whether the datasets or their languages decide a setting in which cells of one system differ."""
    values = [cell.split if name == "split" else results.flat(cell.protocol).get(name) for cell in cells]
    if _published_with(cells, name, values):
        return True
    if name in OF_LANGUAGE:
        return len({(cell.language, repr(value)) for cell, value in zip(cells, values, strict=True)}) == len(
            {cell.language for cell in cells}
        )
    if name in OF_DATASET:
        return all(_is_datasets_rule(cell, name, value) for cell, value in zip(cells, values, strict=True))
    configs = _configs("model")
    own = [config for config in configs if config.get("name") == cells[0].model]
    return any(  # a system that was named on the command line has the config of another name
        all(_in(config, name, cell.dataset) == value for cell, value in zip(cells, values, strict=True))
        for config in own or configs
    )


def _published_with(cells: Sequence[CellScores], name: str, values: Sequence[object]) -> bool:
    """Whether one source published scores of all cells and states these values of a setting."""
    sources = [
        {
            score.source
            for metric in cell.metrics
            for score in published.find(cell.model, cell.dim, cell.dataset, metric)
            if name in score.settings and score.settings[name] == value
        }
        for cell, value in zip(cells, values, strict=True)
    ]
    return bool(set.intersection(*sources))


def _is_datasets_rule(cell: CellScores, name: str, value: object) -> bool:
    """Whether a cell follows its dataset's config, if there is one; without self-ids their rule does not matter."""
    if name == "drop_self" and cell.self_hits == 0:
        return True
    configs = [config for config in _configs("dataset") if config.get("name") == cell.dataset]
    return not configs or configs[0].get(name) == value


def _in(config: Mapping[str, Any], name: str, dataset: str) -> object:
    """Return a model config's value for a dataset, if it gives the setting per dataset."""
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return value_for(found, dataset) if isinstance(found, Mapping) else None


def _configs(group: str) -> list[Mapping[str, Any]]:
    """Return the readable configs of a group, including the user's own."""
    found = []
    for path in group_files(group).values():
        with suppress(ConfigError, OSError):  # a damaged file is reported where it is chosen
            found.append(_settings(path, group, path.stat().st_mtime_ns))
    return found


@lru_cache(maxsize=1024)
def _settings(path: Path, group: str, _modified: int) -> Mapping[str, Any]:
    return settings_in(path, group)


def index_losses(cells: Iterable[CellScores]) -> dict[str, float]:
    """Return the index loss of each cell that searched an index, by run id.

    The loss is the main metric of the exact cell with the same embeddings minus that of the cell. A cell is left out if
    its exact cell is not among the given ones, or was scored with other judgements.
    """
    known = {cell.run_id: cell for cell in cells}
    losses = {}
    for cell in known.values():
        index = cell.environment.get(INDEX)
        exact = known.get(str(index.get("exact_run"))) if isinstance(index, Mapping) else None
        if cell.search == "exact" or exact is None or evaluated.differences(exact, cell):
            continue
        if cell.main_metric in exact.metrics:
            losses[cell.run_id] = exact.metrics[cell.main_metric] - cell.metrics[cell.main_metric]
    return losses


def _as_published(cell: CellScores) -> bool:
    scores = [score for metric in cell.metrics for score in published.find(cell.model, cell.dim, cell.dataset, metric)]
    return not scores or any(not differing(cell, score) for score in scores)
