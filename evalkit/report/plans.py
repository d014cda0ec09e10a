"""The output of `plan`, `status` and `cache`, as tables and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evalkit.operations import outlook
from evalkit.operations.device_rates import Device
from evalkit.operations.forecast import Amount, Planned
from evalkit.operations.inventory import Entry
from evalkit.operations.outlook import Outlook
from evalkit.operations.rates import UNKNOWN
from evalkit.report import places
from evalkit.report.grid import Column, Grid, Line
from evalkit.report.rounding import ABSENT, count, dim, duration, grouped, scaled, size
from evalkit.run.jobs import Job
from evalkit.storage.keys import label
from evalkit.storage.paths import free_bytes
from evalkit.storage.results import CellScores
from evalkit.texts import counted

MOST_NAMED = 3
"""The maximum number of cells named in a line that holds for many."""
LARGE_DISK_SHARE = 0.1
"""If embeddings take more than this fraction of the free disk, a plan mentions store.keep=topk."""
MOST_CELLS = 24
"""A plan lists up to this many cells; of a larger selection it lists only datasets, unless `--wide` is given."""
SYSTEM_COLUMNS = (Column("system", "name"), Column("dim", "number"), Column("dataset", "name"))


def plan_table(cells: Sequence[Planned], *, wide: bool = False) -> Grid:
    """Return a row per cell: its state, and the shards, bytes and time that are left; `wide` adds sizes and run id.

    Below the row are the files still to be fetched, and the reason if the cell cannot run.
    """
    columns = (
        *(*SYSTEM_COLUMNS, Column("state"), Column("shards", "number", moves=1)),
        *(Column("to write", "number", moves=2), Column("time left", "number", moves=3)),
        *(Column(name, "number", moves=5, wide=True) for name in ("documents", "tokens", "vectors", "embeddings")),
        *(Column(name, moves=6, wide=True) for name in ("checkpoint", "data", "run id")),
    )
    lines = []
    for cell in cells:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        notes = [f"{what} {where}" for what, where in _sources(cell) if where.startswith("to fetch")]
        notes += [] if cell.problem is None else [cell.problem]
        left = (shards, size(cell.missing_bytes), duration(cell.seconds.value))
        sizes = (count(cell.documents), about(cell.tokens), about(cell.vectors), size(cell.stored_bytes))
        where = (cell.checkpoint, cell.source, cell.run_id or "after the survey")
        named = (cell.config.model.name, dim(cell.dim), cell.config.dataset.name, cell.state)
        lines.append(Line((*named, *left, *sizes, *where), () if wide and cell.problem is None else tuple(notes)))
    return Grid(columns, lines, wide)


def _sources(cell: Planned) -> tuple[tuple[str, str], ...]:
    return (("checkpoint", cell.checkpoint), ("data", cell.source))


def outlook_table(cells: Sequence[Planned], *, device: Device | None = None) -> Grid:
    """Return a row per dataset and a total: tokens, time on one device, wall time by workers, disk, memory."""
    rows = outlook.by_dataset(cells, device=device)
    if len(rows) > 1:
        rows.append(outlook.total(cells, device=device))
    columns = (
        *(Column("dataset", "name"), Column("tokens", "number"), Column("work", "number")),
        *(Column("1 worker" if workers == 1 else f"on {workers}", "number") for workers in outlook.WORKERS),
        *(Column("disk", "number", moves=1), Column("memory", "number", moves=2)),
    )
    lines = [_outlook_line(row) for row in rows]
    if len(rows) > 1 and len({line.cells[-1] for line in lines}) == 1:  # the line about memory has the same number
        columns, lines = columns[:-1], [Line(line.cells[:-1]) for line in lines]
    return Grid(columns, lines)


def _outlook_line(row: Outlook) -> Line:
    walls = [duration(row.wall_s.get(workers), narrow=True) if row.wall_s else ABSENT for workers in outlook.WORKERS]
    tokens = ABSENT if row.tokens is None else short(row.tokens, narrow=True)
    if row.device_s == 0:
        walls = [duration(0.0)] * len(outlook.WORKERS)
    work = ABSENT if row.device_s is None else duration(row.device_s, narrow=True)
    return Line(
        (row.name, tokens, work, *walls, *(size(each, narrow=True) for each in (row.disk_bytes, row.memory_bytes)))
    )


def plan_lines(cells: Sequence[Planned], *, device: Device | None = None) -> Iterator[str]:
    """Yield lines with the source of each kind of number, and with the total time, disk and memory."""
    yield from _basis_lines("tokens", [(cell, cell.tokens) for cell in cells])
    yield from _basis_lines("vectors", [(cell, cell.vectors) for cell in cells if cell.dim is not None])
    left = [cell for cell in cells if cell.state != "finished"]
    yield from _basis_lines("time", [(cell, cell.seconds) for cell in left])
    states = Counter(cell.state for cell in cells)
    yield f"{counted(len(cells), 'cell')}: {', '.join(f'{many} {state}' for state, many in states.items())}"
    total = outlook.total(cells, device=device)
    if total.wall_s:
        unknown = f"; {total.untimed} cells of unknown time are not in it" if total.untimed else ""
        each = ", ".join(f"{duration(wall)} on {workers}" for workers, wall in total.wall_s.items())
        on_gpu = bool(total.device_bytes)
        hours = (total.device_s or 0.0) / 3600
        took = f"{grouped(hours, 1)} {'GPU' if on_gpu else 'CPU'}-hours" if hours >= 0.1 else duration(total.device_s)
        passes = {(cell.config.model.name, cell.config.dataset.name) for cell in left}
        shared = "; dims of one model share the encoding" if len(passes) < len(left) else ""
        yield f"forecast: {took} of work; with start and reading {each} workers{shared}{unknown}"
    for folder, (wanted, unsized) in _disks(cells).items():
        also = f", and {counted(unsized, 'cell')} of unknown size" if unsized else ""
        free = free_bytes(folder)
        much = "; store.keep=topk writes none of them" if wanted > free * LARGE_DISK_SHARE else ""
        yield f"disk: {size(wanted)} of embeddings to write{also}{much}; {size(free)} free in {folder}"
    if total.memory_bytes is not None:
        gpu = f", {size(total.device_bytes)} on its GPU" if total.device_bytes else ""
        yield f"memory: about {size(total.memory_bytes)} per worker at most{gpu}"


def _basis_lines(what: str, amounts: Sequence[tuple[Planned, Amount]]) -> Iterator[str]:
    """Yield a line for each source of a kind of number, with the cells for which it was used."""
    by_basis: dict[str, list[str]] = {}
    for cell, amount in amounts:
        by_basis.setdefault(amount.basis, []).append(f"{system(cell)} on {cell.config.dataset.name}")
    for basis, cells in by_basis.items():
        text = f"{basis} here, on a device that has the weights and data" if basis == UNKNOWN else basis
        yield f"{what} {text}: {_first_names(cells)}"


def _first_names(names: Sequence[str]) -> str:
    """Return the first names, and the number of further ones."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def plan_problems(cells: Sequence[Planned], *, device: Device | None = None) -> list[str]:
    """Return a line for every reason why cells cannot run, and for every disk or memory that is too small."""
    by_problem: dict[str, list[str]] = {}
    for cell in cells:
        if cell.problem is not None:
            by_problem.setdefault(cell.problem, []).append(f"{system(cell)} on {cell.config.dataset.name}")
    found = [f"{_first_names(names)}: {problem}" for problem, names in by_problem.items()]
    for folder, (wanted, _) in _disks(cells).items():
        if wanted > (free := free_bytes(folder)):
            found.append(
                f"{folder}: embeddings need {size(wanted)}, {size(free)} are free; set store.keep=topk, which keeps "
                f"none, {_smaller_settings(cells, free)}or cache_dir=DIR on a larger disk"
            )
    found += _memory_problems(cells, device)
    return list(dict.fromkeys(found))


