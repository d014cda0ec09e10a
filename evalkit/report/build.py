"""Build all tables, exports and the page from the files of a results folder. The same files give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.analysis import collected, comparability
from evalkit.errors import ScoreError
from evalkit.report import card, commands, evidence, exports, hits, page, rounding, sheets, table
from evalkit.scoring import mteb_results, published, reruns
from evalkit.storage import keys, paths, per_query_file, results, untrusted
from evalkit.storage.results import CellScores

EXPORTS = ("mteb", "model-index", "eval_results")
"""Folders of tables/ whose files are deleted when their cell is gone."""


class Report(NamedTuple):
    """The content of a report."""

    cells: tuple[CellScores, ...]
    files: Mapping[str, bytes]
    """The contents of all files, by path below the output folder."""
    problems: tuple[str, ...]
    """Reasons why cells are missing from the tables; the rest of the report is complete."""
    unwaived: tuple[str, ...]
    """A line for each cell that is HIGHER or LOWER without a waiver."""
    rows: tuple[table.Row, ...]


def build(results_dir: Path) -> Report:
    """Read a results folder and build every file of the report in memory. Raises ScoreError for bad waivers."""
    configs = commands.packaged()
    found = collected.collect(results_dir, checksums=_checksums(configs))
    waivers = card.read_waivers(results_dir)
    found, per_query = _with_queries(results_dir, found)
    ours = comparability.representative(found.cells)
    deviations, rerun_problems = reruns.measure(ours, results_dir)
    judged = card.judge(ours, waivers=waivers, deviations=deviations)
    means = card.judge_means(ours, waivers=waivers)
    tables = card.card_tables(judged)
    mteb_cells, unread = mteb_results.kept(results_dir)
    board = card.leaderboard(tables, (*ours, *mteb_cells))
    judged_runs = card.judge_runs(found.cells, waivers=waivers, deviations=deviations)
    tabled = {cell.run_id for cell in ours}
    # A cell that searched an index is in no table of the card, but its verdict on a score by such a search is shown.
    besides = [one for one in judged_runs if one.cell is not None and one.cell.run_id not in tabled]
    all_judged: tuple[card.Judged | card.JudgedMean, ...] = (*judged, *means, *besides)
    problems = [*found.problems, *rerun_problems, *unread]
    used = {one.waiver for one in all_judged if one.waiver is not None}
    problems += [
        f"{results_dir / 'waivers.yaml'}: {_unused(waiver, all_judged)}" for waiver in waivers if waiver not in used
    ]
    rows = tuple(table.rows((*found.cells, *mteb_cells), deviations=deviations))
    runs = "# Measured cells\n\n" + table.markdown(rows)
    files: dict[str, str] = {
        "tables/runs.md": runs,
        "tables/runs.csv": sheets.csv_text(
            ("run_id", "system", "dim", "dataset", "split", "queries", "metric", "value"),
            sheets.run_rows((*found.cells, *mteb_cells)),
        ),
        "tables/cells.csv": sheets.csv_text(sheets.LONG_COLUMNS, sheets.long_rows(judged)),
    }
    for sheet in (*map(sheets.card_sheet, tables), *_other_sheets(board, means, ours, deviations, mteb_cells)):
        files[f"tables/{sheet.name}.md"] = sheets.markdown(sheet)
        files[f"tables/{sheet.name}.csv"] = sheets.csv_sheet(sheet)
        files[f"tables/{sheet.name}.tex"] = sheets.latex(sheet)
    files |= {f"tables/mteb/{name}": text for name, text in exports.mteb_files(ours).items()}
    files |= {f"tables/model-index/{name}": text for name, text in exports.model_index(ours).items()}
    hubs = {str(one.get("name")): one.get("hub") for one in configs.datasets.values()}
    files |= {f"tables/eval_results/{name}": text for name, text in exports.eval_results(ours, hubs).items()}
    files["site/index.html"] = page.render(
        page.Material(
            cells=found.cells,
            mteb_cells=mteb_cells,
            judged=judged,
            tables=tables,
            leaderboard=board,
            audit=published.audit(),
            per_query=per_query,
            problems=tuple(problems),
            deviations=deviations,
            judged_runs=judged_runs,
            configs=configs,
            details=_details(results_dir, found.cells, per_query, configs),
        )
    )
    lines = (
        f"{_where(one.score)}: {one.score.metric} {rounding.fixed(one.measured, 5)} is {one.verdict.label} than "
        f"{one.score.source}'s {rounding.fixed(one.score.value, one.score.digits)}"
        for one in all_judged
        if one.verdict.label in ("HIGHER", "LOWER") and one.waiver is None
    )
    unwaived = tuple(dict.fromkeys(lines))  # a score may be in two of the card's tables
    return Report(
        found.cells,
        {name: text.encode() for name, text in files.items()},
        tuple(problems),
        unwaived,
        rows,
    )


def _unused(waiver: card.Waiver, judged: Iterable[card.Judged | card.JudgedMean]) -> str:
    """Return why a waiver waives nothing, and what to do."""
    what = f"the waiver of {_where(waiver)} ({waiver.metric}, {waiver.source})"
    for one in judged:
        if waiver.names(one.score) and one.verdict.label in ("HIGHER", "LOWER"):
            got = rounding.fixed(one.measured, 5)
            return f"{what} is for {rounding.fixed(waiver.measured, 5)}, got {got}; remove it, or accept the new score"
    return f"{what} waives nothing; remove it"


def _where(one: published.PublishedScore | card.Waiver) -> str:
    """Return the system, with its dim, and the dataset of a score or a waiver."""
    return f"{keys.label(one.system, one.dim)} on {one.dataset}"


def leaderboard(results_dir: Path) -> card.Leaderboard:
    """Return only the leaderboard of a results folder, from the cells that a report would include.

    Raises ScoreError for bad waivers.
    """
    found = collected.collect(results_dir, checksums=_checksums(commands.packaged()))
    ours = comparability.representative(_with_queries(results_dir, found)[0].cells)
    deviations, _ = reruns.measure(ours, results_dir)
    judged = card.judge(ours, waivers=card.read_waivers(results_dir), deviations=deviations)
    return card.leaderboard(card.card_tables(judged), (*ours, *mteb_results.kept(results_dir)[0]))


def _other_sheets(
    board: card.Leaderboard,
    means: Sequence[card.JudgedMean],
    cells: Sequence[CellScores],
    deviations: Sequence[reruns.Deviation],
    mteb_cells: Sequence[CellScores],
) -> tuple[sheets.Sheet, ...]:
    boards = sheets.leaderboard_sheet(board, mteb_cells), sheets.means_sheet(means)
    return *boards, sheets.dims_sheet(cells), sheets.reruns_sheet(deviations)


def write(report: Report, out: Path) -> None:
    """Write the files of a report whose bytes changed; delete exports of cells that no longer exist."""
    for name in _stale(report, out):
        (out / name).unlink()
    for name, data in report.files.items():
        path = paths.below(out, name)
        if not path.is_file() or path.read_bytes() != data:
            paths.write_atomic(path, data)


def out_of_date(report: Report, out: Path) -> tuple[str, ...]:
    """Return a line for every file that differs from the report, is missing, or should not exist."""
    lines = [f"{out / name}: should not be there" for name in _stale(report, out)]
    for name, data in report.files.items():
        path = out / name
        if not path.is_file():
            lines.append(f"{path}: is missing")
        elif path.read_bytes() != data:
            lines.append(f"{path}: is not what the results say")
    return tuple(lines)


def _stale(report: Report, out: Path) -> list[str]:
    """Return the exports below an output folder whose cells no longer exist."""
    exported = [path for name in EXPORTS for path in sorted((out / "tables" / name).rglob("*.*"))]
    names = [str(path.relative_to(out)) for path in exported if path.is_file()]
    return [name for name in names if name not in report.files]


def _with_queries(results_dir: Path, found: collected.Collected) -> tuple[collected.Collected, page.PerQuery]:
    """Return the cells with their values by query.

    A cell is left out if its scores are not the means over its queries, or if its files were edited and scoring them
    again gives other values. A cell whose table of queries is damaged is kept, without its details by query.
    """
    cells, problems, per_query = [], list(found.problems), {}
    for cell in found.cells:
        path = paths.run_dir(results_dir, cell.run_id) / results.PER_QUERY
        try:
            queries = per_query_file.read(path)
        except ScoreError as error:
            problems.append(str(error))
            problems += [line for name, line in results.edited(results_dir, cell).items() if name != results.PER_QUERY]
            cells.append(cell)
            continue
        if wrong := per_query_file.disagreement(cell, queries):
            problems.append(f"{path}: {wrong}; the cell is left out: run it again")
            continue
        lines, confirmed = evidence.confirm(results_dir, cell, queries)
        problems += lines
        if confirmed:
            per_query[cell.run_id] = queries
            cells.append(cell)
    return collected.Collected(tuple(cells), tuple(problems)), per_query


def _details(
    results_dir: Path, cells: Sequence[CellScores], per_query: page.PerQuery, configs: commands.Packaged
) -> dict[str, page.Detail]:
    """Return the details that the page shows of each cell besides its scores, from the cell's files."""
    found = {}
    for cell in cells:
        saved = _saved(results_dir, cell)
        table = per_query.get(cell.run_id)
        model = saved.get("model") if saved else None
        found[cell.run_id] = page.Detail(
            command=commands.run_command(cell, saved, configs),
            tokens=isinstance(model, dict) and model.get("kind") == "late_interaction",
            hits={} if table is None else hits.read(results_dir, cell, table),
            texts=hits.texts(cell, saved),
        )
    return found


def _saved(results_dir: Path, cell: CellScores) -> dict[str, Any] | None:
    """Return the settings that a cell was computed with; None if its config.yaml is missing or damaged."""
    try:
        values = untrusted.read_yaml(paths.run_dir(results_dir, cell.run_id) / results.CONFIG)
    except untrusted.UnreadableError:
        return None
    return values if isinstance(values, dict) else None


def _checksums(configs: commands.Packaged) -> dict[str, str]:
    """Return the corpus checksum of every dataset that has one."""
    return {str(one["name"]): str(one["checksum"]) for one in configs.datasets.values() if one.get("checksum")}
