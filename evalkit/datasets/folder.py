"""A BEIR-format folder on disk: corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each plain or gzipped.

    corpus.jsonl       {"_id": "d1", "title": "…", "text": "…"}    a line per document; title may be absent or null
    queries.jsonl      {"_id": "q1", "text": "…"}                  a line per query; may hold queries of other splits
    qrels/<split>.tsv  query-id <tab> corpus-id <tab> score        see `read_qrels`

Files are UTF-8. A byte order mark, CRLF line ends and blank lines are accepted. Any other departure raises an error
that names the file, the line, what was found, what was wanted and what to do. If a file exists both plain and gzipped,
the plain one is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import xxhash

from evalkit.config.settings import DatasetConfig
from evalkit.datasets.judged import judged
from evalkit.errors import DatasetError, nearest
from evalkit.storage import columns
from evalkit.types import Dataset, Document, Qrels, Query

_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class FolderCorpus:
    """The documents of a BEIR-format folder; every call reads the file again."""

    path: Path

    def fingerprint(self) -> str:
        """Return the XXH3 of the corpus file's bytes as they are on disk, compressed or not.

        Raises:
            DatasetError: The folder or its corpus file is missing.

        """
        digest = xxhash.xxh3_128()
        with _data_file(self.path, "corpus.jsonl").open("rb", buffering=0) as file:
            while block := file.read(_BUFFER_BYTES):
                digest.update(block)
        return f"folder-{digest.hexdigest()}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents in file order; lines before `start` are skipped without parsing.

        Raises:
            DatasetError: The file is missing or empty, or a line in the range is not a document.

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
            raise bad(file, None, "no document", "at least one", "get the file again")

    def where(self, index: int) -> str:
        """Return the file and the line of a document."""
        file = _data_file(self.path, "corpus.jsonl")
        number, _ = next(islice(read_lines(file), index, None))
        return f"{file} line {number}"


def load_folder(config: DatasetConfig) -> Dataset:
    """Read the queries and judgements of the folder `config.path`. Its documents are read only when they are needed.

    The dataset's queries are those with a judgement of any grade in the split, in the order of queries.jsonl.
    Judgements of unknown queries are kept: `evalkit.datasets.deviations` reports them.

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
    dataset = judged(config, FolderCorpus(folder), known, qrels, source=f"folder {folder.name}")
    if not dataset.queries:
        raise bad(
            qrels_path,
            None,
            f"judgements of {len(qrels)} queries, none of which is in {queries_path.name}",
            "at least one query with a judgement",
            f"check that both files belong to split {config.split!r} of the same dataset",
        )
    return dataset


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
    """Read judgements. Grades are kept unchanged, including zero and negative ones.

    The first line decides which of three forms the file has: BEIR's (header `query-id corpus-id score`, then those
    columns), the same without header, or TREC's four columns `query-id 0 corpus-id score`, whose second column is
    ignored. Ids contain no white space, so columns can be counted; every line must have as many as the first. A grade
    is a whole number (1 or 1.0). A pair that is judged twice with the same grade counts once.

    Raises:
        DatasetError: A line has another number of columns, a grade is not a whole number, a pair is judged twice with
            different grades, or there are no judgements.

    """
    return columns.read_qrels(path, bad)


def qrels_file(folder: Path, split: str) -> Path:
    """Return the judgements file of a split.

    Raises:
        DatasetError: The file is missing; the message names the existing splits.

    """
    for suffix in (".tsv", ".tsv.gz"):
        if (path := folder / "qrels" / f"{split}{suffix}").is_file():
            return path
    files = sorted(path.name for path in folder.glob("qrels/*") if path.is_file())
    splits = {name.removesuffix(".gz").removesuffix(".tsv") for name in files if name.endswith((".tsv", ".tsv.gz"))}
    if not splits:
        wanted = f"{split}.tsv or {split}.tsv.gz in it"
        got = f"no judgements among {', '.join(files[:5])}" if files else "no judgements at all"
        raise bad(folder / "qrels", None, got, wanted, "check dataset.path")
    got = f"no split {split!r} among {', '.join(map(repr, sorted(splits)))}"
    wanted = f"{split}.tsv or {split}.tsv.gz in it"
    raise bad(folder / "qrels", None, got, wanted, f"{nearest(split, splits)} (dataset.split)")


def judgement_line(folder: Path, split: str, query_id: str, document_id: str) -> str:
    """Return `FILE line N` of a judgement for messages, or `FILE` if the line no longer exists."""
    path = qrels_file(folder, split)
    for row in columns.judgements(path, bad):
        if (row.query_id, row.document_id) == (query_id, document_id):
            return f"{path} line {row.line}"
    return str(path)


def _data_file(folder: Path, name: str) -> Path:
    """Return the path of `name` or `name`.gz in a dataset folder.

    Raises DatasetError if neither exists; the message names what the folder contains.
    """
    remedy = "check dataset.path"
    if not folder.exists():
        raise bad(folder, None, "nothing at this path", "a BEIR-format folder", remedy)
    if not folder.is_dir():
        remedy = f"give the folder that contains it: dataset.path={folder.parent}"
        raise bad(folder, None, "a file", "a BEIR-format folder", remedy)
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    found = sorted(path.name for path in folder.iterdir())[:5]
    raise bad(folder, None, ", ".join(found) or "an empty folder", f"{name} or {name}.gz in it", remedy)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line) of every non-blank line. Raises DatasetError if the file cannot be read."""
    return columns.read_lines(path, bad)


def json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object. Raises DatasetError for anything else."""
    text = columns.decode(path, number, line, bad).rstrip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        got = f"malformed JSON ({error.msg} at column {error.colno})"
        raise bad(path, number, got, "one JSON object on the line", "repair or remove the line") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets too deep
        got = f"JSON that Python cannot read ({error})"
        raise bad(path, number, got, "one JSON object on the line", "repair or remove the line") from error
    if not isinstance(value, dict):
        got = f"JSON that is not an object, {shown(value)}"
        raise bad(path, number, got, 'an object such as {"_id": …, "text": …}', "repair or remove the line")
    return value


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """Parse a line of corpus.jsonl or queries.jsonl. Raises DatasetError if its id or text is missing."""
    value = json_object(path, number, line)
    if "_id" not in value or "text" not in value:
        missing = next(key for key in ("_id", "text") if key not in value)
        got = f"no key {missing!r} among {shown(list(value))}"
        raise bad(path, number, got, "keys '_id' and 'text'", "rename or add the key")
    return value


def _identifier(path: Path, number: int, value: object) -> str:
    """Return a valid id. Raises DatasetError for white space, which separates the columns of run files and qrels."""
    identifier = _text(path, number, "_id", value)
    if not columns.is_identifier(identifier):
        wanted = "an id without NUL" if "\0" in identifier else "an id without white space"
        raise bad(path, number, f"_id {shown(value)}", wanted, "rename it here and in the qrels")
    return identifier


def _text(path: Path, number: int, key: str, value: object) -> str:
    """Return a text. Raises DatasetError if UTF-8 cannot encode it: JSON's escapes can give half a surrogate pair."""
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
    """Return the repr of a value for messages, shortened if it is long."""
    return columns.shortened(repr(value))


def bad(path: Path, line: int | None, got: str, wanted: str, remedy: str) -> DatasetError:
    """Return an error that names a file and, if given, a line."""
    where = f"{path}" if line is None else f"{path} line {line}"
    return DatasetError(f"{where}: got {got}, wanted {wanted}; {remedy}")
