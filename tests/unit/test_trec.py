"""TREC run files: round trip, stable bytes, ties, and a line for each mistake."""

import gzip

import numpy as np
import pytest

from evalkit.errors import ScoreError
from evalkit.ranking import FP32_LIMIT, rank_hits
from evalkit.storage.trec import read_qrels, read_run, unmatched, write_run
from evalkit.types import Hit

RUN = {"q1": [Hit("d2", 1.5), Hit("d1", 0.1)], "q2": [Hit("文書", -3.25e-7)]}


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_comes_back_as_it_was_written(tmp_path, name):
    write_run(RUN, tmp_path / name, tag="t")
    back = read_run(tmp_path / name)
    assert {q: [hit.document_id for hit in hits] for q, hits in back.items()} == {"q1": ["d2", "d1"], "q2": ["文書"]}
    assert all(np.float32(a.score) == np.float32(b.score) for q in RUN for a, b in zip(back[q], RUN[q], strict=True))


def test_scores_survive_as_the_same_fp32_number(tmp_path):
    scores = np.random.default_rng(0).standard_normal(500).astype(np.float32) * np.float32(30)
    run = {"q": rank_hits(Hit(f"d{i}", float(score)) for i, score in enumerate(scores))}
    write_run(run, tmp_path / "r.trec.gz", tag="t")
    assert {hit.document_id: np.float32(hit.score) for hit in read_run(tmp_path / "r.trec.gz")["q"]} == {
        f"d{i}": score for i, score in enumerate(scores)
    }


def test_the_same_run_gives_the_same_bytes(tmp_path):
    write_run(RUN, tmp_path / "a.trec.gz", tag="t")
    write_run(RUN, tmp_path / "b.trec.gz", tag="t")
    assert (tmp_path / "a.trec.gz").read_bytes() == (tmp_path / "b.trec.gz").read_bytes()


def test_the_columns_are_trecs(tmp_path):
    write_run(RUN, tmp_path / "r.trec", tag="tag")
    assert (tmp_path / "r.trec").read_text("utf-8").splitlines()[0] == "q1 Q0 d2 1 1.5 tag"


def test_equal_scores_are_ranked_by_id_descending_in_bytes_not_in_any_languages_order():
    hits = rank_hits([Hit("é", 1.0), Hit("z", 1.0), Hit("10", 1.0), Hit("9", 1.0)])
    assert [hit.document_id for hit in hits] == ["é", "z", "9", "10"]


def test_scores_that_are_equal_as_fp32_are_ties():
    assert rank_hits([Hit("a", 1.0 + 1e-12), Hit("b", 1.0)])[0].document_id == "b"


