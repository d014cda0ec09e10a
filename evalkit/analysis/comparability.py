"""Decide whether a cell can be compared with published scores of its system.

Every verdict, table, average and export uses these functions, so that a cell is treated in the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from evalkit.models import weights
from evalkit.scoring import published
from evalkit.scoring.published import PublishedScore
from evalkit.storage import evaluated
from evalkit.storage.results import INDEX

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores


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
    )


def representative(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the cells that measure their system as published: the only ones in the card's tables, means and exports.

    Such a cell has no departures, was searched exactly, and has the known settings of at least one score that is
    published for it. If none is published, its settings do not matter.
    """
    return tuple(cell for cell in cells if not departures(cell) and cell.search == "exact" and _as_published(cell))


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
