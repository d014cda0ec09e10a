"""What `plan` and `status` print, as tables and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evalkit.operations.forecast import Amount, Planned
from evalkit.operations.inventory import Entry
from evalkit.report.grid import Column, Grid, Line
from evalkit.report.rounding import ABSENT, count, dim, duration, size
from evalkit.run.jobs import Job
from evalkit.storage.keys import system_label
from evalkit.storage.paths import free_bytes
from evalkit.storage.results import CellScores

SHOWN = 3
"""Cells named where a line holds for many."""
MUCH = 0.1
"""The part of the free disk from which on a plan says how to keep no embeddings."""
NAMED = (Column("system", "name"), Column("dim", "number"), Column("dataset", "name"))


def plan_table(cells: Sequence[Planned], *, wide: bool = False) -> Grid:
    """Return a line per cell: its state, what is left, and what that will take; `wide` adds its size and its run id.

    What is still to be fetched, and why a cell cannot run, stands below its line.
    """
    columns = (
        *(*NAMED, Column("state"), Column("shards", "number", moves=1)),
        *(Column("to write", "number", moves=2), Column("time left", "number", moves=3)),
        *(Column(name, "number", moves=5, wide=True) for name in ("documents", "tokens", "vectors", "embeddings")),
        *(Column(name, moves=6, wide=True) for name in ("checkpoint", "data", "run id")),
    )
    lines = []
    for cell in cells:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        notes = [f"{what} {where}" for what, where in _places(cell) if where.startswith("to fetch")]
        notes += [] if cell.problem is None else [cell.problem]
        left = (shards, size(cell.missing_bytes), duration(cell.seconds.value))
        sizes = (count(cell.documents), about(cell.tokens), about(cell.vectors), size(cell.stored_bytes))
        where = (cell.checkpoint, cell.source, cell.run_id or "after the survey")
        named = (cell.config.model.name, dim(cell.dim), cell.config.dataset.name, cell.state)
        lines.append(Line((*named, *left, *sizes, *where), () if wide and cell.problem is None else tuple(notes)))
    return Grid(columns, lines, wide)


def _places(cell: Planned) -> tuple[tuple[str, str], ...]:
    return (("checkpoint", cell.checkpoint), ("data", cell.source))


def plan_lines(cells: Sequence[Planned]) -> Iterator[str]:
    """Yield where the numbers come from, and what all of it takes."""
    yield from _bases("tokens", [(cell, cell.tokens) for cell in cells])
    yield from _bases("vectors", [(cell, cell.vectors) for cell in cells if cell.dim is not None])
    yield from _bases("time", [(cell, cell.seconds) for cell in cells if cell.state != "finished"])
    left = [cell for cell in cells if cell.state != "finished"]
    seconds = [cell.seconds.value for cell in left]
    known = [value for value in seconds if value is not None]
    states = Counter(cell.state for cell in cells)
    yield f"{len(cells)} cells: {', '.join(f'{many} {state}' for state, many in states.items())}"
    if known:
        unknown = f", and {len(seconds) - len(known)} cells of unknown time" if len(known) < len(seconds) else ""
        yield f"time left: {duration(sum(known))} at most (dims of one backbone are encoded in one pass){unknown}"
    for folder, (wanted, unsized) in _disks(cells).items():
        also = f", and {unsized} cells of unknown size" if unsized else ""
        free = free_bytes(folder)
        much = "; store.keep=topk writes none of them" if wanted > free * MUCH else ""
        yield f"disk: {size(wanted)} of embeddings to write{also}{much}; {size(free)} free in {folder}"


def _bases(what: str, amounts: Sequence[tuple[Planned, Amount]]) -> Iterator[str]:
    """Yield a line for each way in which a kind of number came about, with the cells that it holds for."""
    by_basis: dict[str, list[str]] = {}
    for cell, amount in amounts:
        by_basis.setdefault(amount.basis, []).append(f"{system(cell)} on {cell.config.dataset.name}")
    for basis, cells in by_basis.items():
        more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
        yield f"{what} {basis}: {', '.join(cells[:SHOWN])}{more}"


def plan_problems(cells: Sequence[Planned]) -> list[str]:
    """Return a line for every cell that cannot run, and for every disk that is too small."""
    found = [
        f"{system(cell)} on {cell.config.dataset.name}: {cell.problem}" for cell in cells if cell.problem is not None
    ]
    for folder, (wanted, _) in _disks(cells).items():
        if wanted > (free := free_bytes(folder)):
            found.append(
                f"{folder}: embeddings want {size(wanted)}, {size(free)} are free; set store.keep=topk, which keeps "
                "none, or cache_dir=DIR on a larger disk"
            )
    return list(dict.fromkeys(found))


def _disks(cells: Sequence[Planned]) -> Mapping[Path, tuple[int, int]]:
    """Return per cache folder the bytes to be written, and of how many cells these are not known."""
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
    """Return a line per cell: finished, or how many of its shards are done and who is at work on it."""
    columns = (
        *(Column("state"), *NAMED, Column("shards", "number")),
        *(Column("process", moves=1), Column("run id", moves=2, wide=True)),
    )
    lines = []
    for scores in sorted(finished, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0))):
        shards = str(scores.counts.get("shards", ABSENT))
        cells = ("finished", scores.model, dim(scores.dim), scores.dataset, shards, ABSENT, scores.run_id)
        lines.append(Line(cells))
    for cell, job in planned:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        who = ABSENT if job is None else f"{job.process}, since {job.started}"
        named = (state(cell, job), cell.config.model.name, dim(cell.dim), cell.config.dataset.name)
        lines.append(Line((*named, shards, who, cell.run_id or ABSENT)))
    for job in unreadable:
        who = f"{job.process}, {job.path.name}"
        lines.append(Line(("running" if job.running else "stopped", *[ABSENT] * 4, who, ABSENT)))
    return Grid(columns, lines, wide)


def workers_table(records: Sequence[Job]) -> Grid | None:
    """Return a line per worker of the runs that are at work with workers, or None where there is none."""
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
    return system_label(cell.config.model.name, cell.dim)


def state(cell: Planned, job: Job | None) -> str:
    """Return the state of a cell in one word, given who works on it."""
    if cell.state in ("finished", "damaged") or job is None:
        return cell.state
    return "running" if job.running else "failed" if job.error else "stopped"


def cache_table(entries: Sequence[Entry], *, wide: bool = False) -> Grid:
    """Return a line per cache entry, as they come; `wide` names every run that uses it."""
    columns = (
        *(Column("kind"), Column("key"), Column("dataset", "text"), Column("shards", "number", moves=3)),
        *(Column("size", "number", moves=1), Column("last use", moves=2), Column("used by", moves=4)),
    )
    lines = []
    for entry in entries:
        more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
        users = ", ".join(entry.runs) if wide else f"{entry.runs[0]}{more}" if entry.runs else ""
        shards = str(len(entry.shards)) if entry.shards else ABSENT
        what = (entry.kind, entry.key, ", ".join(entry.datasets) or ABSENT, shards, size(entry.size_bytes))
        lines.append(Line((*what, entry.used.strftime("%Y-%m-%d %H:%M"), users or "no known run")))
    return Grid(columns, lines)


def about(amount: Amount) -> str:
    """Return a number; one that was not counted is about so many.

    >>> about(Amount(1234.5, "estimated from …")), about(Amount(1200, "counted by …")), about(Amount(None, ""))
    ('≈ 1,235', '1,200', '–')
    """
    if amount.value is None:
        return ABSENT
    return f"{'≈ ' if amount.basis.startswith('estimated') else ''}{count(amount.value)}"
