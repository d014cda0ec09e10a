"""Published scores as data, the verdict on a measured one, and the audit of the card's own arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from evalkit.config import files
from evalkit.errors import ScoreError
from evalkit.scoring.decimals import as_decimal, rounded

NEAR = 0.001
"""Largest difference from a published score that counts as NEAR: the tolerance that MTEB uses."""
DEFAULTS: Mapping[str, str] = {"search": "exact", "first_stage": "none"}
"""The values of these settings if a cell's protocol lacks them: exact search, without a first stage."""
PROMPTS = ("query.prompt", "document.prompt")
"""Settings that are compared even if a published score does not state them: then it was measured without a prompt."""
CARD = "card"
"""The source of scores that the model card publishes."""
ORIGINS = ("run", "quoted")

Label = Literal["MATCH", "NEAR", "HIGHER", "LOWER", "PROTOCOL-DIFFERS", "NOT-RUN"]


class PublishedScore(NamedTuple):
    """One published score: a metric of one system on one dataset, from one source."""

    system: str
    dim: int | None
    dataset: str
    metric: str
    value: float
    digits: int
    """Decimals as printed."""
    source: str
    """Who published it; `card` is the model card itself."""
    origin: str
    """`run` if the publisher measured it, or `quoted` from elsewhere."""
    table: str
    """The name of the table with this score."""
    note: str
    """A remark on the system's whole column."""
    slip: str = ""
    """Why this cell is likely a typing error; `[A]` according to a primary source, `[C]` inferred."""
    protocol: str = ""
    """The table's own description of the measurement."""
    settings: Mapping[str, Any] = {}
    """The known settings of the measurement, by dotted name as in a cell's protocol."""
    version: str = ""
    """The release of the measuring software, if its publisher records it."""
    index_loss: float = 0.0
    """The loss of an approximate index that the publisher declares; no source of the card declares any."""


class StatedAverage(NamedTuple):
    """An average that a table prints, and the rows that it is computed over."""

    system: str
    dim: int | None
    table: str
    metric: str
    value: float
    digits: int
    rows: Mapping[str, float]


class PublishedMean(NamedTuple):
    """A mean over datasets that is published without the single scores."""

    score: PublishedScore
    """The mean as a score, with the collection's name instead of a dataset's."""
    datasets: tuple[str, ...]


class AverageAudit(NamedTuple):
    """A stated average and its recomputed value."""

    stated: StatedAverage
    recomputed: float
    holds: bool
    explained_by_dropping: tuple[tuple[str, ...], ...]
    """The smallest sets of rows whose omission gives the stated value; empty if no set of up to two rows does."""


class Claim(NamedTuple):
    """An average that is stated outside the tables, over a table's rows and other cells of the card."""

    system: str
    dim: int | None
    table: str
    value: float
    digits: int
    stated: str
    """Where it is stated and over which datasets, in the author's words; `[C]` if the datasets are inferred."""
    also: tuple[str, ...]
    """The datasets in addition to the table's rows."""
    recomputed: float

    @property
    def holds(self) -> bool:
        """Whether the rows give the stated value."""
        return rounded(self.recomputed, self.digits) == self.value


class Verdict(NamedTuple):
    """The relation of a measured value to a published one."""

    label: Label
    differs: tuple[str, ...] = ()
    """The settings that differ, as sentences; empty unless the verdict is PROTOCOL-DIFFERS."""


def published_dir() -> Path:
    """Return the folder of published scores: inside an installed wheel, else in the checkout."""
    installed = Path(__file__).parents[1] / "_published"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "results" / "published"


@cache
def _tables(directory: Path) -> tuple[dict[str, Any], ...]:
    """Read every table of a folder. Raises ScoreError if there is none: every cell would look unpublished."""
    paths = sorted(directory.glob("*.yaml"))
    if not paths:
        msg = f"{directory}: got no *.yaml, wanted the tables of published scores; install evalkit again"
        raise ScoreError(msg)
    return tuple(_read(path) for path in paths)


