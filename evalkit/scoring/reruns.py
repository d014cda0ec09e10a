"""How far re-runs of one cell lie apart: measured from runs, never typed in.

A re-run is the same cell run again with what should not matter changed: device, processor, libraries, or one of
SETTINGS. It lies in a results folder of its own below `reruns/`, as `results_dir=results/reruns/NAME` makes one.
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
"""The settings of the protocol that move the last digits of a vector and nothing that a publisher would state."""
FACTS = ("device", "processor", "platform", "threads", "python", "packages")
"""What of the environment is named where runs of a cell differ in it."""


class Deviation(NamedTuple):
    """How far the runs of one cell were measured to lie apart."""

    system: str
    dim: int | None
    dataset: str
    metric: str
    value: float
    """The sample standard deviation of the metric over the runs."""
    runs: int
    """The tabled run and its re-runs."""
    differing: tuple[str, ...]
    """In what these runs differ; nothing where the very same settings were run again."""


def measure(cells: Iterable[CellScores], results_dir: Path) -> tuple[tuple[Deviation, ...], tuple[str, ...]]:
    """Return each re-run cell's deviation per metric, and a line for every re-run that says nothing.

    `cells` are the tabled ones. A run with another corpus, other queries, lengths or weights is no re-run: it is named
    with the settings in which it differs, and left out.
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
                problems.append(f"{where}: got no tabled run of this cell, wanted one to compare; move it to runs/")
            elif other := [name for name in results.differing([base, cell]) if name.split(".")[0] not in SETTINGS]:
                problems.append(
                    f"{where}: differs from {base.run_id} in {', '.join(other)}, wanted a re-run (other "
                    f"{', '.join(SETTINGS)} or machine); remove it"
                )
            else:
                members.setdefault(_name(cell), [base]).append(cell)
    return tuple(one for runs in members.values() for one in _deviations(runs)), tuple(problems)


def of(cell: CellScores, metric: str, deviations: Iterable[Deviation]) -> float:
    """Return a cell's measured deviation in a metric; 0 for a cell that was run once."""
    key = (cell.model, cell.dim, cell.dataset, metric)
    return next((one.value for one in deviations if (one.system, one.dim, one.dataset, one.metric) == key), 0.0)


def _name(cell: CellScores) -> tuple[object, ...]:
    return cell.model, cell.dim, cell.dataset, cell.split


def _deviations(runs: Sequence[CellScores]) -> list[Deviation]:
    base = runs[0]
    differing = (*results.differing(runs), *_facts(runs))
    return [
        Deviation(base.model, base.dim, base.dataset, metric, statistics.stdev(values), len(runs), differing)
        for metric in base.metrics
        if len(values := [run.metrics[metric] for run in runs if metric in run.metrics]) == len(runs)
    ]


def _facts(runs: Sequence[CellScores]) -> list[str]:
    """Name the facts of the environment in which runs differ, packages one by one."""
    known = [results.flat({name: run.environment.get(name) for name in FACTS}) for run in runs]
    names = dict.fromkeys(name for facts in known for name in facts)
    return [name for name in names if len({repr(facts.get(name)) for facts in known}) > 1]
