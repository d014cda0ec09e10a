"""The page: one self-contained HTML file, made from the same values as the tables."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from evalkit.analysis import comparability
from evalkit.analysis.compare import normal_interval, storage
from evalkit.config.settings import METRICS
from evalkit.report import boards, commands, hits, pareto, plot, rounding, sheets
from evalkit.report.audit import audit_lines
from evalkit.report.card import CardTable, Judged, Leaderboard
from evalkit.report.commands import Packaged
from evalkit.report.places import order, shown
from evalkit.scoring.mteb_results import MEASURED_BY
from evalkit.scoring.published import CARD, AverageAudit
from evalkit.scoring.reruns import Deviation
from evalkit.storage import evaluated
from evalkit.storage.keys import label
from evalkit.storage.per_query_file import QueryTable
from evalkit.storage.results import CellScores, distinctions

SYMBOLS = {"MATCH": "✓", "NEAR": "≈", "HIGHER": "▲", "LOWER": "▼", "PROTOCOL-DIFFERS": "≠", "NOT-RUN": "○"}
MEANINGS = {
    "MATCH": "equal at the digits that were published",
    "NEAR": "within .001, three measured re-run deviations, or a declared index loss",
    "HIGHER": "above what was published",
    "LOWER": "below what was published",
    "PROTOCOL-DIFFERS": "measured under another setting, which is named",
    "NOT-RUN": "not measured here",
}
DEVIATES_MARK = f" {SYMBOLS['PROTOCOL-DIFFERS']}"
"""The mark after the name of a cell that does not represent its system (`comparability.representative`)."""
SCALE = 10_000
"""Values by query have four decimals on the page."""
ORIGINS = {"run": "card’s own", "quoted": "quoted"}
"""Whether the card's authors measured a column or took it from elsewhere."""
LINKS = {
    CARD: "https://huggingface.co/jinaai/jina-colbert-v2",
    "anserini": "https://github.com/castorini/anserini",
    "pyserini": "https://github.com/castorini/pyserini",
    "mteb": "https://github.com/embeddings-benchmark/results",
}
"""Where each source publishes its scores."""
MOST_NAMED_CELLS = 3
"""Up to this many measured cells are named in the summary; otherwise it has only their number."""
SHADES = ((1.005, "up"), (0.995, "k0"), (0.99, "k1"), (0.97, "k2"), (0.95, "k3"), (0.0, "k4"))
"""The shades of the heatmap: the least ratio of each, and its CSS class."""
NO_DOCUMENT = 0xFF_FFFF
"""The index for "no document" in the page's lists of hits. Only its low bytes are written, as many as an index has."""
NO_GRADE = 255
"""The grade of a document without a judgement."""
MOST_GRADE = NO_GRADE - 1
"""The largest grade that fits one byte; the page shows it as "254 or more"."""

PerQuery = Mapping[str, QueryTable]
"""Run id → each query's values."""


class Detail(NamedTuple):
    """The facts about a cell that are in its files but not in its scores."""

    command: str
    """The command that computes the cell again."""
    tokens: bool
    """Whether it has token vectors, so that `evalkit explain` can show a pair token by token."""
    hits: Mapping[str, hits.QueryHits]
    texts: Mapping[str, str]
    """The queries' texts, if the results and the package contain them."""


class Material(NamedTuple):
    """Everything that the page shows."""

    cells: Sequence[CellScores]
    judged: Sequence[Judged]
    tables: Sequence[CardTable]
    leaderboard: Leaderboard
    audit: Sequence[AverageAudit]
    per_query: PerQuery
    problems: Sequence[str]
    deviations: Sequence[Deviation] = ()
    judged_runs: Sequence[Judged] = ()
    """Every cell with its published scores, including cells that do not represent their system."""
    configs: Packaged = Packaged({}, {}, {})
    details: Mapping[str, Detail] = {}
    """Run id → details."""
    mteb_cells: Sequence[CellScores] = ()
    """Scores that mteb measured: means without a run."""


