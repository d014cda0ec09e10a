"""TREC run files, `query Q0 document rank score tag`, the tie rule under which each is read, and TREC judgements."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evalkit.errors import ScoreError
from evalkit.ranking import FP32_LIMIT, check_hits, rank_hits
from evalkit.storage.paths import write_whole
from evalkit.types import Hit, Qrels, Run

COLUMNS = 6
QRELS_COLUMNS = 4
BOM = b"\xef\xbb\xbf"


def write_run(run: Run, path: Path, *, tag: str) -> None:
    """Write a run, gzipped when the name ends in .gz; the same run gives the same bytes.

    Scores are written with the fewest digits that give the same fp32 number back. Raises ScoreError for an id or a
    tag with white space, which the format cannot hold, and for hits that could not be read back (`check_hits`).
    """
    text = io.StringIO()
    for query, hits in run.items():
        check_hits(query, hits)
        for rank, hit in enumerate(hits, start=1):
            for what, name in (("query id", query), ("document id", hit.document_id), ("tag", tag)):
                if name.split() != [name]:
                    msg = f"{path}: {what} {name!r} cannot be written; a TREC run wants no white space; rename it"
                    raise ScoreError(msg)
            text.write(f"{query} Q0 {hit.document_id} {rank} {np.float32(hit.score)!s} {tag}\n")
    data = text.getvalue().encode()
    write_whole(path, gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)


def read_run(path: Path) -> dict[str, list[Hit]]:
    """Read a run of any system; its scores decide the order, its rank column is not read.

    Raises ScoreError, with file and line, for what is not a TREC run.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in _lines(path):
        try:
            fields = line.decode().split()
        except UnicodeDecodeError as error:
            raise _bad(path, number, "bytes that are not UTF-8", "UTF-8 text") from error
        if len(fields) != COLUMNS:
            raise _bad(path, number, f"{len(fields)} columns", "6: query Q0 document rank score tag")
        query, _, document, _, text, _ = fields
        try:
            score = float(text.replace("_", "?"))  # Python alone reads 1_0 as ten
        except ValueError as error:
            raise _bad(path, number, f"score {text!r}", "a number") from error
        if not abs(score) < FP32_LIMIT:
            raise _bad(path, number, f"score {text!r}", "a finite number in fp32")
        if document in run.setdefault(query, {}):
            raise _bad(path, number, f"document {document!r} again for query {query!r}", "every document once")
        run[query][document] = score
    if not run:
        msg = f"{path}: got an empty file, wanted a TREC run; check that the run was written to its end"
        raise ScoreError(msg)
    return {query: rank_hits(Hit(*item) for item in scores.items()) for query, scores in run.items()}


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write judgements as trec_eval reads them, `query 0 document grade`, gzipped; the same give the same bytes.

    Raises ScoreError for an id with white space, which the format cannot hold.
    """
    text = io.StringIO()
    for query, grades in qrels.items():
        for document, grade in grades.items():
            for what, name in (("query id", query), ("document id", document)):
                if name.split() != [name]:
                    msg = f"{path}: {what} {name!r} cannot be written; TREC qrels want no white space; rename it"
                    raise ScoreError(msg)
            text.write(f"{query} 0 {document} {grade}\n")
    write_whole(path, gzip.compress(text.getvalue().encode(), compresslevel=6, mtime=0))


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read TREC judgements. Raises ScoreError, with file and line, for what is none."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        fields = line.decode(errors="replace").split()
        if len(fields) != QRELS_COLUMNS or not fields[3].removeprefix("-").isdecimal():
            raise _bad(path, number, f"{' '.join(fields)!r}", "4 columns: query 0 document grade")
        qrels.setdefault(fields[0], {})[fields[2]] = int(fields[3])
    return qrels


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    # A byte order mark would become part of the first query's id, which would then score 0.
                    yield number, line.removeprefix(BOM) if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _bad(path, number, f"a damaged gzip file after this line ({error})", "a whole file") from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); wanted a TREC run file"
        raise ScoreError(msg) from error


def _bad(path: Path, line: int, got: str, wanted: str) -> ScoreError:
    return ScoreError(f"{path} line {line}: got {got}, wanted {wanted}; repair the file")