def _smaller_settings(cells: Sequence[Planned], free: float) -> str:
    """Return the settings with which less is stored, if the rest would fit the free space."""
    if any(cell.config.store.dtype == "float32" for cell in cells):
        return "store.dtype=float16, which halves them, "
    kept: dict[tuple[str, str], Planned] = {}
    for cell in cells:
        key = (cell.config.model.name, cell.config.dataset.name)
        if key not in kept or (cell.dim or 0) < (kept[key].dim or 0):
            kept[key] = cell
    fewest = sum(cell.missing_bytes or 0 for cell in kept.values())
    if len(kept) == len(cells) or fewest > free:
        return ""
    dims = sorted({cell.dim for cell in kept.values() if cell.dim is not None})
    return f"fewer dims (dim={','.join(map(str, dims))} would write {size(fewest)}), "


def _memory_problems(cells: Sequence[Planned], device: Device | None) -> list[str]:
    total = outlook.total(cells, device=device)
    remedy = "set store.shard_tokens=N lower, or run fewer dims at a time (dim=)"
    found = []
    if device is None and total.memory_bytes is not None and total.memory_bytes > outlook.host_bytes():
        found.append(
            f"memory: about {size(total.memory_bytes)} needed, {size(outlook.host_bytes())} available; {remedy}"
        )
    available = outlook.gpu_bytes(device)
    if available is not None and total.device_bytes is not None and total.device_bytes > available:
        found.append(f"GPU memory: about {size(total.device_bytes)} needed, {size(available)} available; {remedy}")
    return found