def render(material: Material) -> str:
    """Return the page; the same material gives the same bytes."""
    ours = comparability.representative(material.cells)
    answer = boards.answer(material.judged)
    return _template().render(
        label_of=label,
        engine_line=engine_line,
        material=material,
        runs=sorted(material.cells, key=order),
        shown=shown,
        losses=comparability.index_losses(material.cells),
        suffixes=distinctions(material.cells),
        symbols=SYMBOLS,
        meanings=MEANINGS,
        metrics=METRICS,
        metric_names=sheets.METRIC_NAMES,
        fixed=rounding.fixed,
        signed=rounding.signed,
        card_digits=sheets.CARD_DIGITS,
        broken=sheets.broken,
        origin=lambda table, system: ORIGINS[sheets.origin(table, system)],
        origins=ORIGINS,
        links=LINKS,
        sheets={table.name: sheets.card_sheet(table) for table in material.tables},
        system=boards.SYSTEM,
        answer=answer,
        few=MOST_NAMED_CELLS,
        measured_cells=boards.measured,
        holding=boards.holding,
        tally=boards.tally,
        broken_averages=sum(not found.holds for found in material.audit),
        board=_leaderboard(material, answer),
        own_boards=boards.own_boards((*ours, *material.mteb_cells), material.judged),
        measured_by=MEASURED_BY,
        mean_verdict=boards.mean_verdict,
        heatmaps=boards.heatmaps(material.tables, ours),
        shade=shade,
        shades=[name for _, name in SHADES],
        representative=ours,
        by_run=_by_run(material.judged_runs),
        deviations={(one.cell.run_id, one.metric): one for one in material.deviations},
        audit_lines=audit_lines(),
        elsewhere=_elsewhere(material.judged),
        others=[found for found in material.judged if found.score.source != CARD],
        frontiers=[(panel, plot.svg(panel)) for panel in _frontiers(material, ours)],
        paired=[(panel, plot.differences(panel)) for panel in _difference_panels(material, ours)],
        filters=_filters(material),
        language=_languages(material),
        command=lambda score: commands.command(score.system, score.dim, score.dataset, material.configs),
        flat=flat,
        deviates=DEVIATES_MARK,
        departures=comparability.departures,
        limits=hits,
        no_document=NO_DOCUMENT,
        no_grade=NO_GRADE,
        most_grade=MOST_GRADE,
        data=_data(material),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("evalkit.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2")


def _by_run(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Return the published scores of each cell, by run id."""
    found: dict[str, list[Judged]] = {}
    for one in judged:
        if one.cell is not None and one.measured is not None:
            found.setdefault(one.cell.run_id, []).append(one)
    return found


def _elsewhere(judged: Sequence[Judged]) -> dict[tuple[str, int | None, str, str], list[Judged]]:
    """Return the scores that other sources published, by system, dim, dataset and metric."""
    found: dict[tuple[str, int | None, str, str], list[Judged]] = {}
    for one in judged:
        if one.score.source != CARD:
            key = (one.score.system, one.score.dim, one.score.dataset, one.score.metric)
            found.setdefault(key, []).append(one)
    return found


def engine_line(cell: CellScores) -> str:
    """Return the engine that computed a cell, the number of workers and nodes, and the names of their devices."""
    facts = cell.environment
    if facts.get("engine", "local") == "local":
        device = facts.get("device") or "cpu"
        return f"engine local: one process on {facts.get('processor') or device if device == 'cpu' else device}"
    devices = Counter(map(str, facts.get("worker_devices", ())))
    named = ", ".join(f"{many} × {device}" for device, many in sorted(devices.items())) or "devices not recorded"
    workers, nodes = facts.get("workers", "?"), facts.get("nodes", "?")
    of_nodes = "one node" if nodes == 1 else f"{nodes} nodes"
    return f"engine {facts['engine']}: {workers} worker{'' if workers == 1 else 's'} on {of_nodes}, {named}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as lines: dotted name and text.

    >>> flat({"a": {"b": [1, 2]}, "c": None})
    [('a.b', '1, 2'), ('c', '–')]
    """
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            lines.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            lines.append((f"{prefix}{name}", "–" if value is None else str(value)))
    return lines


def shade(share: float) -> str:
    """Return the CSS class for a ratio to the largest dim's quality.

    >>> shade(1.0), shade(0.989), shade(1.02)
    ('k0', 'k2', 'up')
    """
    return next(name for least, name in SHADES if share >= least)


def _leaderboard(material: Material, answer: boards.Answer) -> dict[str, Any]:
    """Return the card's collections, and the systems that have a mean on one of them."""
    means = boards.means(material.leaderboard, answer.cells)
    collections = [one for one in material.leaderboard.collections if (one.name in {name for _, name in means})]
    systems = [
        system
        for system in material.leaderboard.systems
        if any(
            (mean := means[system, one.name]).published is not None or mean.measured is not None for one in collections
        )
    ]
    return {"collections": collections, "systems": systems, "means": means}


def _filters(material: Material) -> dict[str, list[str]]:
    """Return the values of the page's filters; groups come before their members."""
    places = {(one.score.system, one.score.dim, one.score.dataset) for one in material.judged}
    places |= {(cell.model, cell.dim, shown(cell)) for cell in (*material.cells, *material.mteb_cells)}
    labels: dict[str, set[int | None]] = {}
    for system, dim, _ in places:
        labels.setdefault(system, set()).add(dim)
    systems = []
    for system, dims in sorted(labels.items()):
        systems += [system]
        systems += (
            [label(system, dim) for dim in sorted(dims - {None}, reverse=True, key=lambda dim: dim or 0)]
            if len(dims) > 1
            else []
        )
    datasets = {dataset for _, _, dataset in places}
    families = {dataset.partition("/")[0] for dataset in datasets if "/" in dataset}
    languages = _languages(material)
    return {
        "system": systems,
        "dataset": [*sorted(families), *sorted(datasets - families)],
        "language": sorted({languages[dataset] for dataset in datasets if languages.get(dataset)}),
        "verdict": list(SYMBOLS),
    }


def _languages(material: Material) -> dict[str, str]:
    """Return each dataset's language: from its cells, else from its config, else ""."""
    known = {str(one.get("name")): str(one.get("language", "")) for one in material.configs.datasets.values()}
    found = {one.score.dataset: known.get(one.score.dataset, "") for one in material.judged}
    return found | {shown(cell): cell.language for cell in (*material.mteb_cells, *material.cells)}


def _frontiers(material: Material, ours: Sequence[CellScores]) -> list[plot.Plot]:
    """Return a panel of the card's published dims, and one per dataset and metric of two measured cells with vectors.

    The metric is the cells' main metric: a config can give a dataset another one, and no axis has two metrics.
    """
    panels = []
    for table in material.tables:
        if table.name == "matryoshka":
            points = [
                plot.Point((system.dim or 0) * 2, average.stated or average.of_rows, f"dim {system.dim}")
                for system, average in table.averages.items()
            ]
            datasets = next(iter(table.averages.values())).datasets
            title = f"Published: {boards.SYSTEM}, mean of {', '.join(name.split('/')[1] for name in datasets)}"
            series = (plot.Series(boards.SYSTEM, tuple(_mark_best(points))),)
            panels.append(plot.Plot(title, "bytes per vector (fp16)", "NDCG@10", series))
    by_dataset: dict[tuple[str, str], list[CellScores]] = {}
    for cell in ours:
        if cell.dim is not None:
            by_dataset.setdefault((shown(cell), cell.main_metric), []).append(cell)
    for (dataset, _), cells in sorted(by_dataset.items()):
        if len(cells) > 1:
            panels.append(_measured_frontier(dataset, cells, material.per_query))
    return panels


def _measured_frontier(dataset: str, cells: Sequence[CellScores], per_query: PerQuery) -> plot.Plot:
    sizes = {cell.run_id: size for cell in cells if (size := storage(cell)) is not None}
    counted = all(size.per_passage is not None for size in sizes.values())
    ordered = sorted(cells, key=lambda cell: (cell.model, cell.dim or 0))
    several = len({cell.model for cell in cells}) > 1
    points = []
    for cell in ordered:
        size = sizes[cell.run_id]
        x = size.per_passage / 1000 if counted and size.per_passage is not None else size.per_vector
        queries = per_query.get(cell.run_id)
        known = queries is not None and cell.main_metric in queries.metrics
        interval = normal_interval(queries.column(cell.main_metric)) if queries is not None and known else None
        name = label(cell.model, cell.dim) if several else f"dim {cell.dim}"
        points.append(plot.Point(x, cell.metrics[cell.main_metric], name, interval))
    series: dict[str, list[plot.Point]] = {}
    for cell, point in zip(ordered, _mark_best(points), strict=True):
        series.setdefault(cell.model, []).append(point)
    unit = "kB per passage" if counted else "bytes per vector"
    lines = tuple(plot.Series(name, tuple(points)) for name, points in series.items())
    title = f"Measured: {', '.join(series)} on {dataset}"
    return plot.Plot(title, unit, sheets.METRIC_NAMES.get(cells[0].main_metric, cells[0].main_metric), lines)


def _mark_best(points: Sequence[plot.Point]) -> list[plot.Point]:
    """Mark the Pareto-optimal points in storage and quality."""
    best = pareto.front([(point.x, point.y) for point in points])
    return [point._replace(best=place in best) for place, point in enumerate(points)]


def _difference_panels(material: Material, ours: Sequence[CellScores]) -> list[plot.Differences]:
    """Return a panel of paired differences to the largest dim, for each system with several dims on one dataset."""
    by_system: dict[tuple[str, str, str], list[CellScores]] = {}
    for cell in ours:
        table = material.per_query.get(cell.run_id)
        if cell.dim is not None and table is not None and cell.main_metric in table.metrics:
            by_system.setdefault((shown(cell), cell.model, cell.main_metric), []).append(cell)
    panels = []
    for (dataset, model, metric), cells in sorted(by_system.items()):
        base, *smaller = sorted(cells, key=lambda cell: -(cell.dim or 0))
        rows = []
        for cell in smaller:
            one, other = material.per_query[cell.run_id], material.per_query[base.run_id]
            if one.queries == other.queries:
                lost = one.column(metric) - other.column(metric)
                rows.append(plot.Difference(f"dim {cell.dim}", float(lost.mean()), normal_interval(lost)))
        if rows:
            name = sheets.METRIC_NAMES.get(metric, metric)
            panels.append(plot.Differences(f"{model} on {dataset}", f"Δ {name} against dim {base.dim}", tuple(rows)))
    return panels


def _data(material: Material) -> Markup:
    """Return the data of the page's script: each cell's values by query and its first hits, as packed whole numbers.

    Values are in units of 1/SCALE, in 16 bits. Cells with the same queries share one list of ids, and cells on one
    dataset share one list of documents. The script unpacks a cell when it is opened, so that the page of a whole card
    still opens quickly. No text in the data can end the script element.
    """
    lists: dict[tuple[str, ...], int] = {}
    documents: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, Any]] = {}
    texts: dict[str, list[str]] = {}
    names, suffixes = _compared_under(material.cells), distinctions(material.cells)
    for cell in material.cells:
        if (table := material.per_query.get(cell.run_id)) is None:
            continue
        packed_MQ = np.floor(table.value_QM.T * SCALE + 0.5).astype("<u2")
        place = lists.setdefault(table.queries, len(lists))
        runs[cell.run_id] = {
            "system": label(cell.model, cell.dim)
            + (DEVIATES_MARK if comparability.departures(cell) else "")
            + suffixes[cell.run_id],
            "dataset": names[cell.run_id],
            "main": cell.main_metric,
            "metrics": list(table.metrics),
            "queries": place,
            "values": _base64(packed_MQ),
        }
        if (detail := material.details.get(cell.run_id)) is not None:
            runs[cell.run_id] |= {"command": detail.command, "tokens": detail.tokens}
            if detail.hits:
                runs[cell.run_id]["hits"] = _packed_hits(table, detail, documents.setdefault(names[cell.run_id], {}))
            if detail.texts:
                texts[str(place)] = [detail.texts.get(query, "") for query in table.queries]
    for cell in material.cells:  # the bytes per index are known only after all documents of a dataset are
        if (packed := runs.get(cell.run_id, {}).get("hits")) is not None:
            packed["documents"] = _base64(_low_bytes(packed["documents"], _index_bytes(documents[names[cell.run_id]])))
    data = {
        "scale": SCALE,
        "queries": list(lists),
        "texts": texts,
        "documents": {name: {"bytes": _index_bytes(known), "ids": list(known)} for name, known in documents.items()},
        "runs": runs,
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(escaped)  # noqa: S704 (JSON in which nothing can be markup)


def _compared_under(cells: Sequence[CellScores]) -> dict[str, str]:
    """Return by run id the name under which the page offers a cell for comparison: the dataset that is shown.

    It is followed by what differs where other cells of that name were evaluated on something else.
    """
    by_name: dict[str, list[CellScores]] = {}
    for cell in cells:
        by_name.setdefault(shown(cell), []).append(cell)
    found = {}
    for name, members in by_name.items():
        for cell in members:
            values = {each.what: each.one for other in members for each in evaluated.differences(cell, other)}
            differs = ", ".join(f"{what} {value}" for what, value in sorted(values.items()))
            found[cell.run_id] = f"{name} ({differs})" if differs else name
    return found


def _packed_hits(table: QueryTable, detail: Detail, documents: dict[str, int]) -> dict[str, Any]:
    """Return a cell's hits: for each shown query its index, and the indices and grades of its documents.

    `documents` maps the dataset's document ids so far to indices; new ids are added. A grade of 0 is distinguished from
    no judgement; a grade below 0 counts as 0, and one above MOST_GRADE as MOST_GRADE.
    """
    places = {query: place for place, query in enumerate(table.queries)}
    shown = [(places[query], found) for query, found in detail.hits.items()]
    chosen_QK = np.full((len(shown), hits.CUTOFF), NO_DOCUMENT, dtype="<u4")
    grade_QK = np.full((len(shown), hits.CUTOFF), NO_GRADE, dtype="u1")
    for row, (_, found) in enumerate(shown):
        for rank, document in enumerate(found.documents):
            chosen_QK[row, rank] = documents.setdefault(document, len(documents))
        for rank, grade in enumerate(found.grades):
            grade_QK[row, rank] = NO_GRADE if grade is None else min(max(0, grade), MOST_GRADE)
    packed: dict[str, Any] = {
        "queries": _base64(np.array([place for place, _ in shown], dtype="<u2")),
        "documents": chosen_QK,
    }
    if all(found.relevant is not None for _, found in shown):
        packed["grades"] = _base64(grade_QK)
        packed["relevant"] = _base64(np.array([found.relevant for _, found in shown], dtype="<u2"))
        packed["first"] = _base64(np.array([found.first for _, found in shown], dtype="<u2"))
    return packed


def _index_bytes(documents: Mapping[str, int]) -> int:
    """Return the number of bytes of a document's index, with one value reserved for "no document"."""
    return 2 if len(documents) < NO_DOCUMENT >> 8 else 3


def _low_bytes(place_QK: np.ndarray, width: int) -> np.ndarray:
    """Return the low bytes of whole numbers. They are enough, because no page shows 16 million documents."""
    return np.ascontiguousarray(place_QK.view("u1").reshape(*place_QK.shape, 4)[..., :width])


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
