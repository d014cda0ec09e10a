"""Copies on the Hugging Face Hub, laid in its cache as the client lays them, and read with the network off."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalkit import datasets
from evalkit.config.settings import DatasetConfig, HubCopy
from evalkit.datasets.hub import HubCorpus, load_hub
from evalkit.errors import DatasetError
from evalkit.types import Query

COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = """---
configs:
  - config_name: corpus
    data_files: [{split: corpus, path: "corpus/corpus-*.parquet"}]
  - config_name: queries
    data_files: [{split: queries, path: queries.jsonl}]
  - config_name: default
    data_files: [{split: train, path: qrels/train.jsonl.gz}, {split: test, path: qrels/test.jsonl.gz}]
---
# A small copy
"""
CORPUS = [{"_id": f"d{n}", "title": f"Title {n}" if n % 2 else None, "text": f"text {n}"} for n in range(10)]


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def small_copy() -> dict[str, bytes]:
    judged = [{"query-id": "q1", "corpus-id": "d7", "score": 2.0}, {"query-id": "q1", "corpus-id": "d0", "score": 0}]
    return {
        "README.md": README.encode(),
        "corpus/corpus-00000-of-00002.parquet": table(CORPUS[:7]),
        "corpus/corpus-00001-of-00002.parquet": table(CORPUS[7:]),
        "queries.jsonl": lines([{"_id": "q0", "text": "unjudged"}, {"_id": "q1", "text": "judged"}]),
        "qrels/train.jsonl.gz": gzip.compress(lines([{"query-id": "q0", "corpus-id": "d1", "score": 1}])),
        "qrels/test.jsonl.gz": gzip.compress(lines(judged)),
    }


def lay(hub: Path, files: dict[str, bytes]) -> Path:
    """Write refs, blobs and a snapshot of links to them, as huggingface_hub does."""
    folder = hub / "datasets--owner--small"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / COMMIT
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache in a hidden folder, as ~/.cache is one."""
    folder = tmp_path / ".cache" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


def config(**changes: Any) -> DatasetConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "sources": ("hub",),
        "hub": HubCopy(repo="owner/small", corpus="corpus", queries="queries", qrels="default", revision=COMMIT),
        "split": "test",
        "language": "en",
        "drop_self": False,
        "main_metric": "ndcg@10",
    }
    return DatasetConfig(**{**settings, **changes})


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_copy_in_the_cache_is_read_without_the_network(hub: Path) -> None:
    lay(hub, small_copy())
    dataset = load_hub(config())
    assert [(query.id, query.text) for query in dataset.queries] == [("q1", "judged")]
    assert dataset.qrels == {"q1": {"d7": 2, "d0": 0}}
    assert [tuple(document) for document in dataset.corpus.documents()] == [
        (row["_id"], row["title"] or "", row["text"]) for row in CORPUS
    ]
    assert dataset.source == f"hub owner/small@{COMMIT}"


@pytest.mark.parametrize(
    "data_files",
    [
        '"corpus/corpus-*.parquet"',
        '["corpus/corpus-*.parquet"]',
        '["corpus/corpus-00000-of-00002.parquet", "corpus/corpus-*.parquet"]',
        '[{split: train, path: ["corpus/corpus-00000-of-00002.parquet", "corpus/corpus-00001-of-00002.parquet"]}]',
        '[{split: test, path: "corpus/**"}, {split: dev, path: "queries.jsonl"}]',
    ],
    ids=["one pattern", "patterns", "a file twice", "files of a split", "folders below"],
)
def test_every_way_in_which_a_copy_may_name_its_files_is_read(hub: Path, data_files: str) -> None:
    """Those that `datasets` takes, each with the same documents in the same order."""
    named = README.replace('[{split: corpus, path: "corpus/corpus-*.parquet"}]', data_files)
    assert named != README
    # One star does not cross folders, two do.
    other = {} if "**" in data_files else {"corpus/corpus-old/part.parquet": table(CORPUS)}
    lay(hub, {**small_copy(), **other, "README.md": named.encode()})
    assert [document.id for document in load_hub(config()).corpus.documents()] == [row["_id"] for row in CORPUS]


def test_ids_and_texts_that_look_like_dates_stay_what_they_are(hub: Path) -> None:
    """A reader that guesses types makes times of them."""
    files = {
        "queries.jsonl": lines([{"_id": "2009-01-02", "text": "2020-01-01"}]),
        "qrels/test.jsonl.gz": gzip.compress(lines([{"query-id": "2009-01-02", "corpus-id": "d7", "score": 1}])),
    }
    lay(hub, {**small_copy(), **files})
    assert load_hub(config()).queries == (Query("2009-01-02", "2020-01-01"),)


