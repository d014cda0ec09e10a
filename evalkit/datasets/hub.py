"""Datasets on the Hugging Face Hub: Parquet or JSON-lines files, streamed from its cache. No loading script is run.

The header of the repository's README.md lists the files of each config; `datasets` parses it by its own rules:

    configs:
      - config_name: corpus
        data_files: [{split: corpus, path: "corpus/corpus-*.parquet"}]

    corpus   _id (or id, docid), title (may be absent or null), text
    queries  _id (or id, query_id), text
    qrels    query-id, corpus-id, score (a Parquet file with the two ids alone lists relevant documents, of grade 1)

If a config of the repository has several splits, the dataset's config names the one to read. Judgements are read from
no other split than the named one; documents and queries are read from their only split, whatever its name is. In
sentence-transformers/NanoBEIR-en each split is one dataset (`{split: NanoNQ, path: "corpus/NanoNQ-*"}`); the
repositories of the single datasets have only `train`.

Only files of the configs that a dataset names are fetched. They are stored where other libraries look for them too,
under `HF_HOME/hub/datasets--OWNER--NAME/snapshots/COMMIT`, and are read from there without a network.

Arrow reads the rows, one row group at a time; the folder reader reads JSON lines. The readers of `datasets` are not
used: its streams decode every row before a slice, its memory maps need a second copy on disk, and its JSON reader
converts ids that look like dates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import xxhash

from evalkit.config.settings import DatasetConfig, HubCopy
from evalkit.datasets.folder import bad, json_object, read_lines, shown
from evalkit.datasets.judged import judged
from evalkit.errors import DatasetError, Tried, nearest
from evalkit.storage.columns import grade_of, is_identifier
from evalkit.storage.hub import snapshot
from evalkit.storage.network import reason
from evalkit.types import Dataset, Document, Query

_BATCH_ROWS: Final = 1024
"""Rows of a Parquet file decoded at a time. A stream holds these and the pages of a row group in memory."""
_IDS: Final = ("_id", "id", "docid", "query_id")
"""Names of the column with the id; the first one that exists is read."""
_NUMBERED: Final = re.compile(r"-\d{5}-of-(\d{5})\.")
"""The part of a numbered file's name with the number of files, which shows whether one is missing."""
_UNNAMED: Final = ""
"""The split of files for which README.md names none."""
_REASON_CHARACTERS: Final = 200
"""Most characters of the Hub's own message that are quoted."""


class _Columns(NamedTuple):
    """The columns that are read from a file."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    """Columns that may be absent only from a file that has no others than those needed."""
    ids: tuple[str, ...] = ()
    """Names of the id; the first that exists is read."""


_DOCUMENT: Final = _Columns(("text",), optional=("title",), ids=_IDS)
_QUERY: Final = _Columns(("text",), ids=_IDS)
_JUDGEMENT: Final = _Columns(("query-id", "corpus-id"), implied=("score",))


@dataclass(frozen=True)
class HubCorpus:
    """The documents of a dataset on the Hub; every call reads the files again."""

    origin: str
    """`OWNER/NAME@COMMIT`"""
    files: tuple[Path, ...]

    def stored_files(self) -> tuple[Path, ...]:
        """Return every cached file of the dataset, and the file `refs/main` if it exists."""
        repository = next(folder for folder in self.files[0].parents if folder.name.startswith("datasets--"))
        snapshot = repository / "snapshots" / self.origin.rpartition("@")[2]
        reference = repository / "refs" / "main"
        return (*(path for path in sorted(snapshot.rglob("*")) if path.is_file()), *(reference,) * reference.is_file())

    def fingerprint(self) -> str:
        """Return a hash of the origin and of the files' names, sizes and modification times.

        The cache names files by content, but nothing verifies the content after the download.

        Raises:
            DatasetError: A file no longer exists.

        """
        try:
            states = [(path.name, path.stat()) for path in self.files]
        except FileNotFoundError as error:
            got = "nothing at this path"
            raise bad(Path(error.filename), None, got, "a file of the copy", "fetch the dataset again") from error
        facts = [(name, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for name, found in states]
        return f"hub-{xxhash.xxh3_128_hexdigest(repr((self.origin, facts)).encode())}"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents in the order of files and rows; Parquet rows before `start` are not decoded.

        Raises:
            DatasetError: A file is damaged, or a row in the range is not a document.

        """
        for path, number, row in islice(self._rows_from(start), None if stop is None else max(0, stop - start)):
            title = row.get("title")
            yield Document(
                _text(path, number, "id", row["id"]),
                "" if title is None else _text(path, number, "title", title),
                _text(path, number, "text", row["text"]),
            )

    def where(self, index: int) -> str:
        """Return the file and the row of a document."""
        path, number, _ = next(self._rows_from(index))
        return f"{path} row {number}"

    def _rows_from(self, start: int) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
        """Yield the rows from document `start` on, each with its file and its number in the file."""
        position = 0
        for path in self.files:
            skipped, rows = _rows(path, max(0, start - position), _DOCUMENT)
            position += skipped
            for number, row in rows:
                position += 1
                if position > start:
                    yield path, number, row


