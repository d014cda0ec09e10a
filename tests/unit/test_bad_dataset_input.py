"""Bad input gets one clear line: the file, the line number, what was got, what was wanted, what to do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evalkit import datasets
from evalkit.config.settings import Counts, DatasetConfig
from evalkit.datasets.folder import FolderCorpus, load_folder, read_qrels, read_queries
from evalkit.datasets.survey import Survey, survey
from evalkit.errors import DatasetError
from evalkit.types import Dataset

GOOD_LINE = '{"_id": "d1", "text": "fine"}\n'
REPAIR = "repair or remove the line"


def refusal(action: Callable[[], object]) -> str:
    """Return the message with which an action is refused, having seen that it is one line."""
    with pytest.raises(DatasetError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code != 0
    return message


def small_folder(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(GOOD_LINE + '{"_id": "d2", "text": "too"}\n', encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n", encoding="utf-8")
    return folder


def config(path: Path, *, split: str = "test", verify: bool = True, counts: Counts | None = None) -> DatasetConfig:
    return DatasetConfig(
        name="small",
        sources=("folder",),
        split=split,
        language="en",
        drop_self=False,
        main_metric="ndcg@10",
        path=str(path),
        verify=verify,
        counts=counts or Counts(),
    )


def surveyed(dataset: Dataset, cache_dir: Path) -> Survey:
    return survey(
        dataset.corpus,
        shard_tokens=1000,
        max_document_tokens=300,
        cache_dir=cache_dir,
        name=dataset.name,
        judged_ids=datasets.judged_ids(dataset),
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            '{"_id": "d2", "text": ',
            f"got malformed JSON (Expecting value at column 22), wanted one JSON object on the line; {REPAIR}",
        ),
        (
            f'{{"_id": {"9" * 5000}}}',
            (
                "got JSON that Python cannot read (Exceeds the limit (4300 digits) for integer string conversion: "
                "value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit), wanted one JSON "
                f"object on the line; {REPAIR}"
            ),
        ),
        (
            '["d2", "text"]',
            (
                "got JSON that is not an object, ['d2', 'text'], wanted an object such as "
                f'{{"_id": …, "text": …}}; {REPAIR}'
            ),
        ),
        (
            '{"id": "d2", "text": "x"}',
            "got no key '_id' among ['id', 'text'], wanted keys '_id' and 'text'; rename or add the key",
        ),
        (
            '{"_id": "d2", "contents": "x"}',
            "got no key 'text' among ['_id', 'contents'], wanted keys '_id' and 'text'; rename or add the key",
        ),
        ('{"_id": "d2", "text": ["x"]}', "got text ['x'], wanted text in quotes; repair the line"),
        ('{"_id": "d2", "text": null}', "got text None, wanted text in quotes; repair the line"),
        (
            f'{{"_id": "d2", "text": {list(range(99))}}}',
            (
                "got text [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1…, wanted text in quotes; "
                "repair the line"
            ),
        ),
        ('{"_id": 2, "text": "x"}', "got _id 2, wanted text in quotes; repair the line"),
        (
            '{"_id": "d 2", "text": "x"}',
            "got _id 'd 2', wanted an id without white space; rename it here and in the qrels",
        ),
        (
            '{"_id": "d\\u0000", "text": "x"}',
            "got _id 'd\\x00', wanted an id without NUL; rename it here and in the qrels",
        ),
        ('{"_id": "", "text": "x"}', "got _id '', wanted an id without white space; rename it here and in the qrels"),
        (
            '{"_id": "d2", "text": "a\\ud83d"}',
            (
                "got text with half a surrogate pair, '\\ud83d', wanted text that UTF-8 can hold; remove the escape or "
                "write the whole character"
            ),
        ),
    ],
    ids=[
        "malformed",
        "endless number",
        "not an object",
        "no _id",
        "no text",
        "text a list",
        "text null",
        "long value",
        "_id a number",
        "_id with a space",
        "_id with NUL",
        "_id empty",
        "half a surrogate pair",
    ],
)
def test_a_bad_line_of_corpus_or_queries_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    """Corpus and queries share their format, so also their complaints."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).write_text(f"{GOOD_LINE}\n{line}\n", encoding="utf-8")
        where = f"{tmp_path / name} line 3"
        read = {
            "corpus.jsonl": lambda: list(FolderCorpus(tmp_path).documents()),
            "queries.jsonl": lambda: read_queries(tmp_path / "queries.jsonl"),
        }[name]
        assert refusal(read) == f"{where}: {complaint}"