def test_a_copy_without_a_pinned_revision_says_so_and_names_the_commit(hub: Path) -> None:
    lay(hub, small_copy())
    copy = HubCopy(repo="owner/small", corpus="corpus", queries="queries", qrels="default")
    assert load_hub(config(hub=copy)).source == f"hub owner/small@{COMMIT} (not pinned)"


def test_any_range_of_a_copy_is_that_slice_across_files_and_row_groups(hub: Path) -> None:
    lay(hub, small_copy())
    corpus = load_hub(config()).corpus
    whole = list(corpus.documents())
    for start in range(12):
        for stop in (None, *range(12)):
            assert list(corpus.documents(start, stop)) == whole[start:stop]


@pytest.mark.parametrize("gone", ["README.md", "corpus/corpus-00001-of-00002.parquet", "blob"])
def test_a_copy_whose_documents_are_not_all_there_is_not_on_disk(hub: Path, gone: str) -> None:
    """As after a download that was cut off, or beside the only language of a repository that was fetched."""
    assert datasets.on_disk(config()) is None
    snapshot = lay(hub, small_copy())
    assert datasets.on_disk(config()) == "hub"
    lost = snapshot / ("corpus/corpus-00000-of-00002.parquet" if gone == "blob" else gone)
    (lost.resolve() if gone == "blob" else lost).unlink()
    assert datasets.on_disk(config()) is None


def test_a_copy_has_a_fingerprint_of_commit_and_files(hub: Path) -> None:
    snapshot = lay(hub, small_copy())
    corpus = load_hub(config()).corpus
    before = corpus.fingerprint()
    assert corpus.fingerprint() == before
    longer = snapshot / "corpus" / "corpus-00001-of-00002.parquet"
    longer.unlink()
    longer.write_bytes(table(CORPUS[7:] * 2))
    assert corpus.fingerprint() != before
    longer.unlink()
    assert "got nothing at this path, wanted a file of the copy; fetch the dataset again" in refusal(corpus.fingerprint)


def test_memory_stays_flat_while_a_parquet_copy_grows_tenfold(tmp_path: Path) -> None:
    peaks, arrow_peaks = [], []
    for count in (20_000, 200_000):
        path = tmp_path / f"{count}.parquet"
        rows = ({"_id": str(n), "text": f"some words of text {n}" * 5} for n in range(count))
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=10_000)
        before = pa.total_allocated_bytes()
        arrow_peak = 0
        tracemalloc.start()
        for number, _ in enumerate(HubCorpus("owner/small@0", (path,)).documents()):
            if number % 1000 == 0:
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        arrow_peaks.append(arrow_peak)
    assert peaks[1] < peaks[0] * 1.2
    assert arrow_peaks[1] < arrow_peaks[0] * 1.2 + 1_000_000


