"""The one way to a terminal: no markup, no escapes, no secret, and no output that a closed pipe turns into a traceback.

Tables and lines are full of text from outside: ids, texts of documents, names in results, messages. Whoever prints goes
through here, so that `[/red]` in an id is five characters and an escape sequence is shown instead of obeyed.
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
from evalkit.texts import printable, told


class PlainConsole(Console):
    """A console on which a text is only ever a text."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        """Take markup, emoji names and guessed colours off."""
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print as rich does; a line that is not to be wrapped is folded between words where this is a terminal."""
        if self.is_terminal and settings.get("soft_wrap") and objects and isinstance(objects[0], str):
            objects = (folded(objects[0], self.width), *objects[1:])
        super().print(*objects, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a text as it stands, its line breaks kept and every other control character shown."""
        return super().render_str(_shown(text), **{**settings, "markup": False, "emoji": False})


def out() -> PlainConsole:
    """Return the console of standard output."""
    return PlainConsole(width=terminal_width())


def say(line: str) -> None:
    """Print a line to standard output; a terminal narrower than it gets it in several, broken between words."""
    write(f"{folded(line, terminal_width()) if sys.stdout.isatty() else line}\n")


def folded(line: str, width: int) -> str:
    """Return a line in several of at most so many columns, those behind the first indented; no word is broken.

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
    """Print to standard output, every control character but tabs and line breaks shown."""
    sys.stdout.write(_shown(text))


def _shown(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def complain(message: str) -> None:
    """Print a message to standard error as one line without secrets, folded where that is a terminal."""
    line = f"evalkit: {told(message)}"
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else 0
    sys.stderr.write(f"{folded(line, width) if width else line}\n")
    sys.stderr.flush()


def open_standard_streams() -> None:
    """Make the standard streams usable whatever the caller left: closed ones write nowhere, none refuses a character.

    A closed descriptor is taken first: the next file that is opened would have its number, and get what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (for as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def output_may_break() -> Iterator[None]:
    """Turn what a full disk or a closed pipe does to standard output into one line and exit code 1."""
    try:
        try:
            yield
        finally:  # also when a verb exits, while an exception could still be told
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF):
            raise
        # Python flushes again at its end, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:
            complain(f"standard output could not be written ({error.strerror}); results are where results_dir says")
        raise SystemExit(1) from None
