"""Parsing of lines, columns, ids and grades in the common text formats: TREC runs, qrels and JSON lines.

Only tabs and spaces separate columns. A no-break space is part of an id, so it cannot split one into two columns.
Functions raise the error that their argument `make_error` builds, so that readers of datasets and of runs share one
parser.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from evalkit.errors import EvalkitError

BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_BUFFER_BYTES: Final = 1 << 20
_SPACES: Final = re.compile("[ \t]+")
_ODD_SEPARATORS: Final = re.compile("[\x00\x0b\x0c\x1c-\x1f]|\r(?!\n)")
"""ASCII characters at which only Python's str.split() splits, and NUL, which ends a string in C."""
_COLUMN_NAMES: Final = {3: "query-id corpus-id score", 4: "query 0 document grade"}
_HEADER: Final = ("query-id", "corpus-id", "score")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""Stricter than float(), which also accepts 1_000, digits of other scripts, nan and inf."""
LARGEST_GRADE: Final = 2**53
"""Metrics are computed in float64, which represents every integer up to this one."""
_LONGEST_NUMBER: Final = 64
"""Longer than any grade. Python's int() raises its own error for several thousand digits."""


class MakeError(Protocol):
    """Builds the error for an invalid file, or for an invalid line of it."""

    def __call__(self, path: Path, line: int | None, got: str, wanted: str, remedy: str) -> EvalkitError:
        """Return the error; `line` counts from 1 and is None for the whole file."""
        ...


def read_lines(path: Path, make_error: MakeError) -> Iterator[tuple[int, bytes]]:
    """Yield the number (from 1) and the bytes of every non-blank line of a plain file or, if named .gz, a gzip file.

    Byte order marks at the beginning of any line are dropped. They occur inside a file if files that begin with one
    were concatenated, or gzip members were; kept, they would become part of an id that matches nothing.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb", buffering=_BUFFER_BYTES) as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and path.suffix != ".gz" and line.startswith(_GZIP):
                    remedy = f"rename it to {path.name}.gz, or unpack it"
                    raise make_error(path, None, "a gzip file under a name without .gz", "plain text", remedy)
                while line.startswith(BOM):
                    line = line[len(BOM) :]  # noqa: PLW2901 (the original line is not needed again)
                if line and not line.isspace():
                    yield number, line
    except EOFError as error:
        got = "the end of a truncated gzip file after this line"
        raise make_error(path, number, got, "a whole file", "get the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        got = f"damaged gzip data after this line ({error})"
        raise make_error(path, number, got, "a whole file", "get the file again") from error
    except OSError as error:
        remedy = "check its path and its permissions"
        raise make_error(path, None, str(error.strerror), "a readable file", remedy) from error


def decode(path: Path, number: int, line: bytes, make_error: MakeError) -> str:
    """Decode a line as UTF-8; raise the error of `make_error` if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line, which is not UTF-8"
        raise make_error(path, number, got, "UTF-8", "convert the file, for instance with iconv -t UTF-8") from error


def split(text: str, *, tabs: int | None = None) -> list[str]:
    r"""Return a line's columns: split at tabs if it has exactly `tabs` of them, else at runs of spaces and tabs.

    >>> split("q1 Q0 Foo\u00a0Bar 1 0.5 t")
    ['q1', 'Q0', 'Foo\xa0Bar', '1', '0.5', 't']
    >>> split("q1\tFoo Bar\t1", tabs=2)
    ['q1', 'Foo Bar', '1']
    """
    if tabs is not None and text.count("\t") == tabs:
        return [column.strip(" ") for column in text.split("\t")]
    if text.isascii() and not _ODD_SEPARATORS.search(text):
        return text.split()  # the same result as below, several times faster
    return [column for column in _SPACES.split(text.strip(" \t\r\n")) if column]


def is_identifier(text: str) -> bool:
    """Tell whether every tool can read an id in a TREC file: it must have no white space of any kind and no NUL."""
    return text.split() == [text] and "\0" not in text


