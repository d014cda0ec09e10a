"""Progress with rates and time left: a bar on a terminal, otherwise a line from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[int, int], None]
"""`advance(documents, tokens)` adds the documents and tokens that were finished since the last call."""

LINE_S = 30.0
"""Seconds between two lines without a terminal."""
LINE_SHARDS = 10
"""Without a terminal a line is printed at least every LINE_SHARDS shards."""


class ProgressCounter:
    """Counts finished documents and tokens, and formats the progress."""

    def __init__(self, title: str, *, total: int | None, show: Callable[[ProgressCounter], None]) -> None:
        """Start counting; `show` is called after every step."""
        self.title, self.total = title, total
        self.documents = self.tokens = self.shards = 0
        self._show, self._started = show, time.monotonic()

    def __call__(self, documents: int, tokens: int) -> None:
        """Add the documents and tokens that were finished since the last call."""
        self.documents += documents
        self.tokens += tokens
        self._show(self)

    def shard_done(self) -> None:
        """Count a shard."""
        self.shards += 1
        self._show(self)

    def rate(self) -> str:
        """Return documents/s, and tokens/s if tokens are counted."""
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self.documents / elapsed_s:,.0f} documents/s"
        return f"{rate} {self.tokens / elapsed_s:,.0f} tokens/s" if self.tokens else rate

    def line(self) -> str:
        """Return the progress as one line; the time left assumes the mean rate so far."""
        of = f"{self.documents:,}" if self.total is None else f"{self.documents:,} of {self.total:,}"
        parts = [f"{of} documents", self.rate()]
        if self.total is not None and 0 < self.documents < self.total:
            elapsed_s = time.monotonic() - self._started
            parts.append(f"{elapsed_s * (self.total - self.documents) / self.documents:,.0f} s left")
        return f"{self.title}: {', '.join(parts)}"


def print_line(console: Console, line: str) -> None:
    """Print a line as it is: names are not taken for markup, numbers are not coloured, and it is not wrapped."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def documents_bar(console: Console, title: str, *, total: int | None) -> Iterator[ProgressCounter]:
    """Show documents done, documents/s, tokens/s and time left; `total` is None if it is not known yet."""
    if not console.is_terminal:
        yield ProgressCounter(title, total=total, show=_lines(console))
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(title, total=total, rate="")
        yield ProgressCounter(
            title, total=total, show=lambda counter: bar.update(task, completed=counter.documents, rate=counter.rate())
        )


def _lines(console: Console) -> Callable[[ProgressCounter], None]:
    """Return a function that prints a line every LINE_S seconds and every LINE_SHARDS shards."""
    last_s, last_shards = time.monotonic(), 0

    def show(counter: ProgressCounter) -> None:
        nonlocal last_s, last_shards
        if time.monotonic() - last_s < LINE_S and counter.shards - last_shards < LINE_SHARDS:
            return
        last_s, last_shards = time.monotonic(), counter.shards
        print_line(console, counter.line())

    return show
