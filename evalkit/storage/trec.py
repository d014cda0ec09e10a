"""TREC run files, `query Q0 document rank score tag`, the tie rule under which each is read, and TREC judgements.

The tie rule, stated here once: a query's hits stand by fp32 score descending, and of equal scores the document id that
is greater by its UTF-8 bytes stands first, as trec_eval ranks. `rank_hits` applies it to lists of hits, and
`evalkit.run.search.merge` to arrays. BM25 searches under Anserini's order instead (of equal scores the lesser id
first) and then parts the scores, so that its run file has no ties left.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from evalkit.errors import ScoreError
from evalkit.storage.paths import write_whole
from evalkit.types import Hit, Qrels, Run

COLUMNS = 6
QRELS_COLUMNS = 4
BOM = b"\xef\xbb\xbf"
FP32_LIMIT = 2.0**128 - 2.0**103
"""The smallest number that rounds to infinity in fp32, where every run is ranked."""


def rank_hits(hits: Iterable[Hit]) -> list[Hit]:
    """Rank one query's hits under the tie rule above.

    >>> rank_hits([Hit("a", 1.0), Hit("b", 1.0), Hit("c", 2.0)])
    [Hit(document_id='c', score=2.0), Hit(document_id='b', score=1.0), Hit(document_id='a', score=1.0)]
    """
    return sorted(hits, key=lambda hit: (float(np.float32(hit.score)), hit.document_id.encode()), reverse=True)


def check_hits(query: str, hits: Sequence[Hit]) -> None:
    """Raise ScoreError unless every score is a finite fp32 number and every document stands once.

    Neither could be ranked: NaN has no order, and a document that stands twice would be found twice.
    """
    seen: set[str] = set()
    for hit in hits:
        if not abs(hit.score) < FP32_LIMIT:
            msg = (
                f"query {query!r}, document {hit.document_id!r}: got score {hit.score}, wanted a finite number in fp32"
            )
            raise ScoreError(f"{msg}; check the system that gave it")
        if hit.document_id in seen:
            msg = f"query {query!r}: got document {hit.document_id!r} twice, wanted every document once"
            raise ScoreError(f"{msg}; keep its best score")
        seen.add(hit.document_id)


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

    A gzip file that is whole and holds no line is the run of a system that found nothing; an empty file is none.
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
    if not run and not _whole_without_lines(path):
        msg = f"{path}: got an empty file, wanted a TREC run; check that the run was written to its end"
        raise ScoreError(msg)
    return {query: rank_hits(Hit(*item) for item in scores.items()) for query, scores in run.items()}


def _whole_without_lines(path: Path) -> bool:
    """Whether a file without lines was written to its end, as the run of a system that found nothing: gzip tells."""
    return path.suffix == ".gz" and path.stat().st_size > 0


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