def _disks(cells: Sequence[Planned]) -> Mapping[Path, tuple[int, int]]:
    """Return for each cache folder the bytes to be written, and the number of cells of unknown size."""
    disks: dict[Path, tuple[int, int]] = {}
    for cell in cells:
        wanted, unsized = disks.get(cell.config.cache_dir, (0, 0))
        missing = cell.missing_bytes
        disks[cell.config.cache_dir] = (wanted + (missing or 0), unsized + (missing is None))
    return disks


def status_table(
    finished: Sequence[CellScores],
    planned: Sequence[tuple[Planned, Job | None]],
    unreadable: Sequence[Job],
    *,
    wide: bool = False,
) -> Grid:
    """Return a row per cell: its state, finished shards, and for an unfinished cell its job's process."""
    columns = (
        *(Column("state"), *SYSTEM_COLUMNS, Column("shards", "number")),
        *(Column("process", moves=1), Column("run id", moves=2, wide=True)),
    )
    lines = []
    for scores in sorted(finished, key=places.order):
        shards = str(scores.counts.get("shards", ABSENT))
        cells = ("finished", scores.model, dim(scores.dim), places.shown(scores), shards, ABSENT, scores.run_id)
        lines.append(Line(cells))
    for cell, job in planned:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        who = ABSENT if job is None else f"{job.process}, since {job.started}"
        named = (state(cell, job), cell.config.model.name, dim(cell.dim), cell.config.dataset.name)
        lines.append(Line((*named, shards, who, cell.run_id or ABSENT)))
    for job in unreadable:
        who = f"{job.process}, {job.path.name}"
        lines.append(Line(("running" if job.running else "damaged", *[ABSENT] * 4, who, ABSENT)))
    return Grid(columns, lines, wide)


def workers_table(records: Sequence[Job]) -> Grid | None:
    """Return a row for each worker of the running jobs, or None if there are no workers."""
    columns = (
        *(Column("worker", "number"), Column("where", "text"), Column("device", moves=1), Column("state", "text")),
        *(Column("shards done", "number"), Column("ended", "number", moves=2)),
    )
    names = ("number", "where", "device", "state", "done", "deaths")
    lines = [
        Line(tuple(str(worker.get(name, ABSENT)) for name in names))
        for job in records
        for worker in (job.workers() if job.running else ())
    ]
    return Grid(columns, lines) if lines else None


def system(cell: Planned) -> str:
    """Return a cell's system with its dim."""
    return label(cell.config.model.name, cell.dim)


def state(cell: Planned, job: Job | None) -> str:
    """Return the state of a cell in one word, given its job."""
    if cell.state in ("finished", "damaged") or job is None:
        return cell.state
    return "running" if job.running else "failed" if job.error else "stopped"


def cache_table(entries: Sequence[Entry], *, wide: bool = False) -> Grid:
    """Return a row per cache entry, in the given order; `wide` names every cell that uses it."""
    columns = (
        *(Column("kind"), Column("key"), Column("dataset", "text"), Column("shards", "number", moves=3)),
        *(Column("size", "number", moves=1), Column("last use (UTC)", moves=2), Column("used by", moves=4)),
    )
    lines = []
    for entry in entries:
        more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
        users = ", ".join(entry.runs) if wide else f"{entry.runs[0]}{more}" if entry.runs else ""
        shards = str(len(entry.shards)) if entry.shards else ABSENT
        what = (entry.kind, entry.key, ", ".join(entry.datasets) or ABSENT, shards, size(entry.size_bytes))
        lines.append(Line((*what, entry.used.strftime("%Y-%m-%d %H:%M"), users or "no known cell")))
    return Grid(columns, lines)


def about(amount: Amount) -> str:
    """Return a number in groups of three digits, with ≈ if it was estimated.

    >>> about(Amount(1234.5, "estimated from …")), about(Amount(1200, "counted by …")), about(Amount(None, ""))
    ('≈ 1,235', '1,200', '–')
    """
    if amount.value is None:
        return ABSENT
    return f"{'≈ ' if amount.basis.startswith('estimated') else ''}{count(amount.value)}"


def short(number: float, *, narrow: bool = False) -> str:
    """Return a large number with its unit.

    >>> short(1_250_000_000), short(879_639), short(12), short(879_639, narrow=True)
    ('1.3 G', '879.6 k', '12', '880 k')
    """
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{scaled(number / factor, narrow=narrow)} {unit}"
    return count(number)