def test_a_source_that_fails_is_reported_and_the_next_is_used(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(hub, small_copy())
    with caplog.at_level(logging.WARNING):
        dataset = datasets.load(config(sources=("ir_datasets", "hub"), ir_datasets_id="beir/no-such-set"))
    assert dataset.source.startswith("hub owner/small@")
    (record,) = caplog.records
    assert "dataset small: source ir_datasets failed, the next one is tried: ir_datasets_id='beir/no-such-set'" in (
        record.getMessage()
    )


def test_when_every_source_fails_each_reason_is_given(hub: Path) -> None:
    message = refusal(lambda: datasets.load(config(sources=("ir_datasets", "hub"), ir_datasets_id="beir/none")))
    assert message.startswith("dataset small: got it from none of its sources, wanted one of ir_datasets, hub; ")
    assert "; ir_datasets: ir_datasets_id='beir/none': got an id" in message
    assert f"; hub: hub dataset owner/small@{COMMIT}: got " in message


def test_a_source_that_can_be_read_but_deviates_is_refused_not_passed_over(hub: Path) -> None:
    lay(hub, small_copy())
    from evalkit.config.settings import Counts

    wanted = config(sources=("hub", "ir_datasets"), ir_datasets_id="beir/none", counts=Counts(queries=2))
    assert refusal(lambda: datasets.load(wanted)) == (
        f"dataset small: got 1 queries with judgements from hub owner/small@{COMMIT}, wanted 2 as published; repair "
        "the data, choose another source with dataset.sources=[ir_datasets], or accept and record the deviation with "
        "dataset.verify=false"
    )


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"README.md": b"# no header"}, "README.md: got no readable `configs` in its header, wanted config names"),
        ({"README.md": b"---\nlicense: mit\n---\n"}, "README.md: got no readable `configs` in its header, wanted"),
        ({"README.md": b"---\nconfigs: [1, 2]\n---\n"}, "README.md: got no readable `configs` in its header, wanted"),
        ({"README.md": b"---\nconfigs: [}\n---\n"}, "README.md: got no readable `configs` in its header, wanted"),
        (
            {"README.md": b"---\nconfigs: [{config_name: corpus, data_files: [{a: b}]}]\n---\n"},
            "README.md: got no readable `configs` in its header, wanted config names and data files; choose another",
        ),
        ({"README.md": README.replace("name: corpus", "name: texts").encode()}, "got no config 'corpus', wanted it"),
        ({"README.md": README.replace("split: test", "split: dev").encode()}, "got no split 'test' in config"),
        ({"corpus/corpus-00001-of-00002.parquet": None}, "got 1 of the files corpus/corpus-*.parquet, wanted 2"),
        ({"queries.jsonl": None}, "got 0 of the files queries.jsonl, wanted 1 or more"),
        ({"queries.jsonl": lines([{"_id": "q1", "query": "x"}])}, "queries.jsonl line 1: got no column 'text' among"),
        ({"queries.jsonl": lines([{"qid": "q1", "text": "x"}])}, "got no id among the columns ['qid', 'text']"),
        ({"queries.jsonl": lines([{"_id": "q1", "text": " "}])}, "got query 'q1' with empty text"),
        ({"queries.jsonl": lines([{"_id": "q1", "text": "x"}] * 2)}, "line 2: got query 'q1' again"),
        ({"queries.jsonl": lines([{"_id": "q 1", "text": "x"}])}, "got id 'q 1', wanted an id without white space"),
        ({"queries.jsonl": lines([{"_id": "q9", "text": "x"}])}, "got no query with a judgement from owner/small@"),
        ({"qrels/test.jsonl.gz": gzip.compress(b"{}\n" * 99)[:-9]}, "got no column 'query-id'"),
        ({"qrels/test.jsonl.gz": small_copy()["qrels/test.jsonl.gz"][:-9]}, "got the end of a truncated gzip file"),
        (
            {"qrels/test.jsonl.gz": gzip.compress(lines([{"query-id": "q1", "corpus-id": "d1", "score": 0.5}]))},
            "got score 0.5, wanted a whole number",
        ),
        *(
            (
                {"qrels/test.jsonl.gz": gzip.compress(b'{"query-id": "q1", "corpus-id": "d1", "score": %b}' % score)},
                f"line 1: got score {shown}, wanted a whole number",
            )
            for score, shown in ((b"NaN", "nan"), (b"Infinity", "inf"), (b"1e400", "inf"), (b"true", "True"))
        ),
        (
            {"qrels/test.jsonl.gz": gzip.compress(lines([{"query-id": "q1", "corpus-id": "d\0", "score": 1}]))},
            r"got corpus-id 'd\x00', wanted an id without white space or NUL",
        ),
        (
            {
                "qrels/test.jsonl.gz": gzip.compress(
                    lines([{"query-id": "q1", "corpus-id": "d1", "score": score} for score in (1, 2)])
                )
            },
            "got grades 1 and 2 for one query and document 'd1'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_copy_is_named_in_one_line(hub: Path, damage: dict[str, bytes | None], complaint: str) -> None:
    files = {**small_copy(), **damage}
    lay(hub, {name: content for name, content in files.items() if content is not None})
    assert complaint in refusal(lambda: load_hub(config()))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (table(CORPUS)[:-20], "got no whole Parquet file"),
        (table([{"_id": "d1", "body": "x"}]), "got no column 'text' among ['_id', 'body'], wanted columns text"),
        (table([{"_id": "d1", "text": None}]), "row"),
    ],
    ids=["truncated", "no text", "null text"],
)
def test_a_damaged_parquet_file_is_named_in_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "corpus.parquet"
    path.write_bytes(content)
    message = refusal(lambda: list(HubCorpus("owner/small@0", (path,)).documents()))
    assert message.startswith(str(path))
    assert complaint in message or "got text None, wanted text" in message


