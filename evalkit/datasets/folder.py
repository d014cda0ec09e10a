"""A BEIR-format folder on disk: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or gzipped.

    corpus.jsonl       {"_id": "d1", "title": "…", "text": "…"}    a line per document; title may be absent or null
    queries.jsonl      {"_id": "q1", "text": "…"}                  a line per query; may hold queries of other splits
    qrels/<split>.tsv  query-id <tab> corpus-id <tab> score        see `read_qrels`

Files are UTF-8. A byte order mark, CRLF line ends and blank lines are tolerated; anything else that is not as above
is refused with the file, the line number, what was got, what was wanted and what to do. Where a file is there plain
and gzipped, the plain one is read.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash

from evalkit.config.settings import DatasetConfig
from evalkit.errors import DatasetError, nearest
from evalkit.types import Dataset, Document, Qrels, Query

_BUFFER_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_QRELS_HEADER: Final = ("query-id", "corpus-id", "score")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
"""Stricter than int(), which also takes 1_000 and digits of other scripts."""
_SHOWN_CHARACTERS: Final = 60
"""How much of a bad value a message quotes."""


@dataclass(frozen=True)
class FolderCorpus:
    """The documents of a BEIR-format folder, read from the file each time they are asked for."""

    path: Path

    def fingerprint(self) -> str:
        """Return the XXH3 of the corpus file's bytes, compressed or not, as they are on disk.

        Raises:
            DatasetError: The folder or its corpus file is not there.

        """
        digest = xxhash.xxh3_128()
        with _data_file(self.path, "corpus.jsonl").open("rb", buffering=0) as file:
            while block := file.read(_BUFFER_BYTES):
                digest.update(block)
        return f"folder-{digest.hexdigest()}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents in file order; the lines before `start` are passed over unparsed.

        Raises:
            DatasetError: The file is not there or holds no document, or a line in the range is none.

        """
        file = _data_file(self.path, "corpus.jsonl")
        number = 0
        for number, line in islice(read_lines(file), start, stop):
            fields = _entry(file, number, line)
            title = fields.get("title")
            yield Document(
                _identifier(file, number, fields.get("_id")),
                "" if title is None else _text(file, number, "title", title),
                _text(file, number, "text", fields.get("text")),
            )
        if start == 0 and stop != 0 and not number:
            raise bad(file, None, "no document", "at least one", "get the file anew")

    def where(self, index: int) -> str:
        """Return the file and the line of a document."""
        file = _data_file(self.path, "corpus.jsonl")
        number, _ = next(islice(read_lines(file), index, None))
        return f"{file} line {number}"


def load_folder(config: DatasetConfig) -> Dataset:
    """Read the queries and judgements of the folder `config.path`; its documents are read when they are asked for.

    The dataset's queries are those with a judgement of any grade in the split, in the order of queries.jsonl.
    Judgements of unknown queries stay in the qrels, where `evalkit.datasets.check` finds them.

    Raises:
        DatasetError: A file is missing or malformed, or no query has a judgement.

    """
    assert config.path is not None, "the config chooses this reader by its path"
    folder = Path(config.path)
    _data_file(folder, "corpus.jsonl")
    queries_path = _data_file(folder, "queries.jsonl")
    qrels_path = qrels_file(folder, config.split)
    qrels = read_qrels(qrels_path)
    known = read_queries(queries_path)
    queries = tuple(query for query in known if query.id in qrels)
    if not queries:
        raise bad(
            qrels_path,
            None,
            f"judgements of {len(qrels)} queries, none of which is in {queries_path.name}",
            "at least one query with a judgement",
            f"check that both files belong to split {config.split!r} of the same dataset",
        )
    return Dataset(
        name=config.name,
        split=config.split,
        language=config.language,
        corpus=FolderCorpus(folder),
        queries=queries,
        qrels=qrels,
        drop_self=config.drop_self,
        main_metric=config.main_metric,
        query_groups={},
        source=f"folder {folder.name}",
        unjudged_queries=len(known) - len(queries),
    )