class _Loader(files.Loader):
    """A loader that raises an error for a repeated key; PyYAML itself keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (PyYAML's own signature)
        """Return the mapping. Raises ConstructorError for a repeated key."""
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            names = [self.construct_object(name) for name, _ in node.value]
            twice = next(name for place, name in enumerate(names) if name in names[:place])
            raise yaml.constructor.ConstructorError(None, None, f"got key {twice!r} twice", node.start_mark)
        return mapping


def _read(path: Path) -> dict[str, Any]:
    """Read one table. Raises ScoreError that names the file if it is not a table."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
        for key in ("table", "metric", "digits", "source", "protocol", "systems", "averages"):
            values[key]
        values.get("settings", {}).items()
        for system in values["systems"]:
            for key in ("system", "dim", "origin", "values"):
                system[key]
            system["values"].items()
            system.get("slips", {}).items()
            system.get("versions", {}).items()
            system.get("settings", {}).items()
            for exception in system.get("exceptions", {}).values():
                exception.items()
        for average in values["averages"]:
            itemgetter("system", "dim", "value")(average)
        list(map(itemgetter("system", "dim", "value", "stated", "also"), values.get("claims", [])))
        for mean in values.get("means", []):
            itemgetter("name", "system", "dim", "origin", "value", "over")(mean)
            mean.get("settings", {}).items()
    except files.YAML_ERRORS as error:
        problem = f"{type(error).__name__}: {files.reason(error)}"
        msg = f"{path}: not a table of published scores ({problem}); repair the file"
        raise ScoreError(msg) from error
    for mistake in _mistakes(values):
        msg = f"{path}: {mistake}; repair the file"
        raise ScoreError(msg)
    return dict(values)


def _mistakes(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the impossible values of a well-formed table."""
    digits = table["digits"]
    if type(digits) is not int or digits < 1:
        yield f"got digits {digits!r}, wanted the number of printed decimals, 1 or more"
        return
    columns = [(system["system"], system["dim"]) for system in table["systems"]]
    for column, count in Counter(columns).items():
        if count > 1:
            yield f"got {column} in {count} columns, wanted one"
    for system in table["systems"]:
        yield from _column_mistakes(system, digits)
    for average in table["averages"]:
        if (average["system"], average["dim"]) not in columns:
            yield f"got an average of {(average['system'], average['dim'])}, which has no column"
        if not _printed(average["value"], digits):
            yield f"got average {average['value']!r}, wanted a number from 0 to 1 of {digits} decimals"
    for mean in table.get("means", []):
        yield from _mean_mistakes(mean, digits)


def _column_mistakes(system: Mapping[str, Any], digits: int) -> Iterator[str]:
    """Yield the mistakes in one system's column."""
    name = system["system"]
    if system["origin"] not in ORIGINS:
        yield f"got origin {system['origin']!r} of {name}, wanted {' or '.join(ORIGINS)}"
    for dataset, value in system["values"].items():
        if not _printed(value, digits):
            yield f"got {value!r} for {name} on {dataset}, wanted a number from 0 to 1 of {digits} decimals"
    for what in ("slips", "exceptions", "versions"):
        for dataset in system.get(what, {}):
            if dataset not in system["values"]:
                yield f"got {what} of {name} on {dataset}, which has no value"
    if type(system.get("index_loss", 0.0)) not in (int, float) or not 0 <= system.get("index_loss", 0.0) <= 1:
        yield f"got index_loss {system['index_loss']!r} of {name}, wanted a number from 0 to 1"


def _mean_mistakes(mean: Mapping[str, Any], digits: int) -> Iterator[str]:
    """Yield the mistakes in a mean that is published without the single scores."""
    name = f"the {mean['name']} mean of {mean['system']}"
    if mean["origin"] not in ORIGINS:
        yield f"got origin {mean['origin']!r} of {name}, wanted {' or '.join(ORIGINS)}"
    if not _printed(mean["value"], digits):
        yield f"got {mean['value']!r} as {name}, wanted a number from 0 to 1 of {digits} decimals"
    over = mean["over"]
    if type(over) is not list or len(set(over)) != len(over) or len(over) < 2:
        yield f"got {over!r} under {name}, wanted two or more datasets, each once"


def _printed(value: Any, digits: int) -> bool:
    """Return whether a table with `digits` decimals can print a value."""
    return type(value) in (int, float) and 0 <= value <= 1 and rounded(value, digits) == value


def published_scores(directory: Path | None = None) -> tuple[PublishedScore, ...]:
    """Return every published score, table by table. Raises ScoreError for a malformed file."""
    return _scores(directory or published_dir())


@cache
def _scores(directory: Path) -> tuple[PublishedScore, ...]:
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
            system.get("slips", {}).get(dataset, ""),
            table["protocol"],
            {
                **table.get("settings", {}),
                **system.get("settings", {}),
                **system.get("exceptions", {}).get(dataset, {}),
            },
            str(system.get("versions", {}).get(dataset, system.get("version", ""))),
            float(system.get("index_loss", 0.0)),
        )
        for table in _tables(directory)
        for system in table["systems"]
        for dataset, value in system["values"].items()
    )


