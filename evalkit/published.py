"""Published scores as data, the verdict on a measured one, and the audit of the card's own arithmetic.

The rounding rule: a value is rounded half up in decimal, on the shortest decimal that names the float, as people do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from evalkit.errors import ScoreError

NEAR = 0.001
"""How far a re-run may be from a published score and still be called near: the tolerance that MTEB uses."""
CARD = "card"

Label = Literal["MATCH", "NEAR", "HIGHER", "LOWER", "PROTOCOL-DIFFERS", "NOT-RUN"]


class PublishedScore(NamedTuple):
    """One published cell."""

    system: str
    dim: int | None
    dataset: str
    metric: str
    value: float
    digits: int
    """Decimals as printed."""
    source: str
    """Who published it: `card` is the model card itself."""
    origin: str
    """`run` by who published it, or `quoted` from elsewhere."""
    table: str
    note: str


class StatedAverage(NamedTuple):
    """An average that a table prints, and the rows that it stands over."""

    system: str
    dim: int | None
    table: str
    metric: str
    value: float
    digits: int
    rows: Mapping[str, float]


class AverageAudit(NamedTuple):
    """A stated average beside its recomputation."""

    stated: StatedAverage
    recomputed: float
    holds: bool
    explained_by_dropping: tuple[tuple[str, ...], ...]
    """The smallest sets of rows without which the stated value comes out; empty when none of up to two rows does."""


class Verdict(NamedTuple):
    """What a measured value says about a published one."""

    label: Label
    differs: tuple[str, ...] = ()
    """The settings that differ, where that is the verdict."""


def published_dir() -> Path:
    """Return the folder of published scores: inside an installed wheel, else in the checkout."""
    installed = Path(__file__).parent / "_published"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "results" / "published"


@cache
def _tables(directory: Path) -> tuple[dict[str, Any], ...]:
    return tuple(_read(path) for path in sorted(directory.glob("*.yaml")))


def _read(path: Path) -> dict[str, Any]:
    """Read one table. Raises ScoreError, naming the file, when it is not one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in ("table", "metric", "digits", "source", "protocol", "systems", "averages"):
            values[key]
        for system in values["systems"]:
            for key in ("system", "dim", "origin", "values"):
                system[key]
            if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in system["values"].values()):
                msg = f"{path}: a value of {system['system']} is not a finite number; repair the file"
                raise ScoreError(msg)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        msg = f"{path}: not a table of published scores ({type(error).__name__}: {reason}); repair the file"
        raise ScoreError(msg) from error
    return dict(values)


def published_scores(directory: Path | None = None) -> tuple[PublishedScore, ...]:
    """Return every published cell, table by table. Raises ScoreError for a malformed file."""
    return tuple(
        PublishedScore(
            system["system"],
            system["dim"],
            dataset,
            table["metric"],
            float(value),
            table["digits"],
            table["source"],
            system["origin"],
            table["table"],
            system.get("note", ""),
        )
        for table in _tables(directory or published_dir())
        for system in table["systems"]
        for dataset, value in system["values"].items()
    )


def find(system: str, dim: int | None, dataset: str, metric: str) -> list[PublishedScore]:
    """Return what was published for a cell, the card's score first; the same value of one source counts once."""
    found: dict[tuple[str, float], PublishedScore] = {}
    for score in published_scores():
        if (score.system, score.dim, score.dataset, score.metric) == (system, dim, dataset, metric):
            found.setdefault((score.source, score.value), score)
    return sorted(found.values(), key=lambda score: (score.source != CARD, score.source))


def rounded(value: float, digits: int) -> float:
    """Round half up in decimal.

    >>> rounded(0.1245, 3), rounded(0.6275, 3), round(0.1245, 3)
    (0.125, 0.628, 0.124)
    """
    return float(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def verdict(
    measured: float | None,
    published: PublishedScore,
    *,
    deviation: float = 0.0,
    declared_loss: float = 0.0,
    differs: Sequence[str] = (),
) -> Verdict:
    """Say whether a measured value reproduces a published one.

    MATCH: equal at the printed digits. NEAR: within the largest of .001, three times the measured `deviation` between
    re-runs, and a `declared_loss` of the published system's index. `differs` names settings known to differ.
    """
    if measured is None:
        return Verdict("NOT-RUN")
    if differs:
        return Verdict("PROTOCOL-DIFFERS", tuple(differs))
    if rounded(measured, published.digits) == published.value:
        return Verdict("MATCH")
    # In decimal: as floats, .326 is more than .001 above .325.
    delta = float(Decimal(repr(measured)) - Decimal(repr(published.value)))
    if abs(delta) <= max(NEAR, 3 * deviation, declared_loss):
        return Verdict("NEAR")
    return Verdict("HIGHER" if delta > 0 else "LOWER")


def stated_averages(directory: Path | None = None) -> tuple[StatedAverage, ...]:
    """Return every average that a table prints, with the rows it stands over."""
    found = []
    for table in _tables(directory or published_dir()):
        for average in table["averages"]:
            (rows,) = (
                system["values"]
                for system in table["systems"]
                if (system["system"], system["dim"]) == (average["system"], average["dim"])
            )
            found.append(
                StatedAverage(
                    average["system"],
                    average["dim"],
                    table["table"],
                    table["metric"],
                    float(average["value"]),
                    table["digits"],
                    rows,
                )
            )
    return tuple(found)


def audit(directory: Path | None = None) -> tuple[AverageAudit, ...]:
    """Recompute every stated average; where one does not hold, look for rows whose absence explains it."""
    return tuple(_audited(stated) for stated in stated_averages(directory))


def _audited(stated: StatedAverage) -> AverageAudit:
    recomputed = math.fsum(stated.rows.values()) / len(stated.rows)
    if rounded(recomputed, stated.digits) == stated.value:
        return AverageAudit(stated, recomputed, holds=True, explained_by_dropping=())
    for size in (1, 2):
        found = []
        for dropped in combinations(stated.rows, size):
            kept = [value for name, value in stated.rows.items() if name not in dropped]
            if rounded(math.fsum(kept) / len(kept), stated.digits) == stated.value:
                found.append(dropped)
        if found:
            return AverageAudit(stated, recomputed, holds=False, explained_by_dropping=tuple(found))
    return AverageAudit(stated, recomputed, holds=False, explained_by_dropping=())
