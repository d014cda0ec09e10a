"""What `plan` and `status` print, as tables and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from evalkit.operations.forecast import Amount, Planned, free_bytes
from evalkit.operations.inventory import Entry
from evalkit.report.table import ABSENT
from evalkit.run.jobs import Job
from evalkit.storage.results import CellScores

SHOWN = 3
"""Cells named where a line holds for many."""


def plan_table(cells: Sequence[Planned]) -> Table:
    """Return a line per cell: its state, its size, what is left, and what that will take."""
    columns = (
        *("system", "dim", "dataset", "state", "documents", "tokens", "vectors", "shards", "embeddings", "to write"),
        *("time left", "checkpoint", "data", "run id"),
    )
    table = _table(columns, text=("system", "dataset", "state", "checkpoint", "data", "run id"))
    for cell in cells:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        table.add_row(
            *(cell.config.model.name, _dim(cell.dim), cell.config.dataset.name, cell.state, _count(cell.documents)),
            *(about(cell.tokens), about(cell.vectors), shards, size(cell.stored_bytes), size(cell.missing_bytes)),
            *(duration(cell.seconds.value), cell.checkpoint, cell.source, cell.run_id or "after the survey"),
        )
    return table


def plan_lines(cells: Sequence[Planned]) -> Iterator[str]:
    """Yield where the numbers come from, and what all of it takes."""
    yield from _bases("tokens", [(cell, cell.tokens) for cell in cells])
    yield from _bases("vectors", [(cell, cell.vectors) for cell in cells if cell.dim is not None])
    yield from _bases("time", [(cell, cell.seconds) for cell in cells if cell.state != "finished"])
    left = [cell for cell in cells if cell.state != "finished"]
    seconds = [cell.seconds.value for cell in left]
    known = [value for value in seconds if value is not None]
    states = Counter(cell.state for cell in cells)
    yield f"{len(cells)} cells: {', '.join(f'{count} {state}' for state, count in states.items())}"
    if known:
        unknown = f", and {len(seconds) - len(known)} cells of unknown time" if len(known) < len(seconds) else ""
        yield f"time left: {duration(sum(known))} at most (dims of one backbone are encoded in one pass){unknown}"
    for folder, (wanted, unsized) in _disks(cells).items():
        also = f", and {unsized} cells of unknown size" if unsized else ""
        yield f"disk: {size(wanted)} of embeddings to write{also}; {size(free_bytes(folder))} free in {folder}"


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
    finished: Sequence[CellScores], planned: Sequence[tuple[Planned, Job | None]], unreadable: Sequence[Job]
) -> Table:
    """Return a line per cell: finished, or how many of its shards are done and who is at work on it."""
    table = _table(("state", "system", "dim", "dataset", "shards", "run id", "process"), text=("state", "process"))
    for scores in sorted(finished, key=lambda cell: (cell.dataset, cell.model, -(cell.dim or 0))):
        shards = str(scores.counts.get("shards", ABSENT))
        table.add_row("finished", scores.model, _dim(scores.dim), scores.dataset, shards, scores.run_id, ABSENT)
    for cell, job in planned:
        shards = ABSENT if cell.shards is None else f"{cell.done} of {cell.shards}"
        who = ABSENT if job is None else f"{job.process}, since {job.started}"
        table.add_row(
            *(state(cell, job), cell.config.model.name, _dim(cell.dim), cell.config.dataset.name, shards),
            *(cell.run_id or ABSENT, who),
        )
    for job in unreadable:
        table.add_row("running" if job.running else "stopped", *[ABSENT] * 5, f"{job.process}, {job.path.name}")
    return table


def workers_table(records: Sequence[Job]) -> Table | None:
    """Return a line per worker of the runs that are at work with workers, or None where there is none."""
    table = _table(("worker", "where", "device", "state", "shards done", "ended"), text=("where", "device", "state"))
    for job in records:
        for worker in job.workers() if job.running else ():
            numbers = [str(worker.get(name, ABSENT)) for name in ("number", "done", "deaths")]
            words = [str(worker.get(name, ABSENT)) for name in ("where", "device", "state")]
            table.add_row(numbers[0], *words, *numbers[1:])
    return table if table.row_count else None


def system(cell: Planned) -> str:
    """Return a cell's system with its dim."""
    return cell.config.model.name if cell.dim is None else f"{cell.config.model.name}-{cell.dim}"


def state(cell: Planned, job: Job | None) -> str:
    """Return the state of a cell in one word, given who works on it."""
    if cell.state in ("finished", "damaged") or job is None:
        return cell.state
    return "running" if job.running else "failed" if job.error else "stopped"


def cache_table(entries: Sequence[Entry]) -> Table:
    """Return a line per cache entry, as they come."""
    columns = ("kind", "key", "dataset", "shards", "size", "last use", "used by")
    table = _table(columns, text=("kind", "key", "used by"))
    for entry in entries:
        more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
        shards = str(len(entry.shards)) if entry.shards else ABSENT
        table.add_row(
            *(entry.kind, entry.key, ", ".join(entry.datasets) or ABSENT, shards, size(entry.size_bytes)),
            *(entry.used.strftime("%Y-%m-%d %H:%M"), f"{entry.runs[0]}{more}" if entry.runs else "no known run"),
        )
    return table


def about(amount: Amount) -> str:
    """Return a number; one that was not counted is about so many.

    >>> about(Amount(1234.5, "estimated from …")), about(Amount(1200, "counted by …")), about(Amount(None, ""))
    ('≈ 1,234', '1,200', '–')
    """
    if amount.value is None:
        return ABSENT
    return f"{'≈ ' if amount.basis.startswith('estimated') else ''}{amount.value:,.0f}"


def size(count: float | None) -> str:
    """Return bytes in the unit that people read.

    >>> size(0), size(1_500_000), size(None)
    ('0 B', '1.5 MB', '–')
    """
    if count is None:
        return ABSENT
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Return a time that is left, in the unit that people read.

    >>> duration(0.2), duration(90), duration(7260), duration(None)
    ('0 s', '1.5 min', '2.0 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    for unit, factor in (("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _count(number: int | None) -> str:
    return ABSENT if number is None else f"{number:,}"


def _dim(dim: int | None) -> str:
    return ABSENT if dim is None else str(dim)


def _table(columns: Sequence[str], *, text: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    left = (*text, "system", "dataset", "run id")
    for name in columns:
        folded = name in ("checkpoint", "data", "run id", "process", "used by", "key")
        table.add_column(name, justify="left" if name in left else "right", no_wrap=not folded, overflow="fold")
    return table
