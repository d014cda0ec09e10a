"""The cells of a results folder that can enter the tables, and the reasons why others cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evalkit.analysis import comparability
from evalkit.scoring import published
from evalkit.storage import evaluated, keys
from evalkit.storage.results import CellScores, differing, readable


class Collected(NamedTuple):
    """The cells for the tables, and a message for every cell that was left out or marked as deviating."""

    cells: tuple[CellScores, ...]
    problems: tuple[str, ...]


def collect(results_dir: Path, *, checksums: Mapping[str, str]) -> Collected:
    """Read every readable result of a results folder.

    `checksums` maps datasets to the published checksums of their corpora. A damaged result is left out. If several
    results claim the same cell, all of them are left out, because none has precedence. A result on another corpus, or
    with other queries or judgements than others on its dataset and split, is kept, and that is added to its deviations.
    """
    found, unreadable = readable(results_dir)
    cells, problems = _with_judgements_checked(*_with_corpora_checked(found, checksums, unreadable))
    claims: dict[tuple[str, int | None, str, str], list[CellScores]] = {}
    # A result with other weights, another dataset or an edited protocol does not compete for the cell.
    representative = set(map(id, comparability.representative(cells)))
    kept = [cell for cell in cells if id(cell) not in representative]
    for cell in cells:
        if id(cell) in representative:
            claims.setdefault((cell.model, cell.dim, cell.dataset, _own_split(cell)), []).append(cell)
    for (model, dim, dataset, _), claiming in claims.items():
        if len(claiming) == 1:
            kept += claiming
            continue
        named = " and ".join(cell.run_id for cell in claiming)
        settings = ", ".join(differing(claiming)) or "nothing"
        problems.append(
            f"{keys.label(model, dim)} on {dataset}: {len(claiming)} results claim this cell, {named} "
            f"(they differ in {settings}); "
            "none is tabled: move all but one out of the results folder, or, if they are re-runs, below reruns/"
        )
    return Collected(tuple(sorted(kept, key=lambda cell: cell.run_id)), tuple(problems))


def _own_split(cell: CellScores) -> str:
    """Return a cell's split; "" where something is published, because that is of one split, even if not stated."""
    known = any(published.find(cell.model, cell.dim, cell.dataset, metric) for metric in cell.metrics)
    return "" if known else cell.split


def _with_corpora_checked(
    cells: Sequence[CellScores], checksums: Mapping[str, str], problems: Sequence[str]
) -> tuple[list[CellScores], list[str]]:
    """Mark results on another corpus than the dataset's; if its checksum is unknown, those on differing corpora."""
    corpora: dict[str, set[str]] = {}
    for cell in cells:
        corpora.setdefault(cell.dataset, set()).add(str(cell.protocol.get("corpus")))
    checked, found = [], list(problems)
    for cell in cells:
        got, wanted = str(cell.protocol.get("corpus")), checksums.get(cell.dataset)
        if wanted is not None and got != wanted:
            why = f"corpus checksum is {got}, {cell.dataset} has {wanted}"
        elif wanted is None and len(corpora[cell.dataset]) > 1:
            why = f"corpus checksum is {got}, other results on {cell.dataset} have another"
        else:
            checked.append(cell)
            continue
        found.append(f"{cell.run_id}: {why}; run the cell again on the same copy of the dataset")
        checked.append(dataclasses.replace(cell, deviations=(*cell.deviations, why)))
    return checked, found


def _with_judgements_checked(
    cells: Sequence[CellScores], problems: Sequence[str]
) -> tuple[list[CellScores], list[str]]:
    """Mark results whose queries or judgements differ from those of others on their dataset and split.

    Results that deviate already do not make others deviate.
    """
    sound: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        if not cell.deviations:
            sound.setdefault((cell.dataset, cell.split), []).append(cell)
    checked, found = [], list(problems)
    for cell in cells:
        others = sound.get((cell.dataset, cell.split), []) if not cell.deviations else []
        differing = next(filter(None, (evaluated.differences(cell, other) for other in others)), [])
        why = tuple(
            f"{each.what} are {each.one}, other results on {cell.dataset} have {each.other}" for each in differing
        )
        if why:
            remedy = "run the cells again on the same copy of the dataset (a finished run is scored again)"
            found.append(f"{cell.run_id}: {' and '.join(why)}; {remedy}")
        checked.append(dataclasses.replace(cell, deviations=(*cell.deviations, *why)))
    return checked, found