def read_queries(path: Path) -> tuple[Query, ...]:
    """Read a queries file in file order.

    Raises:
        DatasetError: A line is not a query, a query's text is empty, or an id occurs twice.

    """
    queries = []
    first_lines: dict[str, int] = {}
    for number, line in read_lines(path):
        fields = _entry(path, number, line)
        query = Query(_identifier(path, number, fields.get("_id")), _text(path, number, "text", fields.get("text")))
        if not query.text.strip():
            raise bad(
                path, number, f"query {query.id!r} with empty text", "some text", "write the query or remove its line"
            )
        first = first_lines.setdefault(query.id, number)
        if first != number:
            got = f"query id {query.id!r} again (first on line {first})"
            raise bad(path, number, got, "every id once", "remove or rename one of the two")
        queries.append(query)
    return tuple(queries)


def read_qrels(path: Path) -> Qrels:
    """Read judgements; grades are kept as they are, zero and negative ones too.

    Three forms are told apart by the first line, since ids hold no white space: BEIR's (header
    `query-id corpus-id score`, then those columns), the same without header, and TREC's four columns
    `query-id 0 corpus-id score`, whose second column nobody reads. Every line must have as many columns as the first.
    A pair judged twice with one grade counts once.

    Raises:
        DatasetError: A line has other columns, a grade is not a whole number, a pair is judged twice with different
            grades, or there is no judgement at all.

    """
    qrels: dict[str, dict[str, int]] = {}
    for number, query_id, document_id, grade in _judgements(path):
        first = qrels.setdefault(query_id, {}).setdefault(document_id, grade)
        if first != grade:
            before = next(row for row in _judgements(path) if row[1:3] == (query_id, document_id))
            raise bad(
                path,
                number,
                f"grade {grade} for query {query_id!r} and document {document_id!r}, "
                f"which line {before.line} grades {first}",
                "one grade for a pair",
                "remove one of the lines",
            )
    if not qrels:
        raise bad(path, None, "no judgement", "at least one", "get the file anew")
    return qrels


def qrels_file(folder: Path, split: str) -> Path:
    """Return the judgements file of a split.

    Raises:
        DatasetError: There is none; the message names the splits that there are.

    """
    for suffix in (".tsv", ".tsv.gz"):
        if (path := folder / "qrels" / f"{split}{suffix}").is_file():
            return path
    splits = {path.name.partition(".tsv")[0] for path in folder.glob("qrels/*.tsv*") if path.is_file()}
    if not splits:
        wanted = f"{split}.tsv or {split}.tsv.gz in it"
        raise bad(folder / "qrels", None, "no judgements at all", wanted, "check dataset.path")
    got = f"no split {split!r} among {', '.join(sorted(splits))}"
    wanted = f"{split}.tsv or {split}.tsv.gz in it"
    raise bad(folder / "qrels", None, got, wanted, f"{nearest(split, splits)} (dataset.split)")


def judgement_line(folder: Path, split: str, query_id: str, document_id: str) -> str:
    """Return `FILE line N` of a judgement, or the file alone when it is no longer there; for messages."""
    path = qrels_file(folder, split)
    for row in _judgements(path):
        if (row.query_id, row.document_id) == (query_id, document_id):
            return f"{path} line {row.line}"
    return str(path)


class _Judgement(NamedTuple):
    line: int
    query_id: str
    document_id: str
    grade: int


def _judgements(path: Path) -> Iterator[_Judgement]:
    """Yield the judgements of a file in any of the forms that `read_qrels` describes."""
    columns = 0
    for number, line in read_lines(path):
        fields = _decode(path, number, line).split()
        if not columns:
            columns = len(fields)
            if tuple(fields) == _QRELS_HEADER:
                continue
        if len(fields) != columns or columns not in (3, 4):
            wanted = f"{columns}, as on the first line" if columns in (3, 4) else "3 (query-id corpus-id score)"
            raise bad(path, number, f"{len(fields)} columns", wanted, "ids hold no white space; repair the line")
        if not _INTEGER.fullmatch(fields[-1]):
            header = f"; a header line must read {' '.join(_QRELS_HEADER)}" if number == 1 else ""
            raise bad(path, number, f"relevance {shown(fields[-1])}", "a whole number", f"repair the line{header}")
        yield _Judgement(number, fields[0], fields[-2], int(fields[-1]))


