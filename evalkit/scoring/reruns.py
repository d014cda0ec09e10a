"""The deviation between re-runs of a cell, measured from stored runs.

A re-run computes the same cell on another device, processor or library version, or with another value of one of
SETTINGS, none of which should matter. It has its own results folder below `reruns/`, written with
`results_dir=results/reruns/NAME`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evalkit.storage import results
from evalkit.storage.results import CellScores

FOLDER = "reruns"
SETTINGS = (
    "attention",
    "batch_tokens",
    "cut",
    "dtype",
    "elementwise",
    "encoding_rules",
    "rope_frequencies",
    "shard_tokens",
)
"""Protocol settings that change only the last digits of a vector; a publication would not state them."""
FACTS = ("device", "processor", "platform", "threads", "python", "packages")
"""Entries of the environment that are listed when the runs of a cell differ in them."""


class Deviation(NamedTuple):
    """The measured deviation of a metric over the runs of one cell."""

    system: str
    dim: int | None
    dataset: str
    metric: str
    value: float
    """The sample standard deviation of the metric over the runs."""
    runs: int
    """The number of runs: the one in the tables and its re-runs."""
    differing: tuple[str, ...]
    """The settings and facts in which the runs differ; empty if none do."""


def measure(cells: Iterable[CellScores], results_dir: Path) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
    """Return the deviation per metric of each cell with re-runs, and a message for every re-run that was left out.

    `cells` are the cells in the tables. A run with another corpus, other queries, lengths or weights is not a re-run;
    it is left out, and its message lists the settings in which it differs.
    """
    tabled = {_name(cell): cell for cell in cells}
    members: dict[tuple[object, ...], list[CellScores]] = {}
    problems = []
    for folder in sorted((results_dir / FOLDER).glob("*")):
        again, unreadable = results.readable(folder)
        problems += unreadable
        for cell in again:
            problems += results.edited(folder, cell).values()
            where = f"{folder.name}/{cell.run_id}"
            if (base := tabled.get(_name(cell))) is None:
                problems.append(
                    f"{where}: got no run of this cell in the tables, wanted one to compare with; move it to runs/"
                )
            elif other := [name for name in results.differing([base, cell]) if name.split(".")[0] not in SETTINGS]:
                problems.append(
                    f"{where}: differs from {base.run_id} in {', '.join(other)}, wanted a re-run (other "
                    f"{', '.join(SETTINGS)} or machine); remove it"
                )
            else:
                members.setdefault(_name(cell), [base]).append(cell)
    return tuple(one for runs in members.values() for one in _deviations(runs)), tuple(problems)


def of(cell: CellScores, metric: str, deviations: Iterable[Deviation]) -> float:
    """Return a cell's measured deviation in a metric; 0 if the cell has no re-runs."""
    key = (cell.model, cell.dim, cell.dataset, metric)
    return next((one.value for one in deviations if (one.system, one.dim, one.dataset, one.metric) == key), 0.0)


def _name(cell: CellScores) -> tuple[object, ...]:
    return cell.model, cell.dim, cell.dataset, cell.split, cell.search


def _deviations(runs: Sequence[CellScores]) -> list[Deviation]:
    base = runs[0]
    differing = (*results.differing(runs), *_facts(runs))
    return [
        Deviation(base.model, base.dim, base.dataset, metric, statistics.stdev(values), len(runs), differing)
        for metric in base.metrics
        if len(values := [run.metrics[metric] for run in runs if metric in run.metrics]) == len(runs)
    ]


def _facts(runs: Sequence[CellScores]) -> list[str]:
    """Return the names of the environment's facts in which runs differ; each package is a fact of its own."""
    known = [results.flat({name: run.environment.get(name) for name in FACTS}) for run in runs]
    names = dict.fromkeys(name for facts in known for name in facts)
    return [name for name in names if len({repr(facts.get(name)) for facts in known}) > 1]
