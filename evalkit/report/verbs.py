"""The output of `replay`, `explain` and `compare`, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

import evalkit.analysis.explain
from evalkit.analysis import comparability, replay
from evalkit.analysis.compare import Comparison, refuse_other_queries, storage, values_of
from evalkit.analysis.explain import Band, Contribution, PairView
from evalkit.analysis.replay import OtherState, Replayed, Reproduction
from evalkit.errors import ConfigError, EvalkitError
from evalkit.report import places
from evalkit.report.grid import Column, Grid, Line, wrapped
from evalkit.report.pareto import front
from evalkit.report.rounding import ABSENT, dim, fixed, p_value, signed
from evalkit.report.table import verdict_text
from evalkit.scoring import published
from evalkit.storage import cell_config, evaluated, keys, results
from evalkit.storage.results import CellScores

if TYPE_CHECKING:
    from evalkit.analysis.precision import Narrowed


class Question(NamedTuple):
    """The arguments of `evalkit explain`."""

    cell: CellScores
    other: CellScores | None
    top: int
    query: str | None
    document: str | None
    dataset_path: Path | None
    texts: bool


def explain(question: Question, results_dir: Path, out: Console, *, complain: Callable[[str], None]) -> None:
    """Print the explanation. Raises EvalkitError; missing texts only remove the remarks that need them."""
    cell = question.cell
    if question.other is not None:
        evaluated.refuse_differing([cell, question.other])
    material = replay.load(results_dir, cell, dataset_path=question.dataset_path)
    if question.query is not None or question.document is not None:
        if question.query is None or question.document is None:
            msg = "got one of --query and --document, wanted both or none of them"
            raise ConfigError(msg)
        config = cell_config.saved(results_dir, cell, dataset_path=question.dataset_path)
        show_pair(evalkit.analysis.explain.pair(config, material, question.query, question.document), out)
        return
    metric = cell.main_metric
    values = values_of(cell, results_dir, metric)
    if question.other is not None:
        name = system(question.other) + results.distinctions([cell, question.other])[question.other.run_id]
        other = values_of(question.other, results_dir, metric)
        refuse_other_queries(cell, question.other, values, other)
        shown = evalkit.analysis.explain.contributions(material, values, other)
        total = math.fsum(one.part for one in shown)
        shown = shown[: question.top]
    else:
        known = published.find(cell.model, cell.dim, cell.dataset, metric)
        mean = known[0].value if known else cell.metrics[metric]
        name = f"{known[0].source}'s {fixed(mean, known[0].digits)}" if known else "its own mean"
        total = cell.metrics[metric] - mean
        shown = evalkit.analysis.explain.lowest(material, values, mean, most=question.top)
    flags_of: Mapping[str, Sequence[str]] = {}
    if question.texts:
        try:
            config = cell_config.saved(results_dir, cell, dataset_path=question.dataset_path)
            flags_of = evalkit.analysis.explain.text_flags(config, material, [one.query for one in shown])
        except EvalkitError as error:
            complain(f"truncation is not checked: {error}")
    value = fixed(cell.metrics[metric], 5)
    title = f"{cell.run_id}: {metric} {value}, Δ {signed(total, 5)} against {name}, over {len(values)} queries"
    out.print("\n".join(wrapped(title, out.width)), markup=False)
    if question.other is not None:
        out.print(contributions_table(shown, flags_of, metric=metric, against=name))
        return
    out.print(distribution_table(evalkit.analysis.explain.distribution(values), metric=metric))
    zero = sum(value == 0 for value in values.values())
    many = f"{zero} of {len(values)} queries score 0" if zero else "no query scores 0; the lowest are"
    out.print(f"{many}{f', {len(shown)} shown (--top)' if zero > len(shown) else ''}:", markup=False)
    out.print(lowest_table(shown, flags_of, metric=metric))


def show_pair(view: PairView, out: Console) -> None:
    """Print one query and one document token by token."""
    for name, text, cut in (("query", view.query, view.query_cut), ("document", view.document, view.document_cut)):
        out.print(f"{name}{' (truncated)' if cut else ''}: {text}", markup=False, highlight=False)
    out.print(pair_table(view))
    recorded = "not in the run" if view.in_run is None else f"{view.in_run:.6f} in the run"
    out.print(f"MaxSim {view.score:.6f}, {recorded}", markup=False, highlight=False)


def replayed_table(replayed: Sequence[Replayed], metric: str) -> Grid:
    """Return a run's value under each set of rules."""
    columns = (Column(metric, "number"), Column("Δ", "number"), Column("queries", "number"), Column("rules", "text"))
    own, lines = replayed[0].value, []
    for entry in replayed:
        rules = "; ".join(entry.changed) or "the run's own"
        queries = ABSENT if entry.queries is None else str(entry.queries)
        lines.append(Line((fixed(entry.value, 5), signed(entry.value - own, 4), queries, rules)))
    return Grid(columns, lines)