def published_means(directory: Path | None = None) -> tuple[PublishedMean, ...]:
    """Return every mean that is published without single scores, by table. Raises ScoreError for a malformed file."""
    return tuple(
        PublishedMean(
            PublishedScore(
                system=mean["system"],
                dim=mean["dim"],
                dataset=mean["name"],
                metric=table["metric"],
                value=float(mean["value"]),
                digits=table["digits"],
                source=table["source"],
                origin=mean["origin"],
                table=table["table"],
                note=mean.get("note", ""),
                protocol=table["protocol"],
                settings={**table.get("settings", {}), **mean.get("settings", {})},
                version=str(mean.get("version", "")),
            ),
            tuple(mean["over"]),
        )
        for table in _tables(directory or published_dir())
        for mean in table.get("means", [])
    )


def find(system: str, dim: int | None, dataset: str, metric: str) -> list[PublishedScore]:
    """Return the published scores of a cell, the card's first; equal values from one source are listed once."""
    return list(_by_cell(published_dir()).get((system, dim, dataset, metric), ()))


@cache
def _by_cell(directory: Path) -> dict[tuple[str, int | None, str, str], tuple[PublishedScore, ...]]:
    """Return the published scores by system, dim, dataset and metric, as in `find`."""
    found: dict[tuple[str, int | None, str, str], dict[tuple[str, float], PublishedScore]] = {}
    for score in _scores(directory):
        cell = found.setdefault((score.system, score.dim, score.dataset, score.metric), {})
        cell.setdefault((score.source, score.value), score)
    return {
        key: tuple(sorted(scores.values(), key=lambda score: (score.source != CARD, score.source)))
        for key, scores in found.items()
    }