def stored(copy: HubCopy, split: str) -> bool:
    """Return whether all files of the documents are in the Hub's cache. Nothing is fetched.

    If a repository contains several datasets, as MIRACL's does, the cache may contain only files of another one.
    """
    from huggingface_hub import try_to_load_from_cache

    readme = try_to_load_from_cache(copy.repo, "README.md", revision=copy.revision, repo_type="dataset")
    if not isinstance(readme, str):
        return False
    folder = Path(readme).parent
    try:
        return all(path.is_file() for path in _files(folder, _patterns(folder, copy.corpus, copy.split or split), copy))
    except DatasetError:
        return False


def load_hub(config: DatasetConfig) -> Dataset:
    """Read the queries and judgements of `config.hub`; missing files are fetched. Documents are read when needed.

    Raises:
        DatasetError: The config has no `hub`, the files cannot be obtained, or they are not as described above.

    """
    copy = config.hub
    if copy is None:
        msg = f"dataset {config.name}: got no hub copy, wanted repo, corpus, queries and qrels"
        raise DatasetError(f"{msg}; set dataset.hub, or choose other dataset.sources")
    folder = _snapshot(copy, ["README.md"])
    parts = {"corpus": copy.corpus, "queries": copy.queries, "qrels": copy.qrels}
    split = copy.split or config.split
    patterns = {part: _patterns(folder, name, split, only=part != "qrels") for part, name in parts.items()}
    folder = _snapshot(copy, [pattern for part in patterns.values() for pattern in part])
    files = {part: _files(folder, wanted, copy) for part, wanted in patterns.items()}
    qrels = _read_qrels(files["qrels"])
    known = tuple(_read_queries(files["queries"]))
    origin = f"{copy.repo}@{folder.name}"
    source = f"hub {origin}{'' if copy.revision else ' (not pinned)'}"
    dataset = judged(config, HubCorpus(origin, files["corpus"]), known, qrels, source=source)
    if not dataset.queries:
        msg = f"dataset {config.name}: got no query with a judgement from {origin}, wanted at least one"
        raise DatasetError(f"{msg}; check dataset.hub.queries and dataset.hub.qrels")
    return dataset


def _snapshot(copy: HubCopy, patterns: Sequence[str]) -> Path:
    """Return the folder of a commit; fetch the missing files of these patterns. Raises DatasetError if that fails."""
    try:
        return snapshot(
            copy.repo,
            revision=copy.revision,
            patterns=patterns,
            is_complete=lambda folder: _complete(folder, patterns, copy),
            repo_type="dataset",
        )
    except (OSError, ValueError, RuntimeError) as error:  # the Hub's own errors are kinds of these
        why = f"got {reason(error, most=_REASON_CHARACTERS)}, wanted its files in the Hugging Face cache or a download"
        remedy = "check the network and HF_HOME, or give a BEIR-format folder by dataset.path=DIR"
        raise DatasetError.unobtainable(
            Tried(f"hub dataset {copy.repo}@{copy.revision or 'main'}", why, remedy)
        ) from error


def qrels_splits(copy: HubCopy) -> tuple[str, ...]:
    """Return the splits of a dataset's judgements. Raises DatasetError if its README.md does not list them."""
    return tuple(_splits(_snapshot(copy, ["README.md"]), copy.qrels))