def check_identifier(path: Path, number: int, what: str, text: str, make_error: MakeError) -> None:
    """Raise the error of `make_error` unless a text is an id; `what` is the name of the column."""
    if not is_identifier(text):
        got = f"{what} {shortened(repr(text))}"
        raise make_error(path, number, got, "an id without white space or NUL", "rename it wherever it occurs")


def grade_of(value: object) -> int | None:
    """Return a grade as an integer, or None if it is not one; the rule for dataset folders, the Hub and TREC qrels.

    A whole number is accepted in any notation. Other values are rejected because their meaning is unknown.

    >>> [grade_of(value) for value in ("2", "1.0", "-1", 3.0, "1.5", "nan", "1e400", "1_0", True, float("inf"))]
    [2, 1, -1, 3, None, None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_GRADE else None
    text = value if isinstance(value, str) else repr(value)
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    try:
        exact = Decimal(text)
        is_grade = abs(exact) <= LARGEST_GRADE and exact == exact.to_integral_value()
    except ArithmeticError:  # the exponent is too large for Decimal to parse or to compare
        return None
    return int(exact) if is_grade else None


class Judgement(NamedTuple):
    """One line of a qrels file."""

    line: int
    query_id: str
    document_id: str
    grade: int


def judgements(path: Path, make_error: MakeError, *, allowed: Collection[int] = (3, 4)) -> Iterator[Judgement]:
    """Yield the judgements of a file with three columns, with or without BEIR's header, or with TREC's four.

    `allowed` has the allowed numbers of columns. The first line decides on one, and every other line must have the same
    number. If the first line has exactly that number with tabs as the only separators, all lines are split at tabs
    only, so that a space in an id does not count as a separator. Other lines raise the error of `make_error`.
    """
    columns, tabs = 0, None
    for number, line in read_lines(path, make_error):
        text = decode(path, number, line, make_error).strip(" \t\r\n")
        if not columns and text.count("\t") + 1 in allowed:
            tabs = text.count("\t")
        found = split(text, tabs=tabs)
        if not columns:
            columns = len(found)
            if tuple(found) == _HEADER and columns in allowed:
                continue
        if len(found) != columns or columns not in allowed:
            first = min(allowed)
            wanted = f"{columns}, as on the first line" if columns in allowed else f"{first} ({_COLUMN_NAMES[first]})"
            raise make_error(
                path, number, f"{len(found)} columns", wanted, "ids must not contain white space; repair the line"
            )
        query, document, grade = found[0], found[-2], grade_of(found[-1])
        if grade is None:
            header = f"; a header line must read {' '.join(_HEADER)}" if number == 1 and 3 in allowed else ""
            raise make_error(
                path, number, f"relevance {shortened(repr(found[-1]))}", "a whole number", f"repair the line{header}"
            )
        check_identifier(path, number, "query-id", query, make_error)
        check_identifier(path, number, "corpus-id", document, make_error)
        yield Judgement(number, query, document, grade)


def read_qrels(path: Path, make_error: MakeError, *, allowed: Collection[int] = (3, 4)) -> dict[str, dict[str, int]]:
    """Return a file's grades by query and document, including zero and negative grades.

    A pair may be repeated with the same grade. A pair with two grades and a file without judgements raise the error of
    `make_error`.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, query, document, grade in judgements(path, make_error, allowed=allowed):
        first = qrels.setdefault(query, {}).setdefault(document, grade)
        if first != grade:
            before = next(row for row in judgements(path, make_error, allowed=allowed) if row[1:3] == (query, document))
            got = f"grade {grade} for query {query!r} and document {document!r}, "
            got += f"which has grade {first} on line {before.line}"
            raise make_error(path, number, got, "one grade for a pair", "remove one of the lines")
    if not qrels:
        raise make_error(path, None, "no judgement", "at least one", "get the file again")
    return qrels


def shortened(text: str, *, most: int = 60) -> str:
    """Return a text shortened to `most` characters for a message, with an ellipsis if it was longer."""
    return text if len(text) <= most else f"{text[:most]}…"
