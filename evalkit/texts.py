"""Rules for untrusted text that becomes the name of a file, a line on a terminal or a message.

Names are checked when they are read (`unusable_name`), printed text is escaped (`printable`), and every message passes
`one_line`, which removes secrets and line breaks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

NAME: Final = re.compile(r"\w[\w.+@=,-]*")
"""A name that is valid as a file name on every system, as a column of a run file, and as plain text in a table."""
NAME_BYTES: Final = 72
"""The maximum length of a name. A folder's name has three names, a dim and a hash, and may have 255 bytes."""
SECRET_NAMES: Final = re.compile(r"(?:.*_)?(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|CREDENTIALS?)", re.IGNORECASE)
"""Environment variables that hold secrets, by the end of their names."""
SECRET_CHARACTERS: Final = 8
"""Shorter values are not treated as secrets, because they occur in messages by chance."""

_USER_OF_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which a terminal would execute; marks that reverse text; halves of surrogate pairs."""


def unusable_name(name: object, *, parts: bool = False) -> str | None:
    """Return why a text cannot be used in a file name, or None; `parts` allows several names separated by slashes.

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
    """Return why a text cannot be a system's name, or None; `LIBRARY:SYSTEM` is a system that another program ran.

    In paths the colon is replaced (`in_path`). A number after the colon is a dim: `demo:64` is demo at dim 64.

    >>> unusable_system("pylate:jina-colbert-v2"), unusable_system("bm25")
    (None, None)
    >>> unusable_system("a:b:c")
    'wanted one colon at most, LIBRARY:SYSTEM'
    >>> unusable_system("demo:64")
    'wanted LIBRARY:SYSTEM, and a number after the colon is a dim'
    """
    if not isinstance(name, str):
        return "wanted text"
    if name.count(":") > 1:
        return "wanted one colon at most, LIBRARY:SYSTEM"
    if ":" in name and name.partition(":")[2].isdecimal():
        return "wanted LIBRARY:SYSTEM, and a number after the colon is a dim"
    problem = next(filter(None, (unusable_name(part) for part in name.split(":"))), None)
    return problem or unusable_name(in_path(name))


def in_path(name: str) -> str:
    """Return a system's name in the form used in paths, because some file systems allow no colons.

    >>> in_path("pylate:jina-colbert-v2")
    'pylate-jina-colbert-v2'
    """
    return name.replace(":", "-")


def printable(text: str) -> str:
    r"""Return a text in which characters that control a terminal or reverse text are replaced by Python's escapes.

    >>> print(printable("a\x1b[2Jb\tc"))
    a\x1b[2Jb\tc
    """
    return _UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)


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
    """Return the name of an environment variable whose secret a text contains, or None."""
    return next((name for name, value in secrets().items() if value in text), None)
