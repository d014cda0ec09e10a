"""What `replay`, `explain` and `compare` print, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

import evalkit.analysis.explain
from evalkit.analysis import replay, standing
from evalkit.analysis.compare import Comparison, storage, values_of
from evalkit.analysis.explain import Contribution, PairView
from evalkit.analysis.replay import Landing, OtherState, Replayed
from evalkit.errors import ConfigError, EvalkitError
from evalkit.report.sheets import fixed
from evalkit.report.table import ABSENT, said, signed
from evalkit.scoring import published
from evalkit.storage import results
from evalkit.storage.results import CellScores

if TYPE_CHECKING:
    from evalkit.analysis.precision import Narrowed


class Question(NamedTuple):
    """What `evalkit explain` was asked."""

    cell: CellScores
    other: CellScores | None
    top: int
    query: str | None
    document: str | None
    dataset_path: Path | None
    texts: bool


def explain(question: Question, results_dir: Path, out: Console, *, complain: Callable[[str], None]) -> None:
    """Answer, on a console. Raises EvalkitError; texts that cannot be had only cost the flags that need them."""
    cell = question.cell
    material = replay.load(results_dir, cell, dataset_path=question.dataset_path)
    if question.query is not None or question.document is not None:
        if question.query is None or question.document is None:
            msg = "got one of --query and --document, wanted both or none of them"
            raise ConfigError(msg)
        config = results.saved_config(results_dir, cell, dataset_path=question.dataset_path)
        show_pair(evalkit.analysis.explain.pair(config, material, question.query, question.document), out)
        return
    metric = cell.main_metric
    values = values_of(cell, results_dir, metric)
    if question.other is not None:
        against: Mapping[str, float] | float = values_of(question.other, results_dir, metric)
        name = system(question.other) + results.distinctions([cell, question.other])[question.other.run_id]
    else:
        known = published.find(cell.model, cell.dim, cell.dataset, metric)
        against = known[0].value if known else cell.metrics[metric]
        name = known[0].source if known else "own mean"
    shown = evalkit.analysis.explain.contributions(material, values, against)
    total = math.fsum(one.part for one in shown)
    odd: Mapping[str, Sequence[str]] = {}
    if question.texts:
        try:
            config = results.saved_config(results_dir, cell, dataset_path=question.dataset_path)
            odd = evalkit.analysis.explain.text_flags(config, material, [one.query for one in shown[: question.top]])
        except EvalkitError as error:
            complain(f"truncation is not checked: {error}")
    out.print(f"{cell.run_id}: Δ {metric} {signed(total, 5)} against {name}, over {len(shown)} queries", markup=False)
    out.print(contributions_table(shown[: question.top], odd, metric=metric, against=name))


def show_pair(view: PairView, out: Console) -> None:
    """Print one query and one document token by token."""
    for name, text, cut in (("query", view.query, view.query_cut), ("document", view.document, view.document_cut)):
        out.print(f"{name}{' (truncated)' if cut else ''}: {text}", markup=False, highlight=False)
    out.print(pair_table(view))
    recorded = "not in the run" if view.in_run is None else f"{view.in_run:.6f} in the run"
    out.print(f"MaxSim {view.score:.6f}, {recorded}", markup=False, highlight=False)


def _table(*columns: str, text: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in text else "right", no_wrap=name not in text)
    return table


def replayed_table(replayed: Sequence[Replayed], metric: str) -> Table:
    """Return a run's value under each set of rules."""
    table = _table(metric, "Δ", "queries", "rules", text=["rules"])
    own = replayed[0].value
    for entry in replayed:
        rules = "; ".join(entry.changed) or "the run's own"
        queries = ABSENT if entry.queries is None else str(entry.queries)
        table.add_row(fixed(entry.value, 5), signed(entry.value - own, 4), queries, rules)
    return table


def landing_lines(landings: Sequence[Landing]) -> list[str]:
    """Say of each published score which rules land on it."""
    lines = []
    for landing in landings:
        score = landing.score
        rules = " or ".join("; ".join(entry.changed) or "the run's own rules" for entry in landing.reached_by)
        reached = f"reached with {rules}" if rules else "reached by none of these rules"
        slip = f" (known: {score.slip})" if score.slip else ""
        value = fixed(score.value, score.digits)
        lines.append(f"{score.source} {score.metric} {value}: {said(landing.verdict)}; {reached}{slip}")
    return lines or ["nothing is published for this cell"]


