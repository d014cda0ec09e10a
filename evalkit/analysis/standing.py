"""Whether a run represents its system as published.

Every verdict, table, average and export uses these functions, so that a run is treated in the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evalkit.models import weights
from evalkit.scoring import published
from evalkit.scoring.published import PublishedScore

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores


def departures(cell: CellScores) -> tuple[str, ...]:
    """Return the deviations because of which a run is not a run of the system and dataset that it is named after."""
    return (*cell.deviations, *weights.differing(cell))


def differing(cell: CellScores, score: PublishedScore) -> tuple[str, ...]:
    """Return all differences between a run and the conditions under which a score was published."""
    return (*departures(cell), *published.differing(score, cell.protocol, cell.split, self_hits=cell.self_hits))


def representative(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the runs that represent their system on their dataset: those without departures."""
    return tuple(cell for cell in cells if not departures(cell))


def exportable(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the runs whose scores may be exported under their system's name.

    A run that differs from the conditions of every published score does not measure any of them, so it is left out. If
    no score is published for a run, it only must have no departures.
    """
    return tuple(cell for cell in representative(cells) if _as_someone_published(cell))


def _as_someone_published(cell: CellScores) -> bool:
    scores = [score for metric in cell.metrics for score in published.find(cell.model, cell.dim, cell.dataset, metric)]
    return not scores or any(not differing(cell, score) for score in scores)