def test_a_title_that_is_not_text_is_named(tmp_path: Path) -> None:
    """Null is no title; a number is a mistake."""
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "title": 7, "text": "x"}\n', encoding="utf-8")
    assert refusal(lambda: list(FolderCorpus(tmp_path).documents())) == (
        f"{tmp_path / 'corpus.jsonl'} line 1: got title 7, wanted text in quotes; repair the line"
    )


def test_brackets_without_end_are_refused_like_other_malformed_json(tmp_path: Path) -> None:
    """A line that exhausts the parser's stack is a bad line, not a crash."""
    (tmp_path / "corpus.jsonl").write_text("[" * 200_000, encoding="utf-8")
    message = refusal(lambda: list(FolderCorpus(tmp_path).documents()))
    assert message.startswith(f"{tmp_path / 'corpus.jsonl'} line 1: got JSON that Python cannot read (")


def test_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path: Path) -> None:
    """A Latin-1 ü in the second line, its seventeenth byte."""
    (tmp_path / "corpus.jsonl").write_bytes(GOOD_LINE.encode() + '{"_id": "d2", "tüxt": ""}\n'.encode("latin-1"))
    assert refusal(lambda: list(FolderCorpus(tmp_path).documents())) == (
        f"{tmp_path / 'corpus.jsonl'} line 2: got byte 0xfc at byte 17 of the line, which is not UTF-8, wanted UTF-8; "
        "convert the file, for instance with iconv -t UTF-8"
    )


def test_a_truncated_gzip_file_is_named_with_the_last_line_that_could_be_read(tmp_path: Path) -> None:
    """An interrupted download never passes for a smaller corpus."""
    whole = gzip.compress("".join(f'{{"_id": "d{n}", "text": "{n * n}"}}\n' for n in range(10_000)).encode())
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    message = refusal(lambda: list(FolderCorpus(tmp_path).documents()))
    start, _, rest = message.partition(": ")
    assert start.startswith(f"{path} line ")
    assert int(start.rpartition(" ")[2]) > 1000
    assert rest == "got the end of a truncated gzip file after this line, wanted a whole file; get the file again"


def test_a_gzip_file_that_is_none_is_named(tmp_path: Path) -> None:
    """A name that ends in .gz promises gzip."""
    path = tmp_path / "corpus.jsonl.gz"
    path.write_text(GOOD_LINE, encoding="utf-8")
    assert refusal(lambda: list(FolderCorpus(tmp_path).documents())) == (
        f"{path} line 0: got damaged gzip data after this line (Not a gzipped file (b'{{\"')), wanted a whole file; "
        "get the file again"
    )


def test_a_flipped_bit_in_a_gzip_file_is_found(tmp_path: Path) -> None:
    """gzip's own checksum is believed."""
    data = bytearray(gzip.compress(GOOD_LINE.encode()))
    data[-6] ^= 1
    (tmp_path / "corpus.jsonl.gz").write_bytes(data)
    message = refusal(lambda: list(FolderCorpus(tmp_path).documents()))
    assert "got damaged gzip data after this line (CRC check failed" in message


def test_a_query_with_empty_text_is_named(tmp_path: Path) -> None:
    """White space is empty too."""
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "q1", "text": " "}\n', encoding="utf-8")
    assert refusal(lambda: read_queries(path)) == (
        f"{path} line 1: got query 'q1' with empty text, wanted some text; write the query or remove its line"
    )


