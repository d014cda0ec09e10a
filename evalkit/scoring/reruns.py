"""The deviation between re-runs of a cell, measured from stored results.

A re-run computes the same cell again: on another device, with other library versions, or with another value of one of
SETTINGS. Such a change should alter only the last digits of a score. A re-run has its own results folder below
`reruns/`, written with `results_dir=results/reruns/NAME`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evalkit.storage import evaluated, results
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
"""Protocol settings that change only the last digits of a vector and that publications do not state."""
FACTS = ("device", "processor", "platform", "threads", "python", "packages")
"""Entries of the environment that are listed when the results of a cell differ in them."""


class Deviation(NamedTuple):
    """The measured deviation of a metric over the results of one cell."""

    cell: CellScores
    """The cell in the tables. No other cell has this deviation, not even one of its system on its dataset."""
    metric: str
    value: float
    """The sample standard deviation of the metric over the results."""
    runs: int
    """The number of results: the one in the tables and its re-runs."""
    differing: tuple[str, ...]
    """The settings and facts in which the results differ; empty if they differ in none."""


def measure(cells: Iterable[CellScores], results_dir: Path) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
    """Return the deviation per metric of each cell with re-runs, and a message for every re-run that was left out.

    `cells` are the cells in the tables. A result with another corpus, other queries, judgements, lengths or weights is
    not a re-run; it is left out, and its message lists what it differs in.
    """
    tabled: dict[tuple[object, ...], list[CellScores]] = {}
    for cell in cells:
        tabled.setdefault(_name(cell), []).append(cell)
    groups: dict[str, list[CellScores]] = {}
    problems = []
    for folder in sorted((results_dir / FOLDER).glob("*")):
        found, unreadable = results.readable(folder)
        problems += unreadable
        for cell in found:
            problems += results.edited(folder, cell).values()
            where = f"{folder.name}/{cell.run_id}"
            bases = tabled.get(_name(cell), [])
            if not bases:
                problems.append(
                    f"{where}: got a cell that is not in the tables, wanted a re-run of one; move it to runs/"
                )
            elif (base := next((one for one in bases if not _differing(one, cell)), None)) is None:
                problems.append(
                    f"{where}: differs from {bases[0].run_id} in {', '.join(_differing(bases[0], cell))}, wanted a "
                    f"re-run (other {', '.join(SETTINGS)} or machine); run it again on the same dataset, or remove it"
                )
            else:
                groups.setdefault(base.run_id, [base]).append(cell)
    return tuple(one for group in groups.values() for one in _deviations(group)), tuple(problems)


def of(cell: CellScores, metric: str, deviations: Iterable[Deviation]) -> float:
    """Return a cell's measured deviation in a metric; 0 if the cell has no re-runs."""
    return by_cell(deviations).get((cell.run_id, metric), 0.0)


def by_cell(deviations: Iterable[Deviation]) -> dict[tuple[str, str], float]:
    """Return the measured deviations by run id of the cell in the tables and metric."""
    return {(one.cell.run_id, one.metric): one.value for one in deviations}


def _name(cell: CellScores) -> tuple[object, ...]:
    return cell.model, cell.dim, cell.dataset, cell.split, cell.search


def _differing(base: CellScores, cell: CellScores) -> list[str]:
    """Return the names of the differences that make a result something else than a re-run of the base."""
    names = [name for name in results.differing([base, cell]) if name.split(".")[0] not in SETTINGS]
    names += [found.what for found in evaluated.differences(base, cell)]
    names += ["deviations"] if base.deviations != cell.deviations else []
    return list(dict.fromkeys(names))


def _deviations(group: Sequence[CellScores]) -> list[Deviation]:
    """Return the deviation of every metric that all results of a cell have."""
    base = group[0]
    differing = (*results.differing(group), *_differing_facts(group))
    return [
        Deviation(base, metric, statistics.stdev(values), len(group), differing)
        for metric in base.metrics
        if len(values := [cell.metrics[metric] for cell in group if metric in cell.metrics]) == len(group)
    ]


def _differing_facts(group: Sequence[CellScores]) -> list[str]:
    """Return the names of the environment's facts in which results differ; each package is a fact of its own."""
    known = [results.flat({name: cell.environment.get(name) for name in FACTS}) for cell in group]
    names = dict.fromkeys(name for facts in known for name in facts)
    return [name for name in names if len({repr(facts.get(name)) for facts in known}) > 1]
