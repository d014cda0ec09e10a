"""Lines, columns, ids and grades of the text formats that everybody shares: TREC runs, qrels and JSON lines.

Columns are parted by tabs or spaces and by nothing else: a no-break space belongs to an id, and what it would split
cannot be mistaken for another column. Every function that refuses raises the error that `bad` makes, so that one parser
serves readers of datasets and readers of runs.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from evalkit.errors import EvalkitError

BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_BUFFER_BYTES: Final = 1 << 20
_SPACES: Final = re.compile("[ \t]+")
_ODD: Final = re.compile("[\x00\x0b\x0c\x1c-\x1f]|\r(?!\n)")
"""ASCII at which str.split() parts and nobody else does, and NUL, at which C's functions end a text."""
_FORMS: Final = {3: "query-id corpus-id score", 4: "query 0 document grade"}
_HEADER: Final = ("query-id", "corpus-id", "score")
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
"""Stricter than float(), which also takes 1_000, digits of other scripts, nan and inf."""
LARGEST_GRADE: Final = 2**53
"""Up to here float64, in which metrics are computed, holds every whole number."""
_LONGEST_NUMBER: Final = 64
"""More characters than any grade has; Python's int() refuses some thousands of digits with an error of its own."""


class Bad(Protocol):
    """Makes the error that names a file, or a line of it."""

    def __call__(self, path: Path, line: int | None, got: str, wanted: str, remedy: str) -> EvalkitError:
        """Return the error."""
        ...


def read_lines(path: Path, bad: Bad) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of every line that is not blank, of a plain file or, under .gz, a gzipped one.

    A byte order mark at the beginning of a line is no part of it: files that each begin with one get concatenated, as
    gzip's members too, and it would become part of an id that then matches nothing.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb", buffering=_BUFFER_BYTES) as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and path.suffix != ".gz" and line.startswith(_GZIP):
                    remedy = f"rename it to {path.name}.gz, or unpack it"
                    raise bad(path, None, "a gzip file under a name without .gz", "plain text", remedy)
                while line.startswith(BOM):
                    line = line[len(BOM) :]  # noqa: PLW2901 (the line without its mark is the line)
                if line and not line.isspace():
                    yield number, line
    except EOFError as error:
        got = "the end of a truncated gzip file after this line"
        raise bad(path, number, got, "a whole file", "get the file anew") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        got = f"damaged gzip data after this line ({error})"
        raise bad(path, number, got, "a whole file", "get the file anew") from error
    except OSError as error:
        remedy = "check its path and its permissions"
        raise bad(path, None, str(error.strerror), "a readable file", remedy) from error


def decode(path: Path, number: int, line: bytes, bad: Bad) -> str:
    """Return a line as text."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line, which is not UTF-8"
        raise bad(path, number, got, "UTF-8", "convert the file, for instance with iconv -t UTF-8") from error


def split(text: str, *, tabs: int | None = None) -> list[str]:
    r"""Return a line's columns: parted at every tab where it has as many as asked, else at runs of spaces and tabs.

    >>> split("q1 Q0 Foo\u00a0Bar 1 0.5 t")
    ['q1', 'Q0', 'Foo\xa0Bar', '1', '0.5', 't']
    >>> split("q1\tFoo Bar\t1", tabs=2)
    ['q1', 'Foo Bar', '1']
    """
    if tabs is not None and text.count("\t") == tabs:
        return [column.strip(" ") for column in text.split("\t")]
    if text.isascii() and not _ODD.search(text):
        return text.split()  # the same as below, and several times as fast
    return [column for column in _SPACES.split(text.strip(" \t\r\n")) if column]


def is_identifier(text: str) -> bool:
    """Return whether an id can stand in a TREC file as every tool reads it: without white space of any kind or NUL."""
    return text.split() == [text] and "\0" not in text


def check_identifier(path: Path, number: int, what: str, text: str, bad: Bad) -> None:
    """Raise the error of `bad` unless a text is an id."""
    if not is_identifier(text):
        got = f"{what} {cut(repr(text))}"
        raise bad(path, number, got, "an id without white space or NUL", "rename it wherever it stands")


def grade_of(value: object) -> int | None:
    """Return a grade as a whole number, or None for what is none: the one rule for folders, the Hub and TREC qrels.

    A number that is whole is read however it is written; of anything else nobody knows what was meant.

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
    except InvalidOperation:  # an exponent beyond every computer's
        return None
    if abs(exact) > LARGEST_GRADE or exact != exact.to_integral_value():
        return None
    return int(exact)


class Judgement(NamedTuple):
    """One line of a qrels file."""

    line: int
    query_id: str
    document_id: str
    grade: int


def judgements(path: Path, bad: Bad, *, forms: Collection[int] = (3, 4)) -> Iterator[Judgement]:
    """Yield the judgements of a file of three columns, under BEIR's header or none, or of TREC's four.

    The first line tells which form it is, and every line must have as many columns. Where the first line has one tab
    less than columns, columns are parted at tabs alone, so that a space in an id is not taken for a column.
    """
    columns, tabs = 0, None
    for number, line in read_lines(path, bad):
        text = decode(path, number, line, bad).strip(" \t\r\n")
        if not columns and text.count("\t") + 1 in forms:
            tabs = text.count("\t")
        found = split(text, tabs=tabs)
        if not columns:
            columns = len(found)
            if tuple(found) == _HEADER and columns in forms:
                continue
        if len(found) != columns or columns not in forms:
            first = min(forms)
            wanted = f"{columns}, as on the first line" if columns in forms else f"{first} ({_FORMS[first]})"
            raise bad(path, number, f"{len(found)} columns", wanted, "ids hold no white space; repair the line")
        query, document, grade = found[0], found[-2], grade_of(found[-1])
        if grade is None:
            header = f"; a header line must read {' '.join(_HEADER)}" if number == 1 and 3 in forms else ""
            raise bad(path, number, f"relevance {cut(repr(found[-1]))}", "a whole number", f"repair the line{header}")
        check_identifier(path, number, "query-id", query, bad)
        check_identifier(path, number, "corpus-id", document, bad)
        yield Judgement(number, query, document, grade)


def read_qrels(path: Path, bad: Bad, *, forms: Collection[int] = (3, 4)) -> dict[str, dict[str, int]]:
    """Return a file's judgements, zero and negative grades too; a pair judged twice with one grade counts once.

    A pair with two grades is refused, and so is a file without a judgement.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, query, document, grade in judgements(path, bad, forms=forms):
        first = qrels.setdefault(query, {}).setdefault(document, grade)
        if first != grade:
            before = next(row for row in judgements(path, bad, forms=forms) if row[1:3] == (query, document))
            got = f"grade {grade} for query {query!r} and document {document!r}, "
            got += f"which line {before.line} grades {first}"
            raise bad(path, number, got, "one grade for a pair", "remove one of the lines")
    if not qrels:
        raise bad(path, None, "no judgement", "at least one", "get the file anew")
    return qrels


def cut(text: str, *, most: int = 60) -> str:
    """Return a text as a message quotes it, cut where it is long."""
    return text if len(text) <= most else f"{text[:most]}…"
