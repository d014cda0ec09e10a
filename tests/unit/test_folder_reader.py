"""Reading BEIR-format folders: every form that is accepted, and the real sets where they are at hand."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from shared_material import shared_data

from evalkit import datasets
from evalkit.config.settings import Counts, DatasetConfig
from evalkit.datasets.folder import FolderCorpus, load_folder, qrels_file, read_qrels, read_queries
from evalkit.datasets.survey import survey
from evalkit.types import Document, Query

DOCUMENTS = [
    {"_id": "d1", "title": "One", "text": "first"},
    {"_id": "d2", "text": "second"},
    {"_id": "d3", "title": None, "text": ""},
    {"_id": "d4", "title": "", "text": "viertes Stück", "metadata": {"url": "x"}},
]
READ = [
    Document("d1", "One", "first"),
    Document("d2", "", "second"),
    Document("d3", "", ""),
    Document("d4", "", "viertes Stück"),
]
OFFICIAL_QUERIES = {
    "beir/arguana": 1406,
    "beir/climate-fever": 1535,
    "beir/dbpedia-entity": 400,
    "beir/fever": 6666,
    "beir/fiqa": 648,
    "beir/hotpotqa": 7405,
    "beir/nfcorpus": 323,
    "beir/nq": 3452,
    "beir/quora": 10000,
    "beir/scidocs": 1000,
    "beir/trec-covid": 50,
    "beir/webis-touche2020": 49,
    "msmarco-passage-dev": 6980,
}
OFFICIAL_QUERIES |= {
    f"miracl/{language}": queries
    for language, queries in zip(
        ("ar", "bn", "de", "en", "es", "fa", "fi", "fr", "hi", "id", "ja", "ko", "ru", "sw", "te", "th", "yo", "zh"),
        (2896, 411, 305, 799, 648, 632, 1271, 343, 350, 960, 860, 213, 1252, 482, 828, 733, 119, 393),
        strict=True,
    )
}
OFFICIAL_JUDGEMENTS = {"beir/nfcorpus": 12334, "msmarco-passage-dev": 7437}


def write_folder(
    folder: Path,
    *,
    corpus: str | None = None,
    queries: str | None = None,
    qrels: str | None = None,
    split: str = "test",
) -> Path:
    """Write a folder that reads without complaint, but for the files whose content is given."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(corpus if corpus is not None else jsonl(DOCUMENTS), encoding="utf-8")
    some_queries = jsonl([{"_id": "q2", "text": "two"}, {"_id": "q1", "text": "one"}, {"_id": "q3", "text": "three"}])
    (folder / "queries.jsonl").write_text(queries if queries is not None else some_queries, encoding="utf-8")
    some_qrels = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td4\t1\n"
    (folder / "qrels" / f"{split}.tsv").write_text(qrels if qrels is not None else some_qrels, encoding="utf-8")
    return folder


def jsonl(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def folder_config(
    folder: Path, *, verify: bool = True, split: str = "test", counts: Counts | None = None
) -> DatasetConfig:
    return DatasetConfig(
        name="small",
        sources=("folder",),
        split=split,
        language="en",
        drop_self=True,
        main_metric="ndcg@10",
        path=str(folder),
        verify=verify,
        counts=counts or Counts(),
    )


def test_documents_are_read_in_order_and_an_absent_title_is_empty(tmp_path: Path) -> None:
    """Title absent, null or empty are one thing; unknown keys are nobody's business."""
    assert list(FolderCorpus(write_folder(tmp_path)).documents()) == READ


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 2), (1, 3), (2, None), (3, 99), (4, None), (9, 12)])
def test_a_range_of_documents_is_that_slice_of_all_of_them(tmp_path: Path, start: int, stop: int | None) -> None:
    """Ranges follow Python's slices, beyond the end too."""
    assert list(FolderCorpus(write_folder(tmp_path)).documents(start, stop)) == READ[start:stop]


def test_lines_before_the_start_are_not_parsed(tmp_path: Path) -> None:
    """A shard in the middle costs no JSON parsing of what lies before it: a malformed line there goes unseen."""
    corpus = FolderCorpus(write_folder(tmp_path, corpus="{malformed\n" + jsonl(DOCUMENTS)))
    assert next(corpus.documents(1)) == READ[0]


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n  \n",
        lambda text: text.removesuffix("\n"),
        lambda text: text.replace("\n", "\n\n"),
    ],
    ids=["byte order mark", "CRLF", "blank lines at the end", "no newline at the end", "blank lines between"],
)
def test_harmless_differences_of_files_change_nothing(tmp_path: Path, disguise: Callable[[str], str]) -> None:
    """What editors and other systems do to text files is not an error, in any of the three files."""
    plain = write_folder(tmp_path / "plain")
    disguised = write_folder(
        tmp_path / "disguised",
        **{
            key: disguise((plain / name).read_text(encoding="utf-8"))
            for key, name in (("corpus", "corpus.jsonl"), ("queries", "queries.jsonl"), ("qrels", "qrels/test.tsv"))
        },
    )
    want, got = (load_folder(folder_config(folder)) for folder in (plain, disguised))
    assert list(got.corpus.documents()) == READ
    assert got.queries == want.queries
    assert got.qrels == want.qrels


