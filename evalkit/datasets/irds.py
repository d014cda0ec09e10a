"""Datasets by their ir-datasets id, streamed through that package. Its files are under IR_DATASETS_HOME.

ir-datasets is imported on first use: the import takes a second, and it fixes IR_DATASETS_HOME for the process.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import xxhash

from evalkit.config.settings import DatasetConfig
from evalkit.datasets.judged import judged
from evalkit.errors import DatasetError, Tried, nearest
from evalkit.storage.columns import is_identifier
from evalkit.storage.network import reason
from evalkit.types import Dataset, Document, Query

# What ir-datasets and its libraries raise if a file cannot be fetched, verified or parsed.
_READ_ERRORS: Final = (
    OSError,  # includes requests' exceptions and gzip.BadGzipFile
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    AssertionError,
    zipfile.BadZipFile,
    zlib.error,
)
_SPLIT_FOLDER: Final = re.compile("/(train|dev|test)$")
_SPLITS: Final = ("train", "dev", "test", "validation")
"""The usual names of splits."""
_NAMES_SPLIT: Final = re.compile("(train|dev|test|val)(?:ing|id|idation)?[0-9]*")
"""A part of an id that names its split, as in msmarco-passage/dev/small, wikir/en1k/training and trec-tot/2025/dev1."""
_MOST_FIELDS: Final = 2
"""Fields of a document's text: a title and the text."""
_SHOWN_CHARACTERS: Final = 300
"""Characters of the package's own message that are quoted."""


@dataclass
class IrdsCorpus:
    """The documents of an ir-datasets collection.

    If the package keeps a document store (always for BEIR), a range is read from the store, one document at a time. The
    package builds the store once and meanwhile holds the id and position of every document in memory: 260 bytes each,
    measured with 20,000 documents.

    For other datasets, slicing would first build such a store: a second copy on disk, with all ids in memory
    (gigabytes for MIRACL). These documents are streamed instead, and the stream stays open where the last range ended,
    so that consecutive ranges, such as shards, take one pass in total.
    """

    dataset_id: str
    _resumable: tuple[int, Iterator[Any]] | None = field(default=None, init=False, repr=False, compare=False)
    """(index of the next document, the stream that yields it); None while the stream is in use."""

    def __reduce__(self) -> tuple[type[IrdsCorpus], tuple[str]]:
        """Pickle the id only; an open stream cannot be pickled."""
        return IrdsCorpus, (self.dataset_id,)

    def stored_files(self) -> tuple[Path, ...]:
        """Return the files under IR_DATASETS_HOME that this dataset is read from, including the package's indexes."""
        dataset = _dataset(self.dataset_id)
        home = _home()
        family, name = self.dataset_id.split("/")[:2]
        if family == "beir":  # one folder per dataset, with all its files
            return tuple(path for path in sorted((home / family / name).rglob("*")) if path.is_file())
        with _as_dataset_errors(self.dataset_id):
            documents = _document_files(dataset, fetch=True)
            # A dev/small without its own queries file takes its queries from dev's file.
            asked = dataset if hasattr(dataset, "queries_path") else _dataset(self.dataset_id.removesuffix("/small"))
            others = [Path(asked.queries_path()), Path(dataset.qrels_path())]
        version = home / family / "irds_version.txt"
        return (*documents, *others, *(version,) * version.is_file())

    def fingerprint(self) -> str:
        """Return the id, the package's version, and a hash of the sizes and times of the files with the documents.

        The times include the inode's change time (ctime). Unlike the modification time it cannot be set, so a file
        that was replaced by one of the same size and modification time is noticed.

        The files are the dataset's own if there are any, otherwise the document store, which is built if it is
        missing. Missing files are downloaded, and the package verifies their checksums.

        Raises:
            DatasetError: The dataset cannot be obtained.

        """
        import ir_datasets

        dataset = _dataset(self.dataset_id)
        with _as_dataset_errors(self.dataset_id):
            if hasattr(dataset, "docs_path"):
                paths = _document_files(dataset, fetch=True)
            else:
                store = dataset.docs_store()
                store.build()
                paths = [Path(store.path) / "bin"]
            facts = [(found.st_size, found.st_mtime_ns, found.st_ctime_ns) for found in (path.stat() for path in paths)]
        return f"{self.dataset_id}-{ir_datasets.__version__}-{xxhash.xxh3_128_hexdigest(repr(facts).encode())}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents in the package's order.

        Raises:
            DatasetError: The dataset cannot be obtained or read.

        """
        import ir_datasets

        with _as_dataset_errors(self.dataset_id):
            records = _dataset(self.dataset_id).docs_iter()
            # The package returns a splitter if slicing would first build a store.
            if hasattr(records, "__getitem__") and not isinstance(records, ir_datasets.util.DocstoreSplitter):
                yield from map(_document, records[start:stop])
                return
            resumable, self._resumable = self._resumable, None
            position = 0
            if resumable is not None and resumable[0] <= start:
                position, records = resumable
            for _ in islice(records, start - position):
                pass
            stop = None if stop is None else max(start, stop)
            yield from map(_document, islice(records, None if stop is None else stop - start))
            if stop is not None:
                self._resumable = (stop, records)

    def where(self, index: int) -> str:
        """Return the document's number in the dataset, counted from 1."""
        return f"document number {index + 1} of {self.dataset_id}"


