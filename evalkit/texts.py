"""Rules for text from outside, before it becomes the name of a file, a line on a terminal or a message.

Names are checked when they are read (`unusable_name`), printed text is escaped (`printable`), and every message passes
`one_line`, which removes secrets and line breaks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

NAME: Final = re.compile(r"\w[\w.+@=,-]*")
"""A name that can be a file's on every system, a column's in a run file, and plain text in a table."""
NAME_BYTES: Final = 72
"""Three names, a dim and a hash make a folder's name, of which file systems take 255 bytes."""
SECRET_NAMES: Final = re.compile(r"(?:.*_)?(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)", re.IGNORECASE)
"""Environment variables that hold secrets, by the end of their names."""
SECRET_CHARACTERS: Final = 8
"""A shorter value is no secret, and taking it out of messages would garble them."""

_USER_OF_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which move a terminal's cursor or worse; marks that reverse text; halves of surrogate pairs."""


def unusable_name(name: object, *, parts: bool = False) -> str | None:
    """Say why a text cannot be (part of) a file's name, or return None; `parts` allows several with slashes between.

    >>> unusable_name("jina-colbert-v2"), unusable_name("beir/nfcorpus", parts=True)
    (None, None)
    >>> unusable_name("../x")
    'wanted letters, digits and . _ - + @ = , (a letter or digit first)'
    """
    if not isinstance(name, str):
        return "wanted text"
    wanted = "wanted letters, digits and . _ - + @ = , (a letter or digit first)"
    if not all(NAME.fullmatch(part) for part in (name.split("/") if parts else [name])):
        return f"{wanted}{', parts with / between them' if parts else ''}"
    size = len(name.encode())
    return f"got {size} bytes, wanted {NAME_BYTES} at most" if size > NAME_BYTES else None


def unusable_system(name: object) -> str | None:
    """Say why a text cannot be a system's name, or return None; `LIBRARY:SYSTEM` is one that another program ran.

    The colon is for people: what becomes a path has it replaced (`in_path`).

    >>> unusable_system("pylate:jina-colbert-v2"), unusable_system("bm25")
    (None, None)
    >>> unusable_system("a:b:c")
    'wanted one colon at most, LIBRARY:SYSTEM'
    """
    if not isinstance(name, str):
        return "wanted text"
    if name.count(":") > 1:
        return "wanted one colon at most, LIBRARY:SYSTEM"
    problem = next(filter(None, (unusable_name(part) for part in name.split(":"))), None)
    return problem or unusable_name(in_path(name))


def in_path(name: str) -> str:
    """Return a system's name as a path can hold it: some file systems have no colons.

    >>> in_path("pylate:jina-colbert-v2")
    'pylate-jina-colbert-v2'
    """
    return name.replace(":", "-")


def printable(text: str) -> str:
    r"""Return a text that cannot move the cursor or reverse a line: such characters become Python's escapes.

    >>> print(printable("a\x1b[2Jb\tc"))
    a\x1b[2Jb\tc
    """
    return _HARMFUL.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", errors="surrogatepass").decode()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "run"), counted(2, "run"), counted(1200, "cell")
    ('1 run', '2 runs', '1,200 cells')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    r"""Return a message as one printable line without secrets.

    >>> one_line("http://me:secret@hub/x: no\n  answer")
    'http://***@hub/x: no answer'
    """
    return printable(without_secrets(_LINE_BREAKS.sub(" ", text)))


def without_secrets(text: str) -> str:
    """Return a text without the values of secret environment variables, and without users and passwords in URLs."""
    for name, value in secrets().items():
        if value in text:
            text = text.replace(value, f"***{name}***")
    return _USER_OF_URL.sub(r"\g<scheme>***@", text)


def secrets() -> Mapping[str, str]:
    """Return the environment variables that hold secrets, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= SECRET_CHARACTERS and SECRET_NAMES.fullmatch(name)
    }


def secret_in(text: str) -> str | None:
    """Return the name of the environment variable whose secret a text holds, if any does."""
    return next((name for name, value in secrets().items() if value in text), None)