def test_a_query_id_that_occurs_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    """Which of the two texts the judgements mean is not ours to guess."""
    path = tmp_path / "queries.jsonl"
    line = '{"_id": "q1", "text": "one"}\n'
    remedy = "remove or rename one of the two"
    path.write_text(f"{line}\n{line}", encoding="utf-8")
    assert refusal(lambda: read_queries(path)) == (
        f"{path} line 3: got query id 'q1' again (first on line 1), wanted every id once; {remedy}"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "q1 d1\n",
            (
                " line 1: got 2 columns, wanted 3 (query-id corpus-id score); ids must not contain white space; "
                "repair the line"
            ),
        ),
        (
            "q1 d1 1\nq1 0 d2 1\n",
            " line 2: got 4 columns, wanted 3, as on the first line; ids must not contain white space; repair the line",
        ),
        (
            "q1 0 d1 1\nq1\td2\t1\n",
            " line 2: got 3 columns, wanted 4, as on the first line; ids must not contain white space; repair the line",
        ),
        (
            "query-id corpus-id score\nq1\t\t1\n",
            " line 2: got 2 columns, wanted 3, as on the first line; ids must not contain white space; repair the line",
        ),
        (
            "qid docid rel\nq1 d1 1\n",
            (
                " line 1: got relevance 'rel', wanted a whole number; repair the line; a header line must read "
                "query-id corpus-id score"
            ),
        ),
        ("q1 d1 1\nq1 d2 0.5\n", " line 2: got relevance '0.5', wanted a whole number; repair the line"),
        ("q1 d1 1\nq1 d2 1_0\n", " line 2: got relevance '1_0', wanted a whole number; repair the line"),
        (
            "q1 d1 1\nq1 d2 1\n\nq1 d1 2\n",
            (
                " line 4: got grade 2 for query 'q1' and document 'd1', which has grade 1 on line 1, wanted one grade "
                "for a pair; remove one of the lines"
            ),
        ),
        ("query-id\tcorpus-id\tscore\n", ": got no judgement, wanted at least one; get the file again"),
        (
            "q1\td1\t1\nq1\tFoo\u00a0Bar\t1\n",
            (
                r" line 2: got corpus-id 'Foo\xa0Bar', wanted an id without white space or NUL; rename it wherever it "
                "occurs"
            ),
        ),
        (
            "q1\tFoo Bar\t1\n",
            " line 1: got corpus-id 'Foo Bar', wanted an id without white space or NUL; rename it wherever it occurs",
        ),
        (
            "q1\td1\x00\t1\n",
            r" line 1: got corpus-id 'd1\x00', wanted an id without white space or NUL; rename it wherever it occurs",
        ),
        ("q1\td1\t1\nq1\td2\tNaN\n", " line 2: got relevance 'NaN', wanted a whole number; repair the line"),
        ("q1\td1\t1\nq1\td2\t1e400\n", " line 2: got relevance '1e400', wanted a whole number; repair the line"),
        (
            "q1\td1\t19999999999991e9999999999\n",
            (
                " line 1: got relevance '19999999999991e9999999999', wanted a whole number; repair the line; a header "
                "line must read query-id corpus-id score"
            ),
        ),
        (
            f"q1\td1\t1\nq1\td2\t{'1' * 5000}\n",
            f" line 2: got relevance '{'1' * 59}…, wanted a whole number; repair the line",
        ),
    ],
    ids=[
        "two columns",
        "TREC amid BEIR",
        "BEIR amid TREC",
        "empty column",
        "unknown header",
        "fraction",
        "underscore",
        "conflict",
        "header only",
        "no-break space",
        "space between tabs",
        "NUL",
        "NaN",
        "too great",
        "too great to reckon with",
        "endless",
    ],
)
def test_a_bad_line_of_judgements_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    """No line of judgements is passed over in silence."""
    path = tmp_path / "test.tsv"
    path.write_text(text, encoding="utf-8")
    assert refusal(lambda: read_qrels(path)) == f"{path}{complaint}"


def test_a_path_without_anything_is_named(tmp_path: Path) -> None:
    """Before any file in it is complained about."""
    path = tmp_path / "nowhere"
    assert refusal(lambda: datasets.load(config(path))) == (
        f"{path}: got nothing at this path, wanted a BEIR-format folder; check dataset.path"
    )


