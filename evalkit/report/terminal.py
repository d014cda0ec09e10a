"""All output to a terminal: without markup, escape sequences, secrets, or a traceback when a pipe is closed.

Output contains text from outside: ids, documents, names in results, messages. Printing only through this module makes
sure that `[/red]` in an id is printed as it is, and that escape sequences are shown instead of executed.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from evalkit.report.grid import terminal_width
from evalkit.texts import one_line, printable

TAB_COLUMNS = 12
"""The columns of a terminal that a metric's name takes; a pipe gets a tab."""


class PlainConsole(Console):
    """A console that interprets nothing in a text."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Turn off markup, emoji names and highlighting."""
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print as rich does. On a terminal, a line with `soft_wrap` is broken between words."""
        if self.is_terminal and settings.get("soft_wrap") and objects and isinstance(objects[0], str):
            objects = (folded(objects[0], self.width), *objects[1:])
        super().print(*objects, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text unchanged, except that control characters other than line breaks are made visible."""
        return super().render_str(_visible(text), **{**settings, "markup": False, "emoji": False})


def out() -> PlainConsole:
    """Return the console of standard output."""
    return PlainConsole(width=terminal_width())


def say(line: str) -> None:
    """Print a line to standard output; a terminal gets values below each other, and a long line in several."""
    write(f"{folded(line.expandtabs(TAB_COLUMNS), terminal_width()) if sys.stdout.isatty() else line}\n")


def folded(line: str, width: int) -> str:
    """Break a line between words into lines of at most `width` columns; lines after the first are indented.

    >>> print(folded("time unknown: run with --probe", 20))
    time unknown: run
      with --probe
    """
    indent = line[: len(line) - len(line.lstrip())]
    wrapped = textwrap.wrap(
        line,
        max(20, width),
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(wrapped)


def write(text: str) -> None:
    """Print to standard output; control characters other than tabs and line breaks are made visible."""
    sys.stdout.write(_visible(text))


def _visible(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def complain(message: str) -> None:
    """Print a message to standard error as one line without secrets; on a terminal it is broken between words."""
    line = f"evalkit: {one_line(message)}"
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
    sys.stderr.write(f"{folded(line, width) if width else line}\n")
    sys.stderr.flush()


def open_standard_streams() -> None:
    """Make the standard streams usable: closed ones discard their output, and none rejects a character.

    Closed descriptors are opened first; otherwise the next opened file would get such a number, and the output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_may_break() -> Iterator[None]:
    """If standard output fails (a full disk, a closed pipe), print one line and exit with code 1."""
    try:
        try:
            yield
        finally:  # also when a verb exits, while an error can still be reported
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF):
            raise
        # Python flushes again on exit and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:
            complain(f"standard output could not be written ({error.strerror}); results are where results_dir says")
        raise SystemExit(1) from None