def test_the_rank_column_is_not_believed(tmp_path):
    (tmp_path / "r.trec").write_text("q Q0 low 1 0.5 t\nq Q0 high 2 0.9 t\n", encoding="utf-8")
    assert [hit.document_id for hit in read_run(tmp_path / "r.trec")["q"]] == ["high", "low"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"q Q0 d 1 0.5\n", r"r\.trec line 1: got 5 columns, wanted 6: query Q0 document rank score tag"),
        (b"q Q0 d 1 0.5 t\n\nq Q0 e 2 high t\n", "line 3: got score 'high', wanted a number"),
        (b"q Q0 d 1 1_0 t\n", "line 1: got score '1_0', wanted a number"),
        (b"q Q0 d 1 nan t\n", "line 1: got score 'nan', wanted a finite number in fp32"),
        (b"q Q0 d 1 -inf t\n", "line 1: got score '-inf', wanted a finite number in fp32"),
        (b"q Q0 d 1 1e39 t\n", "line 1: got score '1e39', wanted a finite number in fp32"),
        (b"q Q0 d 1 2 t\nq Q0 d 2 1 t\n", "line 2: got document 'd' again for query 'q', wanted every document once"),
        (b"q Q0 \xff 1 2 t\n", "line 1: got byte 0xff at byte 6 of the line, which is not UTF-8"),
        ("q Q0 d\u00a0x 1 1.0\n".encode(), "line 1: got 5 columns, wanted 6"),
        (
            "q Q0 d\u00a0x 1 1.0 t\n".encode(),
            r"line 1: got document id 'd\\xa0x', wanted an id without white space or NUL",
        ),
        ("q\u2003p Q0 d 1 1.0 t\n".encode(), "line 1: got query id 'q\\\\u2003p', wanted an id without white space"),
        (b"q Q0 d\x0b1 1 1.0 t\n", r"line 1: got document id 'd\\x0b1', wanted an id without white space"),
        (b"q Q0 d\x00 1 1.0 t\n", r"line 1: got document id 'd\\x00', wanted an id without white space or NUL"),
        (b"q Q0 d 1 2 t\rp Q0 d 1 2 t\n", "line 1: got 11 columns"),
        (b"q Q0 Foo Bar 1 2.5\n", "line 1: got rank 'Bar', wanted a number: ids and tags must not contain spaces"),
        ("q Q0 d 1 \u0661 t\n".encode(), "line 1: got score '\u0661', wanted a number"),
        (b"q Q0 d 1 1e400 t\n", "line 1: got score '1e400', wanted a finite number in fp32"),
        (
            gzip.compress(b"q Q0 d 1 2 t\n", mtime=0),
            r"r\.trec: got a gzip file under a name without \.gz, .* r\.trec\.gz",
        ),
        (b"", "got an empty file, wanted a TREC run"),
    ],
)
def test_what_is_no_run_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "r.trec").write_bytes(text)
    with pytest.raises(ScoreError, match=message):
        read_run(tmp_path / "r.trec")


def test_a_truncated_gzip_is_refused(tmp_path):
    (tmp_path / "r.trec.gz").write_bytes(gzip.compress(b"q Q0 d 1 2 t\n", mtime=0)[:-9])
    with pytest.raises(ScoreError, match=r"r\.trec\.gz line 1: got the end of a truncated gzip file"):
        read_run(tmp_path / "r.trec.gz")


def test_a_file_that_is_no_gzip_is_refused(tmp_path):
    (tmp_path / "r.trec.gz").write_bytes(b"q Q0 d 1 2 t\n")
    with pytest.raises(ScoreError, match="got damaged gzip data after this line"):
        read_run(tmp_path / "r.trec.gz")


def test_a_byte_order_mark_is_no_part_of_the_first_query(tmp_path):
    (tmp_path / "r.trec").write_bytes(b"\xef\xbb\xbfq Q0 d 1 2 t\n")
    assert list(read_run(tmp_path / "r.trec")) == ["q"]


def test_the_largest_fp32_number_is_a_score_and_what_rounds_beyond_it_is_not(tmp_path):
    largest = float(np.finfo(np.float32).max)
    write_run({"q": [Hit("d", largest)]}, tmp_path / "r.trec", tag="t")
    assert np.float32(read_run(tmp_path / "r.trec")["q"][0].score) == np.float32(largest)
    with pytest.raises(ScoreError, match=r"got score 3\.402823567797\d+e\+38, wanted a finite number in fp32"):
        write_run({"q": [Hit("d", FP32_LIMIT)]}, tmp_path / "r.trec", tag="t")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ScoreError, match=r"none\.trec: got No such file or directory, wanted a readable file"):
        read_run(tmp_path / "none.trec")


def test_ids_that_the_format_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ScoreError, match="document id 'd 1' cannot be written; wanted no white space or NUL"):
        write_run({"q": [Hit("d 1", 1.0)]}, tmp_path / "r.trec", tag="t")
    with pytest.raises(ScoreError, match="query id '' cannot be written"):
        write_run({"": [Hit("d", 1.0)]}, tmp_path / "r.trec", tag="t")
    with pytest.raises(ScoreError, match="tag 'my run' cannot be written"):
        write_run({"q": [Hit("d", 1.0)]}, tmp_path / "r.trec", tag="my run")
    assert not (tmp_path / "r.trec").exists()