def test_gzipped_files_read_like_plain_ones(tmp_path: Path) -> None:
    """All three files may be gzipped."""
    folder = write_folder(tmp_path)
    plain = load_folder(folder_config(folder))
    for path in [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load_folder(folder_config(folder))
    assert list(zipped.corpus.documents(1, 3)) == READ[1:3]
    assert (zipped.queries, zipped.qrels) == (plain.queries, plain.qrels)


def test_the_queries_of_a_dataset_are_the_judged_ones_in_file_order(tmp_path: Path) -> None:
    """q3 has no judgement; q2 stands before q1 in queries.jsonl though not in the qrels."""
    dataset = load_folder(folder_config(write_folder(tmp_path)))
    assert dataset.queries == (Query("q2", "two"), Query("q1", "one"))
    assert (dataset.name, dataset.split, dataset.language, dataset.drop_self) == ("small", "test", "en", True)


def test_a_query_with_nothing_but_zero_grades_still_counts(tmp_path: Path) -> None:
    """A judged query that can only score 0 belongs to the mean all the same."""
    dataset = load_folder(folder_config(write_folder(tmp_path, qrels="q3\td1\t0\n")))
    assert dataset.queries == (Query("q3", "three"),)


def test_a_text_keeps_its_own_white_space(tmp_path: Path) -> None:
    """Stripping is the business of `Document.joined` and of the models; the reader changes nothing."""
    folder = write_folder(tmp_path, corpus=jsonl([{"_id": "d", "title": " T", "text": "a\u2028b\n "}]))
    assert list(FolderCorpus(folder).documents()) == [Document("d", " T", "a\u2028b\n ")]


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-2\n",
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t-2\n",
        "q1 0 d1 2\nq1 0 d2 0\nq2 Q0 d1 -2\n",
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t-2\nq1\td1\t2\n",
        "q1\td1\t2.0\nq1\td2\t-0.0\nq2\td1\t-2.\n",
        "query-id\tcorpus-id\tscore\r\n\ufeffq1\td1\t+2\t\r\nq1 d2 0\r\nq2\t d1 \t-2e0\r\n",
    ],
    ids=["BEIR", "no header", "TREC", "a pair twice with one grade", "floats", "other white space"],
)
def test_every_form_of_judgements_gives_the_same_grades(tmp_path: Path, text: str) -> None:
    """Zero and negative grades are kept."""
    path = tmp_path / "test.tsv"
    path.write_text(text, encoding="utf-8")
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -2}}


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """The same bytes elsewhere and later have the same fingerprint; one other byte has another."""
    one, same, other = (write_folder(tmp_path / name) for name in ("one", "same", "other"))
    text = (other / "corpus.jsonl").read_text(encoding="utf-8").replace("first", "fIrst")
    (other / "corpus.jsonl").write_text(text, encoding="utf-8")
    assert FolderCorpus(one).fingerprint() == FolderCorpus(same).fingerprint()
    assert FolderCorpus(one).fingerprint() != FolderCorpus(other).fingerprint()


def test_a_folder_comes_before_any_other_source(tmp_path: Path) -> None:
    """`dataset=beir/nfcorpus dataset.path=DIR` reads DIR; ir-datasets is not asked."""
    config = DatasetConfig(
        name="beir/nfcorpus",
        sources=("ir_datasets",),
        ir_datasets_id="beir/nfcorpus/test",
        split="test",
        language="en",
        drop_self=True,
        main_metric="ndcg@10",
        path=str(write_folder(tmp_path)),
    )
    assert len(datasets.load(config).queries) == 2


def test_memory_stays_flat_while_a_corpus_grows_tenfold(tmp_path: Path) -> None:
    """Iterating keeps nothing of what was read; both files are larger than the reader's buffer."""
    peaks = []
    for documents in (2_000, 20_000):
        rows = ({"_id": f"d{number}", "text": "some words of text " * 100} for number in range(documents))
        corpus = FolderCorpus(write_folder(tmp_path / str(documents), corpus=jsonl(rows)))
        tracemalloc.start()
        assert sum(1 for _ in corpus.documents()) == documents
        assert corpus.fingerprint()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


def test_nfcorpus_has_its_published_counts(tmp_path: Path) -> None:
    """The real set: 3,633 documents, 323 queries, 12,334 judgements, every judged document present."""
    counts = Counts(documents=3633, queries=323, judgements=12334)
    config = folder_config(shared_data("nfcorpus"), counts=counts)
    dataset = datasets.load(config)
    surveyed = survey(
        dataset.corpus,
        shard_tokens=100_000,
        max_document_tokens=300,
        cache_dir=tmp_path,
        name=dataset.name,
        judged_ids=datasets.judged_ids(dataset),
    )
    assert datasets.deviations(dataset, surveyed, config) == ()
    assert (surveyed.documents, len(dataset.queries), surveyed.missing) == (3633, 323, ())
    assert sum(map(len, dataset.qrels.values())) == 12334


@pytest.mark.parametrize("name", OFFICIAL_QUERIES)
def test_official_judgements_parse_with_their_published_counts(name: str) -> None:
    """Real queries and judgements of every set of the card that is at hand."""
    folder = shared_data("topics_qrels") / name
    split = "test" if name.startswith("beir/") else "dev"
    qrels = read_qrels(qrels_file(folder, split))
    queries = read_queries(folder / "queries.jsonl")
    assert {query.id for query in queries} >= qrels.keys()
    assert sum(query.id in qrels for query in queries) == OFFICIAL_QUERIES[name]
    assert name not in OFFICIAL_JUDGEMENTS or sum(map(len, qrels.values())) == OFFICIAL_JUDGEMENTS[name]