def stored(dataset_id: str) -> bool:
    """Return whether all of a dataset's documents are on disk. Nothing is fetched."""
    if dataset_id.startswith("beir/"):
        folder = _home() / _SPLIT_FOLDER.sub("", dataset_id)
        # The package writes the positions after the documents; without them a document store is incomplete.
        return (folder / "source.zip").is_file() or (folder / "docs.pklz4" / "bin.pos").is_file()
    dataset = _dataset(dataset_id)
    return hasattr(dataset, "docs_path") and all(path.is_file() for path in _document_files(dataset, fetch=False))


def _refuse_other_split(identifier: str, config: DatasetConfig) -> None:
    """Raise DatasetError if an id names another split than the config, or has several splits together.

    An id without a split is called test.
    """
    named = _named_splits(identifier)
    if not named and config.split not in _SPLITS:
        return
    got = f"dataset {config.name}: got split {config.split!r} and ir_datasets_id {identifier!r}"
    family = [] if named else _related_ids(identifier)
    below = [one for one in family if one.startswith(f"{identifier}/") and _named_splits(one)]
    if below and _dataset(identifier).has("qrels"):
        msg = f"{got}, which has the judgements of several splits together, wanted one split"
        raise DatasetError(f"{msg}; set dataset.ir_datasets_id to that of one ({', '.join(below)})")
    if config.split in (*named, *named.values()) or (not named and config.split == "test"):
        return
    part, wanted = next(iter(named.items()), ("test", "test"))
    same = identifier.rpartition(f"/{part}")[0] or identifier
    ids = ", ".join(one for one in _related_ids(identifier) if one.startswith(f"{same}/{config.split}"))
    other = f", or an id of that split ({ids})" if ids else ""
    raise DatasetError(f"{got}, wanted the same split in both; set dataset.split={wanted}{other}")


def _named_splits(identifier: str) -> dict[str, str]:
    """Return the parts of an id that name a split, each with that split's usual name.

    >>> _named_splits("wikir/en1k/training"), _named_splits("trec-tot/2025/dev1"), _named_splits("beir/scidocs")
    ({'training': 'train'}, {'dev1': 'dev'}, {})
    """
    found = {part: match[1] for part in identifier.split("/") if (match := _NAMES_SPLIT.fullmatch(part))}
    return {part: "validation" if name == "val" else name for part, name in found.items()}


def load_ir_datasets(config: DatasetConfig) -> Dataset:
    """Read the queries and judgements of `config.ir_datasets_id`. Its documents are read only when they are needed.

    Raises:
        DatasetError: The id is missing, unknown or of another split, files cannot be obtained, or no query has a
            judgement.

    """
    identifier = config.ir_datasets_id
    if identifier is None:
        msg = f"dataset {config.name}: got no ir_datasets_id, wanted one such as beir/scifact/test"
        raise DatasetError(f"{msg}; set dataset.ir_datasets_id")
    _refuse_other_split(identifier, config)
    source = _dataset(identifier)
    missing = [part for part in ("docs", "queries", "qrels") if not source.has(part)]
    if not missing:
        fields = {"document": source.docs_cls()._fields, "query": source.queries_cls()._fields}
        missing = [f"a {part} field `text`" for part, names in fields.items() if "text" not in names]
    if missing:
        msg = f"dataset {config.name}: got ir_datasets_id {identifier!r} without {', '.join(missing)}"
        wanted = "wanted documents and queries with text, and judgements"
        raise DatasetError(f"{msg}, {wanted}; {nearest(f'{identifier}/{config.split}', _related_ids(identifier))}")
    if len(joined := _text_fields(source.docs_cls())) > _MOST_FIELDS or joined[-1] != "text":
        msg = f"dataset {config.name}: got documents of fields {' + '.join(joined)} from ir_datasets id {identifier!r}"
        raise DatasetError(f"{msg}, wanted text, or title and text; write them to a BEIR-format folder")
    qrels = judgements(identifier)
    with _as_dataset_errors(identifier):
        known = tuple(map(_query, source.queries_iter()))
    dataset = judged(config, IrdsCorpus(identifier), known, qrels, source=f"ir_datasets {_version()} {identifier}")
    queries = dataset.queries
    if empty := [query.id for query in queries if not query.text.strip()]:
        raise _damaged(identifier, f"query {empty[0]!r} with empty text", "some text")
    if len({query.id for query in queries}) < len(queries):
        raise _damaged(identifier, "a query id twice", "every id once")
    if not queries:
        msg = f"dataset {config.name}: got no query with a judgement from ir_datasets id {identifier!r}"
        raise DatasetError(f"{msg}, wanted at least one; delete its files under IR_DATASETS_HOME and get them again")
    return dataset