def reproduction_lines(reproductions: Sequence[Reproduction]) -> list[str]:
    """Return a line for each published score that names the rules that reproduce it."""
    lines = []
    for reproduction in reproductions:
        score = reproduction.score
        rules = " or ".join("; ".join(entry.changed) or "the run's own rules" for entry in reproduction.reproduced_by)
        reached = f"reached with {rules}" if rules else "reached by none of these rules"
        slip = f" (known: {score.slip})" if score.slip else ""
        value = fixed(score.value, score.digits)
        lines.append(f"{score.source} {score.metric} {value}: {verdict_text(reproduction.verdict)}; {reached}{slip}")
    return lines or ["nothing is published for this cell"]


def state_lines(states: Sequence[OtherState], metric: str) -> list[str]:
    """Name the states of the model's repository that a replay cannot try, and the scores measured in them."""
    return [
        f"no rule of scoring: {one.variant.words}; {one.variant.because}; "
        + ("run it with that setting" if one.cell is None else f"{one.cell.run_id} has {_value(one.cell, metric)}")
        for one in states
    ]


def _value(cell: CellScores, metric: str) -> str:
    return f"{metric} {fixed(cell.metrics.get(metric), 5)}"


def distribution_table(bands: Sequence[Band], *, metric: str) -> Grid:
    """Return the number of queries in each range of a metric, and their share of all queries."""
    columns = (Column(metric), Column("queries", "number"), Column("share", "number"), Column(""))
    total, lines = sum(band.queries for band in bands), []
    for band in bands:
        share = band.queries / total
        lines.append(Line((band.name, str(band.queries), f"{fixed(100 * share, 1)} %", "█" * round(20 * share))))
    return Grid(columns, lines)


def lowest_table(parts: Sequence[Contribution], flags_of: Mapping[str, Sequence[str]], *, metric: str) -> Grid:
    """Return queries with their values and remarks."""
    lines = []
    for one in parts:
        found = "; ".join([*one.flags, *flags_of.get(one.query, ())]) or ABSENT
        lines.append(Line((one.query, fixed(one.value, 4), found)))
    return Grid((Column("query", "name"), Column(metric, "number"), Column("flags", "text", moves=1)), lines)


def contributions_table(
    parts: Sequence[Contribution], flags_of: Mapping[str, Sequence[str]], *, metric: str, against: str
) -> Grid:
    """Return queries with their contributions to Δ and remarks."""
    columns = (
        *(Column("query", "name"), Column(metric, "number"), Column(against, "number")),
        *(Column("part of Δ", "number"), Column("flags", "text", moves=1)),
    )
    lines = []
    for one in parts:
        found = "; ".join([*one.flags, *flags_of.get(one.query, ())]) or ABSENT
        lines.append(Line((one.query, fixed(one.value, 4), fixed(one.against, 4), signed(one.part, 5), found)))
    return Grid(columns, lines)


def pair_table(view: PairView) -> Grid:
    """Return one query's tokens, each with the document token of highest similarity."""
    columns = (
        *(Column("query token", "name"), Column("document token", "name"), Column("similarity", "number")),
        Column(""),
    )
    lines = []
    for match in view.matches:
        bar = "█" * max(0, round(match.similarity * 20))
        lines.append(Line((match.query_token, match.document_token, fixed(match.similarity, 4), bar)))
    return Grid(columns, lines)


def comparison_table(comparisons: Sequence[Comparison], *, wide: bool = False) -> Grid:
    """Return each dataset's base run, followed by the others with their differences and sampling errors."""
    metrics = {one.metric for one in comparisons}
    columns = (
        *(Column("system", "name"), Column("dim", "number"), Column("dataset", "name")),
        *(Column("metric", moves=3, wide=len(metrics) == 1), Column(_single(metrics) or "value", "number")),
        *(Column("Δ", "number"), Column("95 % of Δ", moves=2), Column("p (Holm)", "number", moves=1)),
        *(Column("p", "number", moves=4, wide=True), Column("+/-", moves=5, wide=True)),
        Column("run id", moves=6, wide=True),
    )
    suffixes = results.distinctions(cell for one in comparisons for cell in (one.base, one.other))
    lines, bases = [], set()
    for one in comparisons:
        if one.base.run_id not in bases:
            bases.add(one.base.run_id)
            value = fixed(one.base.metrics[one.metric], 5)
            judged = ("base", *[ABSENT] * 4, one.base.run_id)
            lines.append(_named_line(one.base, suffixes, (one.metric, value, *judged)))
        value, (low, high) = fixed(one.other.metrics[one.metric], 5), one.interval
        tests = (f"{signed(low, 4)} … {signed(high, 4)}", p_value(one.p_holm), p_value(one.p))
        judged = (signed(one.delta, 4), *tests, f"{one.wins}/{one.losses}", one.other.run_id)
        lines.append(_named_line(one.other, suffixes, (one.metric, value, *judged)))
    return Grid(columns, lines, wide)


