"""What cells were evaluated on: dataset, split, corpus, queries and judgements.

Two cells can be compared only if all of these are the same. Older results lack some checksums, and scores that mteb
measured lack all, so only values that both cells recorded can differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evalkit.errors import ChangedError, ScoreError
from evalkit.storage.results import QRELS_CHECKSUM, CellScores

_SAME_COPY = "run both on the same copy of {dataset}, or give the other collection a dataset.name of its own"
_REMEDIES = {
    "dataset": "give two cells on one dataset",
    "split": "run both with the same dataset.split",
    "corpus": _SAME_COPY,
    "queries": _SAME_COPY,
    "judgements": "run both again on the same copy of {dataset} (evalkit run scores a finished run again)",
}
"""What to do about each difference. The first one that applies decides."""


class Difference(NamedTuple):
    """One thing in which two cells differ: a key of _REMEDIES, and its value in each cell."""

    what: str
    one: str
    other: str


def differences(one: CellScores, other: CellScores) -> list[Difference]:
    """Return how two cells differ in what they were evaluated on; empty if they are known to differ in nothing.

    Judgements without a recorded checksum are compared by their number.
    """
    values, others = _recorded(one), _recorded(other)
    if "judgements" not in values or "judgements" not in others:
        values, others = (
            {name: value for name, value in known.items() if name != "judgements"}
            | ({"judgements": f"{count} of them"} if (count := cell.counts.get("judgements")) is not None else {})
            for cell, known in ((one, values), (other, others))
        )
    return [
        Difference(what, values[what], others[what])
        for what in _REMEDIES
        if what in values and what in others and values[what] != others[what]
    ]


def _recorded(cell: CellScores) -> dict[str, str]:
    """Return what a cell recorded of the things that it was evaluated on."""
    values = {
        "dataset": cell.dataset,
        "split": cell.split,
        "corpus": cell.protocol.get("corpus"),
        "queries": cell.protocol.get("queries"),
        "judgements": cell.environment.get(QRELS_CHECKSUM),
    }
    return {what: str(value) for what, value in values.items() if value is not None}


def refuse_differing(cells: Sequence[CellScores]) -> None:
    """Raise ScoreError that names two cells, and what they differ in, unless all were evaluated on the same."""
    for one, other in itertools.combinations(cells, 2):
        if found := differences(one, other):
            got = " and ".join(f"{each.what} ({each.one}, {each.other})" for each in found)
            msg = f"{one.run_id} and {other.run_id}: differ in {got}, wanted two cells that were evaluated on the same"
            remedy = _REMEDIES[found[0].what].format(dataset=one.dataset)
            raise ScoreError(f"{msg}; {remedy}, and name both by run id (evalkit ls runs --wide)")


def refuse_other_texts(cell: CellScores, checksums: Mapping[str, str], *, source: str) -> None:
    """Raise ChangedError unless the checksums of corpus and queries, read from a source now, are those of the run."""
    for part, checksum in checksums.items():
        if (recorded := cell.protocol.get(part)) not in (None, checksum):
            msg = f"{cell.run_id}: got {part} of checksum {checksum} from {source}, wanted the run's {recorded}"
            raise ChangedError(f"{msg}; give the same copy of the dataset by --dataset-path, or run the cell again")