def _data_file(folder: Path, name: str) -> Path:
    """Return `name` or `name`.gz inside a dataset folder, or raise DatasetError saying what is there instead."""
    remedy = "check dataset.path"
    if not folder.exists():
        raise bad(folder, None, "nothing at this path", "a BEIR-format folder", remedy)
    if not folder.is_dir():
        remedy = f"give the folder that holds it: dataset.path={folder.parent}"
        raise bad(folder, None, "a file", "a BEIR-format folder", remedy)
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    found = sorted(path.name for path in folder.iterdir())[:5]
    raise bad(folder, None, ", ".join(found) or "an empty folder", f"{name} or {name}.gz in it", remedy)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of every line that is not blank."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb", buffering=_BUFFER_BYTES) as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(_BOM):
                    line = line[len(_BOM) :]  # noqa: PLW2901 (the line without its mark is the line)
                if line and not line.isspace():
                    yield number, line
    except EOFError as error:
        got = "the end of a truncated gzip file after this line"
        raise bad(path, number, got, "a whole file", "get the file anew") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        got = f"damaged gzip data after this line ({error})"
        raise bad(path, number, got, "a whole file", "get the file anew") from error
    except OSError as error:
        remedy = "check dataset.path and its permissions"
        raise bad(path, None, str(error.strerror), "a readable file", remedy) from error


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line, which is not UTF-8"
        raise bad(path, number, got, "UTF-8", "convert the file, for instance with iconv -t UTF-8") from error


def json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line. Raises DatasetError."""
    text = _decode(path, number, line).rstrip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        got = f"malformed JSON ({error.msg} at column {error.colno})"
        raise bad(path, number, got, "one JSON object on the line", "repair or remove the line") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
        got = f"JSON that Python does not read ({error})"
        raise bad(path, number, got, "one JSON object on the line", "repair or remove the line") from error
    if not isinstance(value, dict):
        got = f"JSON that is not an object, {shown(value)}"
        raise bad(path, number, got, 'an object such as {"_id": …, "text": …}', "repair or remove the line")
    return value


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Return a line of corpus.jsonl or queries.jsonl, having seen that it has an id and a text."""
    value = json_object(path, number, line)
    if "_id" not in value or "text" not in value:
        missing = next(key for key in ("_id", "text") if key not in value)
        got = f"no key {missing!r} among {shown(list(value))}"
        raise bad(path, number, got, "keys '_id' and 'text'", "rename or add the key")
    return value


def _identifier(path: Path, number: int, value: object) -> str:
    """Return an id that every later file can hold: run files and qrels separate their columns by white space."""
    identifier = _text(path, number, "_id", value)
    if identifier.split() != [identifier]:
        raise bad(path, number, f"_id {shown(value)}", "an id without white space", "rename it here and in the qrels")
    return identifier


def _text(path: Path, number: int, key: str, value: object) -> str:
    """Return a text that can be written as UTF-8, which JSON's escapes allow but half a surrogate pair is not."""
    if not isinstance(value, str):
        raise bad(path, number, f"{key} {shown(value)}", "text in quotes", "repair the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        got = f"{key} with half a surrogate pair, {value[error.start]!r}"
        remedy = "remove the escape or write the whole character"
        raise bad(path, number, got, "text that UTF-8 can hold", remedy) from error
    return value


def shown(value: object) -> str:
    """Return a value as a message quotes it, cut where it is long."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def bad(path: Path, line: int | None, got: str, wanted: str, remedy: str) -> DatasetError:
    """Return the error that names a file, or a line of it."""
    where = f"{path}" if line is None else f"{path} line {line}"
    return DatasetError(f"{where}: got {got}, wanted {wanted}; {remedy}")
