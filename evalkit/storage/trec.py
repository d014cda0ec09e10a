"""TREC files: runs, `query Q0 document rank score tag`, and judgements."""

from __future__ import annotations

import gzip
import io
import unicodedata
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from evalkit.errors import ScoreError
from evalkit.ranking import FP32_LIMIT, check_hits, rank_hits
from evalkit.storage import columns
from evalkit.storage.paths import write_atomic
from evalkit.types import Dataset, Hit, Qrels, Run

COLUMNS = 6
QRELS_COLUMNS = 4


class EmptyRunError(ScoreError):
    """A run file has no lines, because the system found nothing or the file was truncated."""


def write_run(run: Run, path: Path, *, tag: str) -> None:
    """Write a run, gzipped if the name ends in .gz; the same run gives the same bytes.

    Scores are written with the fewest digits that give the same fp32 number back. Raises ScoreError for an id or a
    tag with white space or NUL, which the format cannot hold, and for hits that could not be read back (`check_hits`).
    """
    text = io.StringIO()
    for query, hits in run.items():
        check_hits(query, hits)
        for rank, hit in enumerate(hits, start=1):
            _refuse_unwritable(path, ("query id", query), ("document id", hit.document_id), ("tag", tag))
            text.write(f"{query} Q0 {hit.document_id} {rank} {np.float32(hit.score)!s} {tag}\n")
    data = text.getvalue().encode()
    write_atomic(path, gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)


def read_run(path: Path) -> dict[str, list[Hit]]:
    """Read a run of any system; its scores decide the order, and its rank column is ignored.

    Columns are separated by spaces or tabs. A rank that is not a number is refused nevertheless: it means that an id
    contains a space and that the score is in another column. Raises ScoreError with file and line if the file is not a
    TREC run, and EmptyRunError if it has no lines.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in columns.read_lines(path, _error):
        fields = columns.split(columns.decode(path, number, line, _error))
        if len(fields) != COLUMNS:
            raise _error(path, number, f"{len(fields)} columns", "6: query Q0 document rank score tag")
        query, _, document, rank, text, _ = fields
        columns.check_identifier(path, number, "query id", query, _error)
        columns.check_identifier(path, number, "document id", document, _error)
        if _number(rank) is None:
            raise _error(
                path, number, f"rank {columns.shortened(repr(rank))}", "a number: ids and tags must not contain spaces"
            )
        score = _number(text)
        if score is None:
            raise _error(path, number, f"score {columns.shortened(repr(text))}", "a number")
        if not abs(score) < FP32_LIMIT:
            raise _error(path, number, f"score {text!r}", "a finite number in fp32")
        if document in run.setdefault(query, {}):
            raise _error(path, number, f"document {document!r} again for query {query!r}", "every document once")
        run[query][document] = score
    if not run:
        msg = f"{path}: got an empty file, wanted a TREC run; check that the run was written to its end"
        raise EmptyRunError(msg)
    return {query: rank_hits(Hit(*item) for item in scores.items()) for query, scores in run.items()}


def _number(text: str) -> float | None:
    """Parse a number in a notation that every tool accepts; Python also accepts 1_0 and digits of other scripts."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def unanswered(path: Path, run: Run, dataset: Dataset, asked: Collection[str]) -> int:
    """Return how many of a dataset's asked queries a run lacks. Raises ScoreError if it has none of them."""
    missing = sum(query not in run for query in asked)
    if missing == len(asked):
        got, wanted = next(iter(run), None), dataset.queries[0].id
        msg = f"{path}: got no query that {dataset.name} ({dataset.split}) judges, but {got!r} and so on"
        raise ScoreError(f"{msg}, wanted {wanted!r} and so on; check dataset and dataset.split")
    return missing


def unmatched(run: Run, qrels: Qrels) -> str | None:
    """Describe how a run's document ids differ from those of the judgements; None if nothing shows a difference.

    The scores of such a run are too low, but nothing in the scores shows it.
    """
    judged = {query: grades for query, grades in qrels.items() if run.get(query)}
    found = {query: {hit.document_id for hit in run[query]} for query in judged}
    got = next((hit.document_id for query in judged for hit in run[query]), None)
    wanted = next((document for grades in judged.values() for document in grades), None)
    if got is None or wanted is None:
        return None
    none = not any(found[query] & grades.keys() for query, grades in judged.items())
    for word, spelling in SPELLINGS.items():
        if word == "case" and not none:
            continue  # ids that differ only in case may be two documents
        pairs = [pair for query, grades in judged.items() for pair in _respelled_pairs(found[query], grades, spelling)]
        if pairs:
            some = "no document id of the run is judged" if none else f"{len(pairs)} judged documents are not found"
            return (
                f"{some}: ids differ only by {word}, got {pairs[0][0]!a} and so on, wanted {pairs[0][1]!a} and so on; "
                "write the run's ids as the dataset's are"
            )
    if not none:
        return None
    return (
        f"no document id of the run is judged: got {got!r} and so on, wanted {wanted!r} and so on; "
        "check that the run is of this dataset and writes its document ids"
    )


SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "Unicode normalisation": lambda text: unicodedata.normalize("NFC", text),
    "case": lambda text: unicodedata.normalize("NFC", text).casefold(),
}
"""The usual differences between two spellings of one id."""


def _respelled_pairs(
    found: set[str], grades: Mapping[str, int], spelling: Callable[[str], str]
) -> list[tuple[str, str]]:
    """Return the pairs of an unjudged and a judged id that are identical under a spelling rule."""
    judged = {spelling(document): document for document in sorted(grades.keys() - found)}
    return [(got, judged[spelling(got)]) for got in sorted(found - grades.keys()) if spelling(got) in judged]


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write judgements in trec_eval's format, `query 0 document grade`, gzipped; the same ones give the same bytes.

    Raises ScoreError for an id with white space or NUL, which the format cannot hold.
    """
    text = io.StringIO()
    for query, grades in qrels.items():
        for document, grade in grades.items():
            _refuse_unwritable(path, ("query id", query), ("document id", document))
            text.write(f"{query} 0 {document} {grade}\n")
    write_atomic(path, gzip.compress(text.getvalue().encode(), compresslevel=6, mtime=0))


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read TREC judgements. Raises ScoreError with file and line for invalid lines, and for a file without any."""
    return columns.read_qrels(path, _error, allowed=(QRELS_COLUMNS,))


def _refuse_unwritable(path: Path, *columns_of_line: tuple[str, str]) -> None:
    """Raise ScoreError if a column, given as its name and text, has white space or NUL."""
    for what, text in columns_of_line:
        if not columns.is_identifier(text):
            msg = f"{path}: {what} {text!r} cannot be written; wanted no white space or NUL; rename it"
            raise ScoreError(msg)


def _error(path: Path, line: int | None, got: str, wanted: str, remedy: str = "repair the file") -> ScoreError:
    where = f"{path}" if line is None else f"{path} line {line}"
    return ScoreError(f"{where}: got {got}, wanted {wanted}; {remedy}")