def test_text_that_is_not_utf8_in_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    """Arrow writes and reads such columns, and complains of them only when a text is taken."""
    bad = b"red \xff fox"
    texts = pa.StringArray.from_buffers(1, pa.array([0, len(bad)], pa.int32()).buffers()[1], pa.py_buffer(bad))
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"_id": ["d1"], "text": texts}), path)
    message = refusal(lambda: list(HubCorpus("owner/small@0", (path,)).documents()))
    assert message.startswith(f"{path} line 0: got damaged data after this row ('utf-8' codec can't decode byte 0xff")


def test_a_relevance_out_of_range_is_refused(hub: Path) -> None:
    rows = lines([{"query-id": "q1", "corpus-id": "d1", "score": 20210131}])
    lay(hub, {**small_copy(), "qrels/test.jsonl.gz": gzip.compress(rows)})
    assert refusal(lambda: datasets.load(config())).startswith(
        "dataset small: got relevance 20210131 for document 'd1' (judged for query 'q1'), wanted -10 to 100; "
    )


PARQUET_QRELS = README.replace(
    "[{split: train, path: qrels/train.jsonl.gz}, {split: test, path: qrels/test.jsonl.gz}]",
    "[{split: test, path: qrels.parquet}]",
)


@pytest.mark.parametrize("grades", ["relevance", "Score", "label"])
def test_grades_under_another_name_are_refused_not_taken_for_ones(hub: Path, grades: str) -> None:
    judged = [{"query-id": "q1", "corpus-id": "d1", grades: 2}, {"query-id": "q1", "corpus-id": "d2", grades: 0}]
    lay(hub, {**small_copy(), "README.md": PARQUET_QRELS.encode(), "qrels.parquet": table(judged)})
    assert refusal(lambda: load_hub(config())).endswith(
        f"qrels.parquet: got no column 'score' among ['query-id', 'corpus-id', '{grades}'], wanted columns query-id, "
        "corpus-id, score; choose another source"
    )


def test_grades_in_json_lines_under_another_name_are_refused(hub: Path) -> None:
    judged = lines([{"query-id": "q1", "corpus-id": "d1", "relevance": 2}])
    lay(hub, {**small_copy(), "qrels/test.jsonl.gz": gzip.compress(judged)})
    assert "got no column 'score' among ['query-id', 'corpus-id', 'relevance']" in refusal(lambda: load_hub(config()))


def test_a_parquet_file_of_two_ids_lists_relevant_documents_and_one_with_scores_may_have_more(hub: Path) -> None:
    judged = [{"corpus-id": "d1", "query-id": "q1"}]
    snapshot = lay(hub, {**small_copy(), "README.md": PARQUET_QRELS.encode(), "qrels.parquet": table(judged)})
    assert load_hub(config()).qrels == {"q1": {"d1": 1}}
    (snapshot / "qrels.parquet").unlink()
    (snapshot / "qrels.parquet").write_bytes(table([{**judged[0], "score": 3, "annotator": "a"}]))
    assert load_hub(config()).qrels == {"q1": {"d1": 3}}


def test_judgements_of_a_split_that_is_not_there_are_not_those_of_another(hub: Path) -> None:
    """Documents and queries are read from their only split, whatever its name is."""
    judged = {"qrels.parquet": table([{"query-id": "q1", "corpus-id": "d1"}])}
    snapshot = lay(hub, {**small_copy(), **judged, "README.md": PARQUET_QRELS.encode()})
    assert refusal(lambda: load_hub(config(split="dev"))) == (
        f"{snapshot}/README.md: got no split 'dev' in config 'default', wanted one of 'test'; valid: test "
        "(dataset.split, or dataset.hub.split where the copy has another name for it)"
    )
    copy = HubCopy(repo="owner/small", corpus="corpus", queries="queries", qrels="default", split="validation")
    assert "got no split 'validation' in config 'default', wanted one of 'test'" in refusal(
        lambda: load_hub(config(hub=copy))
    )


@pytest.mark.parametrize("data_files", ["qrels.parquet", '["qrels.parquet"]'])
def test_judgements_without_a_named_split_are_those_of_any(hub: Path, data_files: str) -> None:
    named = PARQUET_QRELS.replace("[{split: test, path: qrels.parquet}]", data_files)
    judged = {"qrels.parquet": table([{"query-id": "q1", "corpus-id": "d1"}])}
    lay(hub, {**small_copy(), **judged, "README.md": named.encode()})
    assert load_hub(config(split="dev")).qrels == {"q1": {"d1": 1}}


def test_a_dataset_without_a_copy_is_refused() -> None:
    assert refusal(lambda: load_hub(config(hub=None))) == (
        "dataset small: got no hub copy, wanted repo, corpus, queries and qrels; set dataset.hub, or choose other "
        "dataset.sources"
    )