def test_hits_that_could_not_be_read_back_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ScoreError, match="query 'q', document 'd': got score nan, wanted a finite number in fp32"):
        write_run({"q": [Hit("d", float("nan"))]}, tmp_path / "r.trec", tag="t")
    with pytest.raises(ScoreError, match="query 'q': got document 'd' twice, wanted every document once"):
        write_run({"q": [Hit("d", 2.0), Hit("d", 1.0)]}, tmp_path / "r.trec", tag="t")
    assert not (tmp_path / "r.trec").exists()


def test_columns_are_parted_by_any_number_of_spaces_and_tabs(tmp_path):
    (tmp_path / "r.trec").write_bytes(b" q  Q0\td1 \t1 2.5 t \r\nq\tQ0\td2\t2\t1\tt\n")
    assert read_run(tmp_path / "r.trec") == {"q": [Hit("d1", 2.5), Hit("d2", 1.0)]}


def test_a_byte_order_mark_before_any_members_lines_is_no_part_of_an_id(tmp_path):
    """Two gzipped runs, each with a mark, put one behind the other: one gzip file of two members."""
    members = [gzip.compress(b"\xef\xbb\xbf" + line) for line in (b"q Q0 d 1 2 t\n", b"p Q0 d 1 2 t\n")]
    (tmp_path / "r.trec.gz").write_bytes(b"".join(members))
    assert list(read_run(tmp_path / "r.trec.gz")) == ["q", "p"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"qrels: got no judgement, wanted at least one"),
        (b"q 0 d 1\nq 0 \xff 1\n", "line 2: got byte 0xff at byte 5 of the line, which is not UTF-8"),
        (b"q 0 d\x00 1\n", r"line 1: got corpus-id 'd\\x00', wanted an id without white space or NUL"),
        (b"q 0 d 1\nq 0 d 2\n", "line 2: got grade 2 for query 'q' and document 'd', which has grade 1 on line 1"),
        (b"q\td\t1\n", "line 1: got 3 columns, wanted 4"),
        (b"q 0 d nan\n", "line 1: got relevance 'nan', wanted a whole number"),
        (b"q 0 d " + b"9" * 5000 + b"\n", "line 1: got relevance '9{59}…, wanted a whole number"),
    ],
)
def test_what_is_no_qrels_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "qrels").write_bytes(text)
    with pytest.raises(ScoreError, match=message):
        read_qrels(tmp_path / "qrels")


QRELS = {"q": {"d1": 1, "caf\u00e9": 1}}


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["d1", "x"], None),
        (["x", "caf\u00e9"], None),
        (["doc1", "x"], "no document id of the run is judged: got 'doc1' and so on, wanted 'd1' and so on; check that"),
        (["D1"], "no document id of the run is judged: ids differ only by case, got 'D1' and so on, wanted 'd1'"),
        (["d1", "D1"], None),
        (
            ["cafe\u0301"],
            (
                "no document id of the run is judged: ids differ only by Unicode normalisation, got 'cafe\\u0301' and "
                "so on, wanted 'caf\\xe9' and so on; write the run's ids as the dataset's are"
            ),
        ),
        (["d1", "cafe\u0301"], "1 judged documents are not found: ids differ only by Unicode normalisation, got 'cafe"),
    ],
)
def test_document_ids_that_match_no_judgement_are_told(ids, said):
    found = unmatched({"q": [Hit(name, 1.0) for name in ids], "unjudged": [Hit("z", 1.0)]}, QRELS)
    assert found is None if said is None else found.startswith(said)


def test_a_run_of_no_hits_has_no_ids_to_complain_of():
    assert unmatched({}, QRELS) is None
