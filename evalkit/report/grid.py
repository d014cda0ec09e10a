"""Renders all tables of the command line for any terminal width, without cutting a digit.

If the columns do not fit side by side, the least important ones move to a second line below their row, each with its
name. If that is not enough, names are shortened in the middle, so that their distinguishing ends remain.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions

from evalkit.report.rounding import ABSENT

COLUMN_GAP: Final = 2
INDENT: Final = 2
SEPARATOR: Final = " · "
UNBOUNDED: Final = 1_000_000
"""The width for a pipe: every row is one line, and nothing is padded."""
TEXT_WIDTH: Final = 24
"""The least width of a column of text; if it would be narrower, it moves below its row."""
NAME_WIDTH: Final = 8
"""The least width of a shortened name."""


class Column(NamedTuple):
    """A column; its kind decides how its cells may be changed to save width."""

    name: str
    kind: Literal["name", "number", "word", "text"] = "word"
    """Numbers and words are never shortened; a name may be shortened in the middle; a text is wrapped."""
    moves: int = 0
    """If columns do not fit, the one with the largest number moves below its row first; 0 never moves."""
    wide: bool = False
    """Shown only with `--wide`."""


class Line(NamedTuple):
    """A row's cells, and sentences that are always printed below it."""

    cells: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table: columns, rows, and whether the columns of `--wide` are shown."""

    columns: tuple[Column, ...]
    rows: Sequence[Line]
    wide: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        """Yield the table's lines, at most as wide as the console."""
        yield from self.lines(options.max_width)

    def lines(self, width: int = UNBOUNDED) -> Iterator[str]:
        """Yield the lines of header and rows, without trailing spaces.

        >>> grid = Grid((Column("system", "name"), Column("value", "number", moves=1)), [Line(("bm25", "0.32545"))])
        >>> list(grid.lines()), list(grid.lines(10))
        (['system    value', 'bm25    0.32545'], ['system', 'bm25', '  value', '  0.32545'])
        """
        shown = [place for place, column in enumerate(self.columns) if self.wide or not column.wide]
        top, widths = self._fitted(shown, width)
        below = [place for place in shown if place not in top]
        yield from _side_by_side([wrapped(self.columns[place].name, widths[place]) for place in top], self, top, widths)
        for row in self.rows:
            cells = [_cell_lines(row.cells[place], widths[place], self.columns[place].kind) for place in top]
            yield from _side_by_side(cells, self, top, widths)
            pairs = [f"{self.columns[place].name} {row.cells[place]}" for place in below if _has_text(row.cells[place])]
            yield from _paragraph(pairs, width)
            for note in row.notes:
                yield from _paragraph([note], width)

    def _fitted(self, shown: Sequence[int], width: int) -> tuple[list[int], Mapping[int, int]]:
        """Return the columns that are printed side by side, and their widths."""
        top = list(shown)
        while True:
            natural = {place: self._natural(place) for place in top}
            for narrow in (natural, {place: self._narrow(place, natural[place]) for place in top}):
                if (spare := width - _total(narrow)) >= 0:
                    return top, _widened(narrow, natural, spare)
            movable = [place for place in top[1:] if self.columns[place].moves]
            if not movable:
                return top, self._shortened(narrow, _total(narrow) - width)
            top.remove(max(movable, key=lambda place: (self.columns[place].moves, place)))

    def _natural(self, place: int) -> int:
        return max(map(cell_len, (self.columns[place].name, *(row.cells[place] for row in self.rows))))

    def _narrow(self, place: int, natural: int) -> int:
        """Return the least width of a column at which no cell loses a character; headers and texts are wrapped."""
        column = self.columns[place]
        words = max(map(cell_len, column.name.split()), default=0)
        cells = [row.cells[place] for row in self.rows]
        if column.kind == "text":
            return min(natural, max(words, TEXT_WIDTH))
        return max([words, *map(cell_len, cells)])

    def _shortened(self, widths: Mapping[int, int], excess: int) -> Mapping[int, int]:
        """Return the widths after shortening the longest names until the row fits or no name can be shortened."""
        found = dict(widths)
        names = [place for place in found if self.columns[place].kind == "name"]
        for _ in range(excess):
            longest = max(names, key=lambda place: found[place], default=None)
            if longest is None or found[longest] <= NAME_WIDTH:
                break
            found[longest] -= 1
        return found


def terminal_width() -> int:
    """Return the terminal's width or, if it is set, that of COLUMNS; a pipe without COLUMNS is UNBOUNDED."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return max(20, shutil.get_terminal_size().columns)
    return UNBOUNDED


def shortened(name: str, width: int) -> str:
    """Return a name shortened in the middle to at most `width` columns.

    >>> shortened("jina-embeddings-v2-base-en", 16), shortened("bm25", 16)
    ('jina-emb…base-en', 'bm25')
    """
    if cell_len(name) <= width:
        return name
    front, back = width // 2, (width - 1) // 2
    while cell_len(name[:front]) > width // 2:
        front -= 1
    while back and cell_len(name[-back:]) > (width - 1) // 2:
        back -= 1
    return f"{name[:front]}…{name[-back:] if back else ''}"


def _has_text(cell: str) -> bool:
    """Whether a cell is neither empty nor a dash."""
    return cell not in ("", ABSENT)


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + COLUMN_GAP * (len(widths) - 1)


def _widened(widths: Mapping[int, int], natural: Mapping[int, int], spare: int) -> Mapping[int, int]:
    """Distribute spare width among the columns that need more, the leftmost first."""
    found = dict(widths)
    for place, wanted in natural.items():
        more = min(spare, wanted - found[place])
        found[place] += more
        spare -= more
    return found


def _cell_lines(cell: str, width: int, kind: str) -> list[str]:
    """Return a cell as lines of at most `width` columns: texts are wrapped, names shortened."""
    if kind == "text":
        return wrapped(cell, width)
    return [shortened(cell, width) if kind == "name" else cell]


def wrapped(text: str, width: int) -> list[str]:
    """Wrap a text to lines of at most `width` columns; only words that are longer are broken."""
    lines = [""]
    for word in text.split():
        rest = word
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(rest) <= width:
            lines[-1] += f" {rest}"
            continue
        if lines[-1]:
            lines.append("")
        while cell_len(rest) > width:
            cut = width
            while cell_len(rest[:cut]) > width:
                cut -= 1
            lines[-1] = rest[: max(1, cut)]
            rest = rest[max(1, cut) :]
            lines.append("")
        lines[-1] = rest
    return lines


def _side_by_side(
    cells: Sequence[Sequence[str]], grid: Grid, top: Sequence[int], widths: Mapping[int, int]
) -> Iterator[str]:
    for number in range(max(map(len, cells), default=0)):
        parts = []
        for place, lines in zip(top, cells, strict=True):
            text = lines[number] if number < len(lines) else ""
            padding = " " * (widths[place] - cell_len(text))
            parts.append(padding + text if grid.columns[place].kind == "number" else text + padding)
        yield (" " * COLUMN_GAP).join(parts).rstrip()


def _paragraph(parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield the indented lines below a row; a part is kept on one line if it fits."""
    room, line = max(1, width - INDENT), ""
    for part in parts:
        joined = f"{line}{SEPARATOR}{part}" if line else part
        if line and cell_len(joined) > room:
            yield " " * INDENT + line
            joined = part
        *full, line = wrapped(joined, room)
        yield from (" " * INDENT + whole for whole in full)
    if line:
        yield " " * INDENT + line