def test_a_path_of_a_file_is_named_with_the_folder_to_give(tmp_path: Path) -> None:
    """A likely slip: the corpus file in place of its folder."""
    path = small_folder(tmp_path) / "corpus.jsonl"
    assert refusal(lambda: datasets.load(config(path))) == (
        f"{path}: got a file, wanted a BEIR-format folder; give the folder that contains it: dataset.path={tmp_path}"
    )


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path, name: str) -> None:
    """The folder's content shows at a glance whether it is the wrong one."""
    folder = small_folder(tmp_path)
    (folder / name).unlink()
    there = ({"corpus.jsonl", "queries.jsonl"} - {name}).pop()
    assert refusal(lambda: datasets.load(config(folder))) == (
        f"{folder}: got {', '.join(sorted([there, 'qrels']))}, wanted {name} or {name}.gz in it; check dataset.path"
    )


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    """Perhaps a mount that is not there."""
    assert refusal(lambda: datasets.load(config(tmp_path))) == (
        f"{tmp_path}: got an empty folder, wanted corpus.jsonl or corpus.jsonl.gz in it; check dataset.path"
    )


def test_a_missing_split_is_named_with_the_nearest(tmp_path: Path) -> None:
    """Splits are the files in qrels, gzipped ones too."""
    folder = small_folder(tmp_path)
    (folder / "qrels" / "train.tsv.gz").write_bytes(gzip.compress(b"q1\td1\t1\n"))
    assert refusal(lambda: datasets.load(config(folder, split="tests"))) == (
        f"{folder / 'qrels'}: got no split 'tests' among 'test', 'train', wanted tests.tsv or tests.tsv.gz in it; "
        "did you mean test? (dataset.split)"
    )


def test_a_split_that_only_looks_like_the_one_asked_for_is_shown_in_quotes(tmp_path: Path) -> None:
    """A white space or another letter at its end would not be seen."""
    folder = small_folder(tmp_path)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "test\u00a0.tsv")
    message = refusal(lambda: datasets.load(config(folder)))
    assert message.startswith(f"{folder / 'qrels'}: got no split 'test' among 'test\\xa0', wanted test.tsv or")


def test_a_folder_without_judgements_is_named(tmp_path: Path) -> None:
    """No file in qrels at all is another mistake than a wrong split."""
    folder = small_folder(tmp_path)
    (folder / "qrels" / "test.tsv").unlink()
    assert refusal(lambda: datasets.load(config(folder))) == (
        f"{folder / 'qrels'}: got no judgements at all, wanted test.tsv or test.tsv.gz in it; check dataset.path"
    )


def test_no_query_with_a_judgement_is_refused_even_unverified(tmp_path: Path) -> None:
    """There would be no mean to take."""
    folder = small_folder(tmp_path)
    (folder / "qrels" / "test.tsv").write_text("7\td1\t1\n8\td1\t1\n", encoding="utf-8")
    assert refusal(lambda: datasets.load(config(folder, verify=False))) == (
        f"{folder / 'qrels' / 'test.tsv'}: got judgements of 2 queries, none of which is in queries.jsonl, wanted at "
        "least one query with a judgement; check that both files belong to split 'test' of the same dataset"
    )


ACCEPT = "; repair the data, or accept and record the deviation with dataset.verify=false"


def test_judgements_of_unknown_queries_are_refused_or_recorded(tmp_path: Path) -> None:
    """Unverified, the query stays judged, so it scores 0 in the mean, and the deviation says why."""
    folder = small_folder(tmp_path)
    path = folder / "qrels" / "test.tsv"
    path.write_text("q1\td1\t1\nq8\td2\t1\nq9\td1\t1\n", encoding="utf-8")
    deviation = (
        f"dataset small: got judgements of 2 unknown queries (the first is 'q8', {path} line 2), wanted every judged "
        "query among the queries"
    )
    assert refusal(lambda: datasets.load(config(folder))) == deviation + ACCEPT
    accepted = config(folder, verify=False)
    dataset = datasets.load(accepted)
    assert datasets.deviations(dataset, surveyed(dataset, tmp_path), accepted) == (deviation,)
    assert set(dataset.qrels) == {"q1", "q8", "q9"}


