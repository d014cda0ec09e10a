"""Progress bars with rates and time left on a terminal; no output elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]
"""`advance(documents, tokens)` adds the numbers that were finished since the last call."""


@contextmanager
def documents_bar(console: Console, title: str, *, total: int | None) -> Iterator[Advance]:
    """Show documents done, documents/s, tokens/s and time left; `total` is None if the number is not known yet."""
    if not console.is_terminal:
        yield lambda _documents, _tokens: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    finished = [0, 0]
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(title, total=total, rate="")

        def advance(documents: int, tokens: int) -> None:
            finished[0] += documents
            finished[1] += tokens
            elapsed_s = max(time.monotonic() - started, 1e-9)
            rate = f"{finished[0] / elapsed_s:,.0f} documents/s"
            if finished[1]:
                rate += f" {finished[1] / elapsed_s:,.0f} tokens/s"
            bar.update(task, completed=finished[0], rate=rate)

        yield advance