def judgements(identifier: str) -> dict[str, dict[str, int]]:
    """Return the grades of an id by query and document. Raises DatasetError if a pair has two, or for damaged files."""
    qrels: dict[str, dict[str, int]] = {}
    with _as_dataset_errors(identifier):
        for judgement in _dataset(identifier).qrels_iter():
            query, document, grade = judgement.query_id, judgement.doc_id, judgement.relevance
            if not (isinstance(query, str) and isinstance(document, str) and isinstance(grade, int)):
                got = f"a judgement {(query, document, grade)!r}"
                raise _damaged(identifier, got, "two ids as text and a whole number")
            if (first := qrels.setdefault(query, {}).setdefault(document, grade)) != grade:
                got = f"grades {first} and {grade} for query {query!r} and document {document!r}"
                raise _damaged(identifier, got, "one for a pair")
    return qrels


def _document_files(dataset: Any, *, fetch: bool) -> list[Path]:
    """Return the files with a dataset's documents; the package's `docs_path` names only the first."""
    parts = getattr(dataset.docs_handler(), "_dlcs", None)
    if parts is None:
        return [Path(dataset.docs_path() if fetch else dataset.docs_path(force=False))]
    return [Path(part.path(force=fetch)) for part in parts]


def _home() -> Path:
    import ir_datasets

    return Path(ir_datasets.util.home_path())


def _version() -> str:
    import ir_datasets

    return str(ir_datasets.__version__)


@cache
def _text_fields(kind: type[Any]) -> tuple[str, ...]:
    """Return the fields that the package joins into the text of such a record by its `default_text`.

    Titles have several names: `title`, `page_title` (trec-tot/2023), `document_title` (natural-questions).
    """
    if not hasattr(kind, "default_text"):
        return tuple(name for name in ("title", "text") if name in kind._fields)
    names = kind(*kind._fields).default_text()  # of a record whose every field contains the field's name
    return tuple(str(names).split())


def _query(record: Any) -> Query:
    """Return a query with its text as the package has it: trec-tot/2023 puts a title before it."""
    text = record.default_text() if hasattr(record, "default_text") else record.text
    _require_id_and_text("query", record.query_id, text)
    if any("\ud800" <= character <= "\udfff" for character in text):
        msg = f"query {record.query_id!r} with half a surrogate pair in its text, wanted text that UTF-8 can hold"
        raise ValueError(msg)
    return Query(record.query_id, text)


def _require_id_and_text(kind: str, identifier: object, text: object) -> None:
    """Raise ValueError, which becomes a DatasetError in `_as_dataset_errors`, unless both are valid."""
    if not isinstance(text, str) or not isinstance(identifier, str) or not is_identifier(identifier):
        msg = f"{kind} {identifier!r} with text {text!r:.60}, wanted an id without white space and text"
        raise ValueError(msg)


def _document(record: Any) -> Document:
    kind: Any = type(record)
    *titles, _ = _text_fields(kind)
    identifier, text = record.doc_id, record.text
    title = (getattr(record, titles[0]) or "") if titles else ""
    _require_id_and_text("document", identifier, text)
    return Document(identifier, title, text)


def _damaged(identifier: str, got: str, wanted: str) -> DatasetError:
    remedy = f"delete its files under {_home()} and get them again"
    return DatasetError(f"ir_datasets id {identifier!r}: got {got}, wanted {wanted}; {remedy}")


def _dataset(identifier: str) -> Any:
    import ir_datasets

    try:
        return ir_datasets.load(identifier)
    except KeyError:
        msg = f"ir_datasets_id={identifier!r}: got an id that ir-datasets {ir_datasets.__version__} does not know"
        raise DatasetError(f"{msg}, wanted one that it does; {nearest(identifier, _related_ids(identifier))}") from None


def _related_ids(identifier: str) -> list[str]:
    """Return the other ids of the same family (beir, miracl, …), or the names of all families if it is unknown."""
    import ir_datasets

    names = [name for name in ir_datasets.registry if name != identifier]
    family = [name for name in names if name.startswith(f"{identifier.partition('/')[0]}/")]
    return family or sorted({name.partition("/")[0] for name in names})


@contextmanager
def _as_dataset_errors(identifier: str) -> Iterator[None]:
    """Turn errors of the package into a DatasetError of one line."""
    try:
        yield
    except _READ_ERRORS as error:
        if isinstance(error, DatasetError):
            raise
        import ir_datasets

        why = f"got {reason(error, most=_SHOWN_CHARACTERS)}, wanted its whole files on disk or a download"
        remedy = (
            f"check the network, delete damaged files under {ir_datasets.util.home_path()} or copy complete ones "
            "there, or give a BEIR-format folder by dataset.path=DIR"
        )
        raise DatasetError.unobtainable(Tried(f"ir_datasets id {identifier!r}", why, remedy)) from error
