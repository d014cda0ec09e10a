"""Where a run stands: whether it is a run of its system as published, and so may speak for that system.

Every verdict, table, average, headline and export asks here, so that one run has one standing everywhere.
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
    """Return what makes a run one of another system or another dataset than it is named after."""
    return (*cell.deviations, *weights.differing(cell))


def differing(cell: CellScores, score: PublishedScore) -> tuple[str, ...]:
    """Return everything in which a run differs from how a score was published."""
    return (*departures(cell), *published.differing(score, cell.protocol, cell.split, self_hits=cell.self_hits))


def representative(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the runs that may stand for their system on their dataset: those without departures."""
    return tuple(cell for cell in cells if not departures(cell))


def exportable(cells: Iterable[CellScores]) -> tuple[CellScores, ...]:
    """Return the runs whose scores may leave the project under their system's name.

    A run that differs from every score published for it is no measurement of any of them. One that nothing is published
    for has only its departures to answer for.
    """
    return tuple(cell for cell in representative(cells) if _as_someone_published(cell))


def _as_someone_published(cell: CellScores) -> bool:
    scores = [score for metric in cell.metrics for score in published.find(cell.model, cell.dim, cell.dataset, metric)]
    return not scores or any(not differing(cell, score) for score in scores)
