"""TREC run files, `query Q0 document rank score tag`, and the tie rule under which every run is read."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from evalkit.errors import ScoreError
from evalkit.paths import write_whole
from evalkit.types import Hit, Run

COLUMNS = 6


def rank_hits(hits: Iterable[Hit]) -> list[Hit]:
    """Rank one query's hits as trec_eval does: fp32 score descending, then document id descending by UTF-8 bytes.

    >>> rank_hits([Hit("a", 1.0), Hit("b", 1.0), Hit("c", 2.0)])
    [Hit(document_id='c', score=2.0), Hit(document_id='b', score=1.0), Hit(document_id='a', score=1.0)]
    """
    return sorted(hits, key=lambda hit: (float(np.float32(hit.score)), hit.document_id.encode()), reverse=True)


def write_run(run: Run, path: Path, *, tag: str) -> None:
    """Write a run, gzipped when the name ends in .gz; the same run gives the same bytes.

    Scores are written with the fewest digits that give the same fp32 number back. Raises ScoreError for an id or a
    tag with white space, which the format cannot hold, and for a score that is not a finite number.
    """
    text = io.StringIO()
    for query, hits in run.items():
        for rank, hit in enumerate(hits, start=1):
            if not math.isfinite(hit.score):
                msg = (
                    f"{path}: query {query!r}, document {hit.document_id!r}: score {hit.score}, wanted a finite number"
                )
                raise ScoreError(msg)
            for name in (query, hit.document_id, tag):
                if not name or name.split() != [name]:
                    msg = f"{path}: id {name!r} cannot be written; a TREC run wants ids without white space; rename it"
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
            score = float(text)
        except ValueError as error:
            raise _bad(path, number, f"score {text!r}", "a number") from error
        if not math.isfinite(score):
            raise _bad(path, number, f"score {text!r}", "a finite number")
        if document in run.setdefault(query, {}):
            raise _bad(path, number, f"document {document!r} again for query {query!r}", "every document once")
        run[query][document] = score
    if not run:
        msg = f"{path}: got an empty file, wanted a TREC run; check that the run was written to its end"
        raise ScoreError(msg)
    return {query: rank_hits(Hit(*item) for item in scores.items()) for query, scores in run.items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _bad(path, number, f"a damaged gzip file after this line ({error})", "a whole file") from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror}); wanted a TREC run file"
        raise ScoreError(msg) from error


def _bad(path: Path, line: int, got: str, wanted: str) -> ScoreError:
    return ScoreError(f"{path} line {line}: got {got}, wanted {wanted}; repair the run file")