def verdict(
    measured: float | None,
    published: PublishedScore,
    *,
    deviation: float = 0.0,
    declared_loss: float = 0.0,
    differs: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on a measured value.

    NOT-RUN: `measured` is None. PROTOCOL-DIFFERS: `differs` names settings that are known to differ. MATCH: equal at
    the printed digits. NEAR: the difference is at most the largest of .001, three times the measured `deviation`
    between re-runs, and the `declared_loss` of the published system's index. Otherwise HIGHER or LOWER.

    Raises ScoreError for a measured value that is not a finite number.
    """
    if measured is None:
        return Verdict("NOT-RUN")
    if not math.isfinite(measured):
        msg = f"{published.system} on {published.dataset}: got {published.metric} {measured}, wanted a finite number"
        raise ScoreError(msg)
    if differs:
        return Verdict("PROTOCOL-DIFFERS", tuple(differs))
    if rounded(measured, published.digits) == published.value:
        return Verdict("MATCH")
    # In decimal: as floats, .326 is more than .001 above .325, and 3 × .0017 is below .0051.
    delta = as_decimal(measured) - as_decimal(published.value)
    if abs(delta) <= max(as_decimal(NEAR), 3 * as_decimal(deviation), as_decimal(declared_loss)):
        return Verdict("NEAR")
    return Verdict("HIGHER" if delta > 0 else "LOWER")


def differing(
    published: PublishedScore, protocol: Mapping[str, Any], split: str, *, self_hits: int | None = None
) -> tuple[str, ...]:
    """Return a sentence for each setting in which a cell differs from a published score, with both values.

    `protocol` and `split` are those of the cell. Only known settings of the published score are compared, and prompts:
    a score that states none was measured without. `self_hits` is the number of hits whose document id is the query's
    id, kept or dropped, or None if they were not counted. If there are none, the rule for them does not matter.

    >>> score = PublishedScore("s", 1, "d", "m", 0.1, 1, "card", "run", "t", "", settings={"query.max_tokens": 32})
    >>> differing(score, {"query": {"max_tokens": 16}}, "test")
    ('query.max_tokens is 16, published with 32',)
    """
    found = []
    for name, stated in {**dict.fromkeys(PROMPTS), **published.settings}.items():
        if name == "drop_self" and self_hits == 0:
            continue
        got: Any = {**DEFAULTS, **protocol, "split": split}
        for part in name.split("."):
            got = got.get(part) if isinstance(got, Mapping) else None
        got, wanted = (got or "none", stated or "none") if name in PROMPTS else (got, stated)
        if got != wanted:
            found.append(f"{name} is {shown(got)}, published with {shown(wanted)}")
    return tuple(found)


def shown(value: Any) -> str:
    """Return a setting's value for a sentence.

    >>> shown(True), shown(None), shown(["text", "title"]), shown(32)
    ('on', 'not set', 'text+title', '32')
    """
    if isinstance(value, list):
        return "+".join(map(str, value))
    return {True: "on", False: "off", None: "not set"}.get(value, str(value)) if not _number(value) else str(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def stated_averages(directory: Path | None = None) -> tuple[StatedAverage, ...]:
    """Return every average that a table prints, with its rows."""
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


def claims(directory: Path | None = None) -> tuple[Claim, ...]:
    """Return every average that is stated outside the tables, recomputed from the card.

    Raises ScoreError for an average over a cell that the card lacks.
    """
    card: dict[tuple[str, int | None], dict[str, float]] = {}
    for score in published_scores(directory):
        if score.source == CARD:
            card.setdefault((score.system, score.dim), {}).setdefault(score.dataset, score.value)
    found = []
    for table in _tables(directory or published_dir()):
        for claim in table.get("claims", []):
            name, also = (claim["system"], claim["dim"]), tuple(claim["also"])
            rows = [dict(one["values"]) for one in table["systems"] if (one["system"], one["dim"]) == name]
            known = card.get(name, {})
            if not rows or not set(also) <= known.keys():
                msg = f"published averages: got a claim of {name} with {', '.join(also)}, wanted cells of the card"
                raise ScoreError(f"{msg}; repair the claims of table {table['table']}")
            values = [*rows[0].values(), *(known[dataset] for dataset in also)]
            mean = math.fsum(values) / len(values)
            value, digits = float(claim["value"]), int(table["digits"])
            found.append(Claim(*name, table["table"], value, digits, str(claim["stated"]), also, mean))
    return tuple(found)


def audit(directory: Path | None = None) -> tuple[AverageAudit, ...]:
    """Recompute every stated average; if one does not hold, look for rows whose omission explains it."""
    return tuple(_audited(stated) for stated in stated_averages(directory))


class Disagreement(NamedTuple):
    """A cell of the card that contradicts another source: no number rounds to both values."""

    card: PublishedScore
    other: PublishedScore


def disagreements(directory: Path | None = None) -> tuple[Disagreement, ...]:
    """Return the card's cells that contradict another source on the same system."""
    scores = published_scores(directory)
    others: dict[tuple[str, int | None, str, str], list[PublishedScore]] = {}
    for score in scores:
        if score.source != CARD:
            others.setdefault((score.system, score.dim, score.dataset, score.metric), []).append(score)
    return tuple(
        Disagreement(score, other)
        for score in scores
        if score.source == CARD
        for other in others.get((score.system, score.dim, score.dataset, score.metric), [])
        if _comparable(score, other)
        and abs(as_decimal(other.value) - as_decimal(score.value)) > _half_unit(score.digits) + _half_unit(other.digits)
    )


def _comparable(one: PublishedScore, other: PublishedScore) -> bool:
    """Return whether two scores have the same kind of search and the same first stage."""
    return all(one.settings.get(name) == other.settings.get(name) for name in DEFAULTS)


def _half_unit(digits: int) -> Decimal:
    """Return the largest difference between a number and its value rounded to `digits` decimals."""
    return Decimal(5).scaleb(-digits - 1)


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