def _patterns(folder: Path, name: str, split: str, *, only: bool = True) -> list[str]:
    """Return the path patterns of a config's files for `split`, or, with `only`, for its only split.

    A config whose files belong to no named split is always read. Raises DatasetError if the config or the split is not
    listed.
    """
    splits = _splits(folder, name)
    if split in splits:
        return splits[split]
    if len(splits) == 1 and (only or _UNNAMED in splits):
        return next(iter(splits.values()))
    there = ", ".join(map(repr, splits))
    remedy = f"{nearest(split, splits)} (dataset.split, or dataset.hub.split where the copy has another name for it)"
    raise bad(folder / "README.md", None, f"no split {split!r} in config {name!r}", f"one of {there}", remedy)


def _splits(folder: Path, name: str) -> dict[str, list[str]]:
    """Return the path patterns of a config's files by split, as listed in the repository's README.md.

    Files without a split are listed under the name _UNNAMED. Raises DatasetError if README.md cannot be read or does
    not list the config.
    """
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    path = folder / "README.md"
    try:
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard(path.read_text(encoding="utf-8")).data)
        given = {str(each): found["data_files"] for each, found in configs.items()}
        splits_by_config = {each: sanitize_patterns(files) for each, files in given.items()}
        if not splits_by_config:
            raise ValueError("no configs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError) as error:
        remedy = "choose another source with dataset.sources or dataset.path"
        raise bad(path, None, "no readable `configs` in its header", "config names and data files", remedy) from error
    if name not in splits_by_config:
        raise bad(path, None, f"no config {name!r}", "it", nearest(name, splits_by_config))
    if not _names_splits(given[name]):
        return {_UNNAMED: [pattern for found in splits_by_config[name].values() for pattern in found]}
    return {str(each): list(found) for each, found in splits_by_config[name].items()}


def _names_splits(data_files: object) -> bool:
    """Return whether a config's `data_files` name splits: `[{split: …, path: …}]`, not only patterns."""
    return isinstance(data_files, list) and any(isinstance(each, dict) for each in data_files)


def _files(folder: Path, patterns: Sequence[str], copy: HubCopy) -> tuple[Path, ...]:
    """Return the files of these patterns in the order in which `datasets` reads them.

    Raises DatasetError when one is missing.
    """
    from datasets.data_files import resolve_pattern

    files: dict[Path, None] = {}
    remedy = f"fetch {copy.repo} again with the network on"
    for pattern in patterns:
        try:
            found = [Path(name) for name in resolve_pattern(pattern, str(folder))]
        except FileNotFoundError:
            found = []
        numbers = [int(match[1]) for path in found if (match := _NUMBERED.search(path.name))]
        wanted = max(numbers, default=1) if "*" in pattern else 1
        if len(found) < wanted:
            raise bad(folder, None, f"{len(found)} of the files {pattern}", f"{wanted} or more of them", remedy)
        files |= dict.fromkeys(found)
    return tuple(files)


def _complete(folder: Path, patterns: Sequence[str], copy: HubCopy) -> bool:
    """Return whether every file of these patterns certainly exists.

    A pattern without wildcards is one file. For other patterns, the number of files is known only if their names are
    numbered.
    """
    for pattern in patterns:
        try:
            found = _files(folder, [pattern], copy)
        except DatasetError:
            return False
        sets = {_NUMBERED.sub(r"-of-\1.", str(path)) for path in found}
        if has_magic(pattern) and (len(sets) > 1 or not _NUMBERED.search(found[0].name)):
            return False
        if not all(path.is_file() for path in found):  # false for a link to content that was deleted
            return False
    return True


def _read_queries(files: Sequence[Path]) -> Iterator[Query]:
    seen: set[str] = set()
    for path in files:
        for number, row in _rows(path, 0, _QUERY)[1]:
            query = Query(_text(path, number, "id", row["id"]), _text(path, number, "text", row["text"]))
            if query.id in seen or not query.text.strip():
                got = f"query {query.id!r} {'again' if query.id in seen else 'with empty text'}"
                raise bad(path, number, got, "every query once, with text", "choose another source or repair the copy")
            seen.add(query.id)
            yield query


def _read_qrels(files: Sequence[Path]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for path in files:
        for number, row in _rows(path, 0, _JUDGEMENT)[1]:
            score = row.get("score", 1)
            grade = None if isinstance(score, str) else grade_of(score)
            if grade is None:
                raise bad(path, number, f"score {shown(score)}", "a whole number", "choose another source")
            document_id = _text(path, number, "corpus-id", row["corpus-id"])
            judged = qrels.setdefault(_text(path, number, "query-id", row["query-id"]), {})
            if judged.setdefault(document_id, grade) != grade:
                got = f"grades {judged[document_id]} and {grade} for one query and document {document_id!r}"
                raise bad(path, number, got, "one grade for a pair", "choose another source")
    return qrels


def _rows(path: Path, skip: int, columns: _Columns) -> tuple[int, Iterator[tuple[int, Mapping[str, Any]]]]:
    """Skip up to `skip` rows without decoding them. Return the number of skipped rows, and (number, row) of the others.

    Rows are numbered from 1. If the columns include ids, that of the row is its `id`. Raises DatasetError for a damaged
    file, a missing column, and a file of another kind.
    """
    if path.suffix == ".parquet":
        return _parquet_rows(path, skip, columns)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        # JSON lines have no schema: a line without a score is damaged, not a judgement of grade 1.
        return 0, _json_rows(path, columns._replace(needed=columns.needed + columns.implied, implied=()))
    got = f"a file of kind {path.suffix or 'none'}"
    raise bad(path, None, got, "a .parquet, .jsonl or .jsonl.gz file", "choose another source with dataset.sources")


def _json_rows(path: Path, columns: _Columns) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in read_lines(path):
        row = json_object(path, number, line)
        names = _present(path, number, list(row), columns)
        yield number, row if not columns.ids else {**row, "id": row[names[-1]]}


def _parquet_rows(path: Path, skip: int, columns: _Columns) -> tuple[int, Iterator[tuple[int, Mapping[str, Any]]]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    remedy = "delete it and fetch the dataset again"
    try:
        file = ParquetFile(path)
        present = file.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise bad(path, None, f"no whole Parquet file ({error})", "one", remedy) from error
    names = _present(path, None, present, columns)
    skipped = group = 0
    while group < file.num_row_groups and skipped + file.metadata.row_group(group).num_rows <= skip:
        skipped += file.metadata.row_group(group).num_rows
        group += 1

    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        number = skipped
        try:
            for each in range(group, file.num_row_groups):  # in one call, Arrow would hold several groups in memory
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[each], columns=names):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row if not columns.ids else {**row, "id": row[names[-1]]}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # Arrow decodes texts when they are read
            raise bad(path, number, f"damaged data after this row ({error})", "a whole file", remedy) from error

    return skipped, rows()


def _present(path: Path, number: int | None, present: Sequence[str], columns: _Columns) -> list[str]:
    """Return the columns to read, that of the id last. Raises DatasetError if one is missing."""
    shorter = set(present) == set(columns.needed)
    needed = columns.needed if shorter else columns.needed + columns.implied
    if missing := [name for name in needed if name not in present]:
        wanted = f"columns {', '.join(needed)}"
        raise bad(
            path, number, f"no column {missing[0]!r} among {shown(list(present))}", wanted, "choose another source"
        )
    names = [*needed, *(name for name in columns.optional if name in present)]
    names += [name for name in columns.ids if name in present][:1]
    if columns.ids and not any(name in present for name in columns.ids):
        wanted = f"one of {', '.join(columns.ids)}"
        raise bad(path, number, f"no id among the columns {shown(list(present))}", wanted, "choose another source")
    return names


def _text(path: Path, number: int, key: str, value: object) -> str:
    """Return a text or an id; a whole number becomes an id. Raises DatasetError for anything else."""
    if isinstance(value, int) and key != "text":
        value = str(value)
    identifier = key not in ("text", "title")
    if not isinstance(value, str) or (identifier and not is_identifier(value)):
        wanted = "an id without white space or NUL" if identifier else "text"
        raise bad(path, number, f"{key} {shown(value)}", wanted, "choose another source or repair the copy")
    return value