def state_lines(states: Sequence[OtherState], metric: str) -> list[str]:
    """Say which states of the model's repository a replay cannot try, and what was measured in them."""
    return [
        f"no rule of scoring: {one.variant.words}; {one.variant.because}; "
        + ("run it with that setting" if one.run is None else f"{one.run.run_id} has {_value(one.run, metric)}")
        for one in states
    ]


def _value(cell: CellScores, metric: str) -> str:
    return f"{metric} {fixed(cell.metrics.get(metric), 5)}"


def contributions_table(
    parts: Sequence[Contribution], odd: Mapping[str, Sequence[str]], *, metric: str, against: str
) -> Table:
    """Return queries with their parts in Δ and what is odd about each."""
    table = _table("query", metric, against, "part of Δ", "flags", text=["query", "flags"])
    for one in parts:
        found = "; ".join([*one.flags, *odd.get(one.query, ())]) or ABSENT
        table.add_row(one.query, fixed(one.value, 4), fixed(one.against, 4), signed(one.part, 5), found)
    return table


def pair_table(view: PairView) -> Table:
    """Return one query's tokens with the document tokens that each matches."""
    table = _table("query token", "document token", "similarity", "", text=["query token", "document token", ""])
    for match in view.matches:
        bar = "█" * max(0, round(match.similarity * 20))
        table.add_row(Text(match.query_token), Text(match.document_token), fixed(match.similarity, 4), bar)
    return table


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return paired differences with their sampling error."""
    columns = ("dataset", "metric", "base", "other", "base value", "value", "Δ", "95 % of Δ", "p", "p (Holm)", "+/-")
    table = _table(*columns, text=["dataset", "metric", "base", "other"])
    told_apart = results.distinctions(cell for one in comparisons for cell in (one.base, one.other))
    for one in comparisons:
        low, high = one.interval
        names = [system(cell) + told_apart[cell.run_id] for cell in (one.base, one.other)]
        base, other = one.base.metrics[one.metric], one.other.metrics[one.metric]
        table.add_row(
            *(one.dataset, one.metric, *names, fixed(base, 5), fixed(other, 5)),
            *(signed(one.delta, 4), f"{signed(low, 4)} … {signed(high, 4)}", p_value(one.p), p_value(one.p_holm)),
            f"{one.wins}/{one.losses}",
        )
    return table


def family_line(comparisons: Sequence[Comparison]) -> str:
    """Say over what the p-values were corrected."""
    count = len(comparisons)
    return (
        f"p (Holm): corrected over {'the one comparison' if count == 1 else f'all {count} comparisons'} of this table"
    )


def costs_table(cells: Sequence[CellScores]) -> Table:
    """Return what each run stores and how long it took."""
    columns = ("dataset", "system", "bytes/vector", "bytes/passage", "corpus MB", "encode s", "search s")
    table = _table(*columns, text=["dataset", "system"])
    told_apart = results.distinctions(cells)
    for cell in cells:
        size = storage(cell)
        corpus = None if size is None or size.corpus is None else size.corpus / 1e6
        table.add_row(
            *(cell.dataset, system(cell) + told_apart[cell.run_id], ABSENT if size is None else str(size.per_vector)),
            *(fixed(None if size is None else size.per_passage, 0), fixed(corpus, 2)),
            *(fixed(cell.wall_s.get("encode"), 2), fixed(cell.wall_s.get("search"), 2)),
        )
    return table


def precision_table(cell: CellScores, measured: Sequence[Narrowed]) -> Table:
    """Return a run's quality with its document vectors stored more narrowly."""
    columns = ("dataset", "system", "stored as", "bytes/vector", cell.main_metric, "Δ", "95 % of Δ", "p, uncorrected")
    table = _table(*columns, text=["dataset", "system", "stored as"])
    for one in measured:
        table.add_row(
            *(cell.dataset, system(cell), one.width, str(one.bytes_per_vector), fixed(one.value, 5)),
            *(signed(one.delta, 4), f"{signed(one.interval[0], 4)} … {signed(one.interval[1], 4)}", p_value(one.p)),
        )
    return table


def p_value(p: float) -> str:
    """Return a p-value with four decimals; one below these is not nothing.

    >>> p_value(0.03125), p_value(1e-9)
    ('0.0313', '<0.0001')
    """
    return fixed(p, 4) if p >= 0.0001 else "<0.0001"


def system(cell: CellScores) -> str:
    """Return a system's name with its dim; a run that may not stand for that system is marked."""
    name = cell.model if cell.dim is None else f"{cell.model}-{cell.dim}"
    return f"{name} (deviates)" if standing.departures(cell) else name
