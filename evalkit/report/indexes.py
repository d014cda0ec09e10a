"""The cost and loss of an index: cells with `search=plaid`, compared with exact cells of the same stored embeddings."""

from __future__ import annotations

from collections.abc import Iterable

from evalkit.analysis import comparability
from evalkit.report.grid import Column, Grid, Line
from evalkit.report.places import shown
from evalkit.report.rounding import ABSENT, dim, fixed, signed
from evalkit.storage.results import INDEX, CellScores

PARAMETERS = ("n_ivf_probe", "n_full_scores", "kmeans_iterations", "seed", "library")


def index_table(cells: Iterable[CellScores], *, wide: bool = False) -> Grid | None:
    """Return a table of the cells that searched an index: parameters, cost and loss. None if no cell did.

    The index loss is the exact cell's main metric minus this cell's. It is a dash if the exact cell is not among the
    given cells.
    """
    known = list({cell.run_id: cell for cell in cells}.values())
    losses = comparability.index_losses(known)
    indexed = [cell for cell in known if cell.search != "exact" and INDEX in cell.environment]
    if not indexed:
        return None
    (metric, *others) = dict.fromkeys(cell.main_metric for cell in indexed)
    columns = (
        *(Column("system", "name"), Column("dim", "number", moves=2), Column("dataset", "name")),
        *(Column("nbits", "number"), Column("build s", "number"), Column("index MB", "number")),
        *(Column("queries / s", "number"), Column("main metric" if others else metric, "number")),
        *(Column("index loss", "number"), Column("overlap @10", "number"), Column("recall of exact 10", "number")),
        *(Column(name, moves=5, wide=True) for name in PARAMETERS),
        Column("run id", moves=6, wide=True),
    )
    lines = []
    for cell in sorted(indexed, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0), _nbits(cell))):
        cost, asked = cell.environment[INDEX], cell.protocol.get("index", {})
        lines.append(
            Line(
                (
                    *(cell.model, dim(cell.dim), shown(cell), str(asked.get("nbits", ABSENT))),
                    *(fixed(cost["build_s"], 1), fixed(cost["bytes"] / 1e6, 2), fixed(cost["queries_per_s"], 1)),
                    fixed(cell.metrics[cell.main_metric], 5),
                    signed(losses[cell.run_id], 4) if cell.run_id in losses else ABSENT,
                    *(fixed(cost["overlap@10"], 3), fixed(cost["recall of exact 10"], 3)),
                    *(str(asked.get(name, ABSENT)) for name in PARAMETERS),
                    cell.run_id,
                )
            )
        )
    return Grid(columns, lines, wide)


def _nbits(cell: CellScores) -> int:
    return int(cell.protocol.get("index", {}).get("nbits", 0))