def test_an_id_that_is_only_normalised_otherwise_is_named(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace('"d1"', '"cafe\u0301"'), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\tcaf\u00e9\t1\n", encoding="utf-8")
    found = surveyed(datasets.load(config(folder)), tmp_path)
    assert (
        "wanted every judged document in it; ids differ only by Unicode normalisation, got 'cafe\\u0301', wanted "
        "'caf\\xe9'; "
    ) in refusal(lambda: datasets.deviations(datasets.load(config(folder)), found, config(folder)))


def test_a_query_id_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    name = "q" * 1_000_000
    (folder / "queries.jsonl").write_text(f'{{"_id": "{name}", "text": "x"}}\n', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(f"{name}\td1\t1\n", encoding="utf-8")
    assert refusal(lambda: datasets.load(config(folder))) == (
        f"dataset small: got an id of 1,000,000 bytes for query number 1 from folder {folder.name}, wanted 4,096 at "
        "most; give the queries shorter ids"
    )


def test_judgements_of_unknown_documents_are_refused_or_recorded(tmp_path: Path) -> None:
    """Only the survey can tell, which has read the whole corpus; the first is the first in the qrels."""
    folder = small_folder(tmp_path)
    path = folder / "qrels" / "test.tsv"
    path.write_text("q1\td1\t1\nq1\tz\t1\nq1\ta\t0\n", encoding="utf-8")
    deviation = (
        f"dataset small: got judgements of 2 documents that the corpus from folder {folder.name} lacks (the first is "
        f"'z', {path} line 2), wanted every judged document in it"
    )
    dataset = datasets.load(config(folder))
    found = surveyed(dataset, tmp_path)
    lacks = ", set dataset.counts.missing=2 if the published corpus lacks these too"
    assert refusal(lambda: datasets.deviations(dataset, found, config(folder))) == (
        deviation + ACCEPT.replace(", or accept", f"{lacks}, or accept")
    )
    assert datasets.deviations(dataset, found, config(folder, verify=False)) == (deviation,)


def test_documents_that_the_published_corpus_lacks_too_are_no_deviation(tmp_path: Path) -> None:
    """ArguAna judges five documents that nobody has: that many are right, fewer mean another corpus."""
    folder = small_folder(tmp_path)
    path = folder / "qrels" / "test.tsv"
    path.write_text("q1\td1\t1\nq1\tz\t1\nq1\ta\t0\n", encoding="utf-8")
    dataset = datasets.load(config(folder))
    found = surveyed(dataset, tmp_path)
    assert datasets.deviations(dataset, found, config(folder, counts=Counts(missing=2))) == ()
    assert refusal(lambda: datasets.deviations(dataset, found, config(folder, counts=Counts(missing=3)))).startswith(
        f"dataset small: got judgements of 2 documents that the corpus from folder {folder.name} lacks (the first is "
        f"'z', {path} line 2), wanted 3 as published; repair the data, set dataset.counts.missing=2 if "
    )
    path.write_text("q1\td1\t1\n", encoding="utf-8")
    dataset = datasets.load(config(folder))
    assert refusal(
        lambda: datasets.deviations(dataset, surveyed(dataset, tmp_path), config(folder, counts=Counts(missing=3)))
    ) == (
        f"dataset small: got judgements of 0 documents that the corpus from folder {folder.name} lacks, wanted 3 as "
        "published; repair the data, set dataset.counts.missing=0 if the published corpus has them all, or accept and "
        "record the deviation with dataset.verify=false"
    )


@pytest.mark.parametrize(
    ("counts", "deviation"),
    [
        (Counts(queries=1323), "got 1 queries with judgements from folder {}, wanted 1,323 as published"),
        (Counts(judgements=2), "got 1 judgements from folder {}, wanted 2 as published"),
    ],
)
def test_other_counts_than_published_are_refused_before_the_corpus_is_read(
    tmp_path: Path, counts: Counts, deviation: str
) -> None:
    """A malformed corpus does not come to light, since nobody has read it."""
    folder = small_folder(tmp_path)
    (folder / "corpus.jsonl").write_text("{", encoding="utf-8")
    assert refusal(lambda: datasets.load(config(folder, counts=counts))) == (
        f"dataset small: {deviation.format(folder.name)}{ACCEPT}"
    )
    assert datasets.load(config(folder, counts=counts, verify=False)).name == "small"


def test_another_count_of_documents_than_published_is_refused_or_recorded(tmp_path: Path) -> None:
    """Known once the survey has counted."""
    folder = small_folder(tmp_path)
    counts = Counts(documents=3, queries=1, judgements=1)
    dataset = datasets.load(config(folder, counts=counts))
    found = surveyed(dataset, tmp_path)
    deviation = f"dataset small: got 2 documents from folder {folder.name}, wanted 3 as published"
    assert refusal(lambda: datasets.deviations(dataset, found, config(folder, counts=counts))) == deviation + ACCEPT
    assert datasets.deviations(dataset, found, config(folder, counts=counts, verify=False)) == (deviation,)
    exact = Counts(documents=2, queries=1, judgements=1)
    assert datasets.deviations(dataset, found, config(folder, counts=exact)) == ()


def test_a_document_id_that_occurs_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    """Whatever the two lines say."""
    folder = small_folder(tmp_path / "data")
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"\n{GOOD_LINE}")  # the blank line is counted too, as an editor counts
    dataset = load_folder(config(folder))
    assert refusal(lambda: surveyed(dataset, tmp_path)) == (
        f"{folder / 'corpus.jsonl'} line 4: got document id 'd1' again (first: {folder / 'corpus.jsonl'} line 1), "
        "wanted every id of dataset small once; remove or rename one of the two"
    )
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
    (folder / "corpus.jsonl").unlink()
    assert refusal(lambda: surveyed(dataset, tmp_path)).startswith(f"{folder / 'corpus.jsonl.gz'} line 4: ")


def test_a_corpus_of_blank_lines_is_empty(tmp_path: Path) -> None:
    """An empty file, one of newlines and a gzipped one alike: the file is named."""
    folder = small_folder(tmp_path / "data")
    complaint = "got no document, wanted at least one; get the file again"
    for text in ("\n\n", ""):
        (folder / "corpus.jsonl").write_text(text, encoding="utf-8")
        message = refusal(lambda: surveyed(load_folder(config(folder)), tmp_path))
        assert message == f"{folder / 'corpus.jsonl'}: {complaint}"
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b""))
    message = refusal(lambda: surveyed(load_folder(config(folder)), tmp_path))
    assert message == f"{folder / 'corpus.jsonl.gz'}: {complaint}"