def _single(metrics: set[str]) -> str:
    """Return the metric if there is only one, else an empty text."""
    return next(iter(metrics)) if len(metrics) == 1 else ""


def _named_line(cell: CellScores, suffixes: Mapping[str, str], cells: Sequence[str]) -> Line:
    """Return a row that begins with system, dim and dataset; distinguishing settings are printed below it."""
    departs = comparability.departures(cell)
    notes = (suffixes.get(cell.run_id, "").strip(" ()"), f"deviates: {'; '.join(departs)}" if departs else "")
    return Line((cell.model, dim(cell.dim), places.shown(cell), *cells), tuple(filter(None, notes)))


def family_line(comparisons: Sequence[Comparison]) -> str:
    """Return the line that says over how many comparisons the p-values were corrected."""
    count = len(comparisons)
    return (
        f"p (Holm): corrected over {'the one comparison' if count == 1 else f'all {count} comparisons'} of this table"
    )


def costs_table(cells: Sequence[CellScores]) -> Grid:
    """Return the storage and the time of each run."""
    columns = (
        *(Column("system", "name"), Column("dim", "number"), Column("dataset", "name")),
        *(Column("bytes / vector", "number"), Column("bytes / passage", "number"), Column("corpus MB", "number")),
        *(Column("encode s", "number", moves=1), Column("search s", "number", moves=2)),
    )
    suffixes = results.distinctions(cells)
    lines = []
    for cell in cells:
        size = storage(cell)
        corpus = None if size is None or size.corpus is None else size.corpus / 1e6
        stored = (
            ABSENT if size is None else str(size.per_vector),
            fixed(None if size is None else size.per_passage, 0),
        )
        took = (fixed(cell.wall_s.get("encode"), 2), fixed(cell.wall_s.get("search"), 2))
        lines.append(_named_line(cell, suffixes, (*stored, fixed(corpus, 2), *took)))
    return Grid(columns, lines)


def frontier_table(
    cells: Sequence[CellScores], measured: Mapping[str, Sequence[Narrowed]], *, wide: bool = False
) -> Grid:
    """Return one dataset's cells in every measured form (by run id); `*` marks the Pareto-optimal forms.

    The base cell has "base" in place of a p-value.
    """
    (metric,) = {cell.main_metric for cell in cells}
    systems = {cell.model for cell in cells}
    columns = (
        *(Column("system", "name", wide=len(systems) == 1), Column("dim", "number"), Column("stored as")),
        *(Column("pool", "number"), Column("bytes / vector", "number"), Column("bytes / passage", "number")),
        *(Column(metric, "number"), Column("Δ", "number"), Column("95 % of Δ", moves=2, wide=True)),
        *(Column("p (Holm)", "number"), Column("p", "number", moves=1, wide=True), Column("front")),
    )
    forms = [(cell, one) for cell in cells for one in measured.get(cell.run_id, ())]
    best = front([(one.bytes_per_document or 0.0, one.value) for _, one in forms])
    lines = []
    for place, (cell, one) in enumerate(forms):
        interval = f"{signed(one.interval[0], 4)} … {signed(one.interval[1], 4)}"
        sizes = (str(one.bytes_per_vector), fixed(one.bytes_per_document, 0))
        p = ("base", ABSENT) if one.is_base else (p_value(one.p_holm), p_value(one.p))
        known = (cell.model, dim(cell.dim), one.width, str(one.factor), *sizes)
        marks = (p[0], p[1], "*" if place in best else "")
        lines.append(Line((*known, fixed(one.value, 5), signed(one.delta, 4), interval, *marks)))
    return Grid(columns, lines, wide)


def frontier_lines(base: CellScores, *, normalized: bool) -> list[str]:
    """Return the lines above a table of smaller forms: what was measured, and what it is compared with."""
    mean = "given norm 1 again (sentence-transformers)" if normalized else "left as it is (PyLate)"
    return [
        f"{places.shown(base)}: stored embeddings in smaller forms, searched exactly",
        f"Δ and p: against {keys.system_label(base.model, base.dim)} as it is stored",
        "pool: Ward clusters of a document's vectors after the first,",
        f"  each cluster's mean {mean}",
        "front: no form is smaller and better",
    ]


def system(cell: CellScores) -> str:
    """Return a system's name with its dim; a cell that does not represent that system is marked."""
    name = keys.label(cell.model, cell.dim)
    return f"{name} (deviates)" if comparability.departures(cell) else name