def test_judgements_that_find_nothing_relevant_are_refused_or_recorded(tmp_path: Path) -> None:
    """Every metric of every system would be 0 without a word; one relevant document is enough to measure something."""
    folder = small_folder(tmp_path)
    path = folder / "qrels" / "test.tsv"
    path.write_text("q1\td1\t0\nq1\td2\t-1\n", encoding="utf-8")
    deviation = (
        f"dataset small: got 2 judgements without a relevance above 0 in {path}, wanted at least one: every "
        "metric would be 0"
    )
    assert refusal(lambda: datasets.load(config(folder))) == deviation + ACCEPT
    accepted = config(folder, verify=False)
    dataset = datasets.load(accepted)
    assert datasets.deviations(dataset, surveyed(dataset, tmp_path), accepted) == (deviation,)
    path.write_text("q1\td1\t0\nq1\td2\t1\n", encoding="utf-8")
    assert datasets.load(config(folder)).qrels == {"q1": {"d1": 0, "d2": 1}}


def test_an_endless_document_and_an_empty_one_are_no_errors(tmp_path: Path) -> None:
    """A model truncates the one and embeds the other; the survey counts the empty one."""
    folder = small_folder(tmp_path / "data")
    rows = [{"_id": "d1", "text": "word " * 200_000}, {"_id": "d2", "text": ""}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = datasets.load(config(folder))
    found = surveyed(dataset, tmp_path)
    assert (found.documents, found.empty_documents, len(found.shards)) == (2, 1, 1)


def test_a_demo_without_size_is_refused() -> None:
    """The demo's size is part of its config."""
    demo = DatasetConfig(
        name="demo", sources=("demo",), split="test", language="multilingual", drop_self=False, main_metric="ndcg@10"
    )
    assert refusal(lambda: datasets.load(demo)) == (
        "dataset demo: got no size for the demo, wanted documents, queries and seed; "
        "set dataset.demo.documents, .queries and .seed"
    )
