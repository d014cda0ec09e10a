"""Reading through ir-datasets, from small collections laid where and how the package keeps the real ones.

The package verifies the checksum of what it downloads, and trusts a file that already lies at its place. So a BEIR zip
written here to beir/<set>/source.zip is read as the downloaded one would be, through the package's own code and without
the network; likewise the gzipped files of MIRACL and the TSV files of mMARCO. The package fixes IR_DATASETS_HOME when
it is imported, and other libraries import it; so everything is read once in a process of its own, and the tests look at
what that process found. Its proxy is a closed port: whatever asks for the network fails at once.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evalkit.datasets import irds

SETS = ("beir/nfcorpus/test", "beir/fiqa/test", "miracl/te/dev", "mmarco/v2/dt/dev/small", "msmarco-passage/dev/small")
PROBE = """
import json, os, pickle, sys, tracemalloc
from types import SimpleNamespace
import ir_datasets
from evalkit import datasets
from evalkit.config.settings import DatasetConfig
from evalkit.datasets import irds, splits
from evalkit.datasets.irds import IrdsCorpus
from evalkit.errors import DatasetError

opened = []
original = ir_datasets.util.GzipExtract.stream
ir_datasets.util.GzipExtract.stream = lambda self: (opened.append(1), original(self))[1]

def config(identifier, split=None):
    split = split or ("dev" if "/dev" in str(identifier) else "test")
    return DatasetConfig(name="small", sources=("ir_datasets",), ir_datasets_id=identifier, split=split, language="en",
                         drop_self=True, main_metric="ndcg@10")

def refusal(action):
    try:
        action()
    except DatasetError as error:
        return str(error)

found = {}
for identifier in sys.argv[2:]:
    dataset = datasets.load(config(identifier))
    corpus = dataset.corpus
    whole = list(corpus.documents())
    found[identifier] = {
        "documents": whole,
        "queries": dataset.queries,
        "qrels": dataset.qrels,
        "slices": all(list(corpus.documents(a, b)) == whole[a:b] for a in range(6) for b in (None, *range(7))),
        "travelled": list(pickle.loads(pickle.dumps(corpus)).documents(1, 2)) == whole[1:2],
        "fingerprints": [corpus.fingerprint(), corpus.fingerprint()],
        "stored": irds.stored(identifier),
        "files": sorted(os.path.relpath(path, os.environ["IR_DATASETS_HOME"]) for path in corpus.stored_files()),
        "source": dataset.source,
    }

corpus = IrdsCorpus("miracl/te/dev")
opened.clear()
found["consecutive"] = [list(corpus.documents(*bounds)) for bounds in ((0, 2), (2, 3), (3, 9))]
found["files opened by consecutive ranges"] = len(opened)
abandoned = corpus.documents(0, 3)
next(abandoned)
abandoned.close()
found["after an abandoned range"] = list(corpus.documents(1, 3))

found["refusals"] = {
    "unknown": refusal(lambda: datasets.load(config("beir/nfcorpsu/test"))),
    "unknown family": refusal(lambda: datasets.load(config("qqq/xx"))),
    "none": refusal(lambda: datasets.load(config(None))),
    "other split": refusal(lambda: datasets.load(config("beir/nfcorpus/test", "dev"))),
    "a split of none": refusal(lambda: datasets.load(config("beir/scidocs", "dev"))),
    "a longer name": refusal(lambda: datasets.load(config("wikir/en1k/training", "test"))),
    "a numbered name": refusal(lambda: datasets.load(config("trec-tot/2025/dev1", "test"))),
    "several splits": refusal(lambda: datasets.load(config("mr-tydi/sw", "test"))),
    "three fields": refusal(lambda: datasets.load(config("istella22/test", "test"))),
    "parent": refusal(lambda: datasets.load(config("beir/nfcorpus"))),
    "unfetchable": refusal(lambda: datasets.load(config("beir/scifact/test"))),
    "unfetchable corpus": refusal(lambda: IrdsCorpus("miracl/sw/dev").fingerprint()),
    "damaged": refusal(lambda: datasets.load(config("beir/arguana"))),
    "damaged corpus": refusal(lambda: list(IrdsCorpus("miracl/yo/dev").documents())),
    "unjudged": refusal(lambda: datasets.load(config("beir/nq"))),
    "half a zip": refusal(lambda: datasets.load(config("beir/scidocs"))),
    "too few columns": refusal(lambda: list(IrdsCorpus("mmarco/v2/vi/dev/small").documents())),
    "qrels of too few columns": refusal(lambda: datasets.load(config("miracl/fi/dev"))),
    "two grades": refusal(lambda: datasets.load(config("miracl/ar/dev"))),
    "empty query": refusal(lambda: datasets.load(config("miracl/es/dev"))),
    "query twice": refusal(lambda: datasets.load(config("miracl/fa/dev"))),
    "text null": refusal(lambda: list(IrdsCorpus("miracl/hi/dev").documents())),
    "id with a space": refusal(lambda: list(IrdsCorpus("miracl/id/dev").documents())),
    "grade out of range": refusal(lambda: datasets.load(config("miracl/th/dev"))),
}
found["other splits"] = splits.others(config("miracl/te/dev"), {"7"})
films = datasets.load(config("trec-tot/2023/train", "train"))
found["films"] = {"documents": list(films.corpus.documents()), "queries": films.queries}
found["training"] = datasets.load(config("wikir/en1k/training", "train")).qrels
found["peaks"] = {}
for identifier in ("mmarco/v2/it/dev/small", "mmarco/v2/pt/dev/small", "miracl/bn/dev", "miracl/ko/dev"):
    corpus = IrdsCorpus(identifier)
    next(corpus.documents())  # what the package loads once is not what grows
    tracemalloc.start()
    count = sum(1 for _ in corpus.documents())
    found["peaks"][identifier] = [count, tracemalloc.get_traced_memory()[1]]
    tracemalloc.stop()
found["store peaks"] = {}
for identifier in ("beir/quora/test", "beir/climate-fever"):
    corpus = IrdsCorpus(identifier)
    list(corpus.documents(0, 0))  # the package builds its store, and holds every id while it does
    tracemalloc.start()
    count = sum(1 for _ in corpus.documents())
    shards = sum(1 for start in range(0, count, 500) for _ in corpus.documents(start, start + 500))
    corpus.fingerprint()
    found["store peaks"][identifier] = [count, shards, tracemalloc.get_traced_memory()[1]]
    tracemalloc.stop()
second = ir_datasets.util.home_path() / "miracl/v1.0/te/docs/docs-1.jsonl.gz"
os.utime(second, (0, 0))
found["fingerprint after a change of the second file"] = IrdsCorpus("miracl/te/dev").fingerprint()
second.rename(second.with_suffix(".aside"))
found["stored without its second file"] = irds.stored("miracl/te/dev")
store = ir_datasets.util.home_path() / "beir/fiqa"
(store / "source.zip").unlink()
found["stored as a document store alone"] = irds.stored("beir/fiqa/test")
(store / "docs.pklz4" / "bin.pos").unlink()
found["stored as half a document store"] = irds.stored("beir/fiqa/test")
found["stored in another version"] = irds.stored("beir/webis-touche2020/v2")
found["not stored"] = [irds.stored(name) for name in ("beir/scifact/test", "miracl/sw/dev", "mmarco/v2/ja/dev/small")]
for name in ("fever", "hotpotqa"):
    found["refusals"][name] = refusal(lambda: datasets.load(config(f"beir/{name}/test")))
found["climbing"] = len(list(datasets.load(config("beir/trec-covid")).corpus.documents()))
irds._dataset = lambda name: SimpleNamespace(
    qrels_iter=lambda: [SimpleNamespace(query_id="7", doc_id="1#0", relevance="high")]
)
found["refusals"]["grade in words"] = refusal(lambda: irds.judgements("miracl/te/dev"))
json.dump(found, open(sys.argv[1], "w"))
"""


def lay_beir(home: Path, name: str, *, corpus: list[dict[str, Any]], queries: list[dict[str, Any]], qrels: str) -> None:
    """Write beir/<name>/source.zip with the members that the real zip has."""
    folder = home / "beir" / name
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "source.zip", "w") as file:
        file.writestr(f"{name}/corpus.jsonl", "".join(json.dumps(row) + "\n" for row in corpus))
        file.writestr(f"{name}/queries.jsonl", "".join(json.dumps(row) + "\n" for row in queries))
        file.writestr(f"{name}/qrels/test.tsv", f"query-id\tcorpus-id\tscore\n{qrels}")


def lay_odd_languages(home: Path) -> None:
    """Write MIRACL collections that are damaged, one way each."""
    damaged = home / "miracl" / "v1.0" / "yo" / "docs"
    damaged.mkdir(parents=True)
    (damaged / "docs-1.jsonl.gz").write_bytes(gzip.compress(b'{"docid": "0#0", "title": "", "text": "x"}\n')[:-12])

    for language, topics, qrels in (
        ("fi", "7\tx\n", "7\tQ0\t1#0\n"),
        ("th", "7\tx\n", "7\tQ0\t1#0\t300\n"),
        ("ar", "7\tx\n", "7\tQ0\t1#0\t1\n7\tQ0\t1#0\t0\n"),
        ("es", "7\t \n", "7\tQ0\t1#0\t1\n"),
        ("fa", "7\tx\n7\ty\n", "7\tQ0\t1#0\t1\n"),
    ):
        folder = home / "miracl" / "v1.0" / language / "dev"
        folder.mkdir(parents=True)
        (folder / "topics.tsv").write_text(topics, encoding="utf-8")
        (folder / "qrels.tsv").write_text(qrels, encoding="utf-8")

    for language, entry in (
        ("hi", {"docid": "0#0", "title": None, "text": None}),
        ("id", {"docid": "0 0", "title": None, "text": "x"}),
    ):
        folder = home / "miracl" / "v1.0" / language / "docs"
        folder.mkdir(parents=True)
        (folder / "docs-0.jsonl.gz").write_bytes(gzip.compress(f"{json.dumps(entry)}\n".encode()))


def lay_odd_names(home: Path) -> None:
    """Write a collection whose titles have other names, one whose split has, and a split with two grades for a pair."""
    (home / "miracl" / "v1.0" / "te" / "train").mkdir()
    doubled = home / "miracl" / "v1.0" / "te" / "train" / "qrels.tsv"
    doubled.write_text("7\tQ0\t1#0\t1\n7\tQ0\t1#0\t0\n", encoding="utf-8")
    films = home / "trec-tot" / "2023"
    (films / "train").mkdir(parents=True)
    others = {"wikidata_id": "", "wikidata_classes": [], "sections": {}, "infoboxes": []}
    titled = (("1", "Vertigo", "a film of 1958"), ("2", None, "no title"))
    rows = [{"doc_id": name, "page_title": title, "text": text, **others} for name, title, text in titled]
    (films / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    asked = {"id": "q", "title": "Fear of heights", "text": "which film", "url": "", "domain": ""}
    (films / "train" / "queries.jsonl").write_text(json.dumps({**asked, "sentence_annotations": []}), encoding="utf-8")
    (films / "train" / "qrel.txt").write_text("q 0 1 1\n", encoding="utf-8")
    wikipedia = home / "wikir" / "en1k" / "wikIR1k"
    (wikipedia / "training").mkdir(parents=True)
    (wikipedia / "documents.csv").write_text("id_right,text_right\n1,one\n2,two\n", encoding="utf-8")
    (wikipedia / "training" / "queries.csv").write_text("id_left,text_left\n1,first\n", encoding="utf-8")
    (wikipedia / "training" / "qrels").write_text("1 0 1 1\n", encoding="utf-8")


def lay_everything(home: Path) -> None:
    with_url = {"metadata": {"url": "https://example.org"}}
    lay_beir(
        home,
        "nfcorpus",
        corpus=[{"_id": f"MED-{n}", "title": f"Title {n}", "text": f" text {n}", **with_url} for n in range(5)],
        queries=[{"_id": f"PLAIN-{n}", "text": f"query {n}", **with_url} for n in range(3)],
        qrels="PLAIN-2\tMED-1\t2\nPLAIN-0\tMED-4\t0\n",
    )
    lay_beir(
        home,
        "fiqa",
        corpus=[{"_id": "3", "text": "no title", "metadata": {}}],
        queries=[{"_id": "q", "text": "money", "metadata": {}}],
        qrels="q\t3\t1\n",
    )
    for name, count in (("quora", 2_000), ("climate-fever", 20_000)):
        rows = [{"_id": str(n), "title": "t", "text": f"text {n} " * 9, "metadata": {}} for n in range(count)]
        lay_beir(home, name, corpus=rows, queries=[], qrels="")
    lay_beir(home, "nq", corpus=[], queries=[{"_id": "q", "text": "x", "metadata": {}}], qrels="other\td\t1\n")
    lay_beir(home, "webis-touche2020", corpus=[], queries=[], qrels="")
    for name, identifier, text in (("fever", "7", None), ("hotpotqa", "7", "\ud800")):
        odd = {"_id": identifier, "text": text, "metadata": {}}
        lay_beir(home, name, corpus=[], queries=[odd], qrels=f"{identifier}\td\t1\n")
    (home / "beir" / "arguana").mkdir()
    (home / "beir" / "arguana" / "source.zip").write_bytes(b"not a zip")

    telugu = home / "miracl" / "v1.0" / "te"
    (telugu / "docs").mkdir(parents=True)
    (telugu / "dev").mkdir()
    for number, ids in enumerate((("0#0", "0#1", "1#0"), ("2#0", "2#1"))):
        rows = [{"docid": each, "title": "శీర్షిక", "text": f"వచనం {each}"} for each in ids]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (telugu / "docs" / f"docs-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (telugu / "dev" / "topics.tsv").write_text("7\tప్రశ్న\n8\tunjudged\n", encoding="utf-8")
    (telugu / "dev" / "qrels.tsv").write_text("7\tQ0\t1#0\t1\n7\tQ0\t2#1\t0\n", encoding="utf-8")
    lay_beir(
        home,
        "scidocs",
        corpus=[],
        queries=[{"_id": str(n), "text": "x" * n, "metadata": {}} for n in range(999)],
        qrels="1\td\t1\n",
    )
    whole = (home / "beir" / "scidocs" / "source.zip").read_bytes()
    (home / "beir" / "scidocs" / "source.zip").write_bytes(whole[: len(whole) // 2])
    covid = {"query": "", "narrative": "", "url": "", "pubmed_id": ""}
    lay_beir(
        home,
        "trec-covid",
        corpus=[{"_id": "d", "title": "", "text": "x", "metadata": covid}],
        queries=[{"_id": "q", "text": "x", "metadata": covid}],
        qrels="q\td\t1\n",
    )
    with zipfile.ZipFile(home / "beir" / "trec-covid" / "source.zip", "a") as file:
        file.writestr("../../../escaped.txt", "outside")
        link = zipfile.ZipInfo("trec-covid/link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")

    marco = home / "msmarco-passage"
    (marco / "dev" / "small").mkdir(parents=True)
    (marco / "irds_version.txt").write_text("v2", encoding="utf-8")
    (marco / "collection.tsv").write_text("0\tone\n1\ttwo\n", encoding="utf-8")
    (marco / "dev" / "small" / "queries.tsv").write_text("1048585\twho\n", encoding="utf-8")
    (marco / "dev" / "small" / "qrels").write_text("1048585\t0\t1\t1\n", encoding="utf-8")

    dutch = home / "mmarco" / "v2"
    dutch.mkdir(parents=True)
    (dutch / "dutch_collection.tsv").write_text("0\teen\n1\ttwee\n2\tdrie\n", encoding="utf-8")
    (dutch / "dutch.queries.dev.tsv").write_text("9\tvraag\n10\tniet beoordeeld\n", encoding="utf-8")
    (dutch / "vietnamese_collection.tsv").write_text("0\tmot\n1 hai\n", encoding="utf-8")
    for language, count in (("italian", 2_000), ("portuguese", 20_000)):
        rows = "".join(f"{number}\tparole {number} parole\n" for number in range(count))
        (dutch / f"{language}_collection.tsv").write_text(rows, encoding="utf-8")
    for language, count in (("bn", 2_000), ("ko", 20_000)):
        folder = home / "miracl" / "v1.0" / language / "docs"
        folder.mkdir(parents=True)
        rows = "".join(json.dumps({"docid": f"{n}#0", "title": "t", "text": f"text {n}"}) + "\n" for n in range(count))
        for number in range(3):  # as many files as Korean has, one of them full
            (folder / f"docs-{number}.jsonl.gz").write_bytes(gzip.compress(rows.encode() if number == 0 else b""))
    (home / "mmarco" / "qrels.dev.small.tsv").write_text("9\t0\t2\t1\n", encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process of its own reads from the collections that this file lays."""
    home = tmp_path_factory.mktemp("ir_datasets")
    lay_everything(home)
    lay_odd_languages(home)
    lay_odd_names(home)
    environment = {
        **os.environ,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
        "IR_DATASETS_HOME": str(home),
        "IR_DATASETS_TMP": str(home / "tmp"),
        "IR_DATASETS_DL_TRIES": "1",
    }
    result = home / "found.json"
    subprocess.run([sys.executable, "-c", PROBE, str(result), *SETS], env=environment, check=True, timeout=600)
    read: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    read["home"] = str(home)
    return read


def test_a_beir_zip_at_its_place_is_read_without_the_network(found: dict[str, Any]) -> None:
    """Documents with their titles, texts as they are, judged queries in file order, zero grades kept."""
    read = found["beir/nfcorpus/test"]
    assert read["documents"] == [[f"MED-{n}", f"Title {n}", f" text {n}"] for n in range(5)]
    assert read["queries"] == [["PLAIN-0", "query 0"], ["PLAIN-2", "query 2"]]
    assert read["qrels"] == {"PLAIN-2": {"MED-1": 2}, "PLAIN-0": {"MED-4": 0}}


def test_a_collection_without_titles_has_empty_ones(found: dict[str, Any]) -> None:
    """FiQA's documents are id and text."""
    assert found["beir/fiqa/test"]["documents"] == [["3", "", "no title"]]


def test_miracl_is_read_across_its_files_with_titles(found: dict[str, Any]) -> None:
    """Telugu's corpus lies in two gzipped files; ids hold a passage number."""
    read = found["miracl/te/dev"]
    assert [document[0] for document in read["documents"]] == ["0#0", "0#1", "1#0", "2#0", "2#1"]
    assert read["documents"][2] == ["1#0", "శీర్షిక", "వచనం 1#0"]
    assert read["queries"] == [["7", "ప్రశ్న"]]
    assert read["qrels"] == {"7": {"1#0": 1, "2#1": 0}}


def test_mmarco_is_read_from_its_tables(found: dict[str, Any]) -> None:
    """Dutch is `dt` to the package; dev/small takes the judged ones of all dev queries."""
    read = found["mmarco/v2/dt/dev/small"]
    assert read["documents"] == [["0", "", "een"], ["1", "", "twee"], ["2", "", "drie"]]
    assert read["queries"] == [["9", "vraag"]]
    assert read["qrels"] == {"9": {"2": 1}}


def test_ms_marco_is_read_from_its_tables(found: dict[str, Any]) -> None:
    """As the package extracts them from collectionandqueries.tar.gz; there are no titles."""
    read = found["msmarco-passage/dev/small"]
    assert read["documents"] == [["0", "", "one"], ["1", "", "two"]]
    assert read["queries"] == [["1048585", "who"]]
    assert read["qrels"] == {"1048585": {"1": 1}}


def test_what_is_on_disk_is_known_without_fetching(found: dict[str, Any]) -> None:
    """`evalkit ls datasets` must not start a download."""
    assert all(found[identifier]["stored"] for identifier in SETS)
    assert found["not stored"] == [False, False, False]


def test_what_is_only_partly_on_disk_is_not_on_disk(found: dict[str, Any]) -> None:
    """One of two gzipped files, a document store that was being built, the first version's files of a set."""
    assert not found["stored without its second file"]
    assert found["stored as a document store alone"]
    assert not found["stored as half a document store"]
    assert not found["stored in another version"]


@pytest.mark.parametrize(
    ("identifier", "files"),
    [
        ("beir/fiqa/test", {"beir/fiqa/source.zip", "beir/fiqa/docs.pklz4/bin"}),
        (
            "miracl/te/dev",
            {f"miracl/v1.0/te/{name}" for name in ("docs/docs-0.jsonl.gz", "docs/docs-1.jsonl.gz", "dev/topics.tsv")},
        ),
        ("mmarco/v2/dt/dev/small", {"mmarco/v2/dutch_collection.tsv", "mmarco/v2/dutch.queries.dev.tsv"}),
        ("msmarco-passage/dev/small", {"msmarco-passage/collection.tsv", "msmarco-passage/irds_version.txt"}),
    ],
)
def test_the_files_to_move_are_those_of_one_dataset(found: dict[str, Any], identifier: str, files: set[str]) -> None:
    """Not those of another language that lies in the same folder."""
    there = set(found[identifier]["files"])
    assert files <= there
    assert not any("vietnamese" in name for name in there)


def test_the_source_of_a_collection_is_named_with_the_packages_version(found: dict[str, Any]) -> None:
    """A result records it."""
    assert found["miracl/te/dev"]["source"].startswith("ir_datasets 0.")
    assert found["miracl/te/dev"]["source"].endswith(" miracl/te/dev")


def test_members_of_a_zip_that_lead_elsewhere_are_never_written(found: dict[str, Any]) -> None:
    """Only the three members that a BEIR zip has are read; a `../` path and a link in it have no effect."""
    assert found["climbing"] == 1
    assert not list(Path(found["home"]).parent.rglob("escaped.txt"))
    assert not [path for path in Path(found["home"]).rglob("*") if path.is_symlink()]


def test_a_relevance_out_of_range_is_refused(found: dict[str, Any]) -> None:
    """A column was mistaken for the grade."""
    assert found["refusals"]["grade out of range"].startswith(
        "dataset small: got relevance 300 for document '1#0' (judged for query '7'), wanted -10 to 100; "
    )


@pytest.mark.parametrize("identifier", SETS)
def test_any_range_is_that_slice_of_all_documents(found: dict[str, Any], identifier: str) -> None:
    """In any order, beyond the end, empty, and after travelling to another process."""
    assert found[identifier]["slices"]
    assert found[identifier]["travelled"]


def test_consecutive_ranges_cost_one_pass(found: dict[str, Any]) -> None:
    """The stream stays open between shards: each of the two files is opened once, not once for every shard."""
    whole = found["miracl/te/dev"]["documents"]
    assert found["consecutive"] == [whole[0:2], whole[2:3], whole[3:]]
    assert found["files opened by consecutive ranges"] == 2


def test_an_abandoned_range_leaves_nothing_behind(found: dict[str, Any]) -> None:
    """After a consumer stopped amid a range, the next one starts afresh."""
    assert found["after an abandoned range"] == found["miracl/te/dev"]["documents"][1:3]


def test_no_document_store_is_built_where_streaming_does(found: dict[str, Any]) -> None:
    """BEIR's reader always builds one; MIRACL and mMARCO are spared the second copy."""
    stores = sorted(path.relative_to(found["home"]).as_posix() for path in Path(found["home"]).rglob("*.pklz4"))
    assert stores == [
        f"beir/{name}/docs.pklz4" for name in ("climate-fever", "fiqa", "nfcorpus", "quora", "trec-covid")
    ]


def test_memory_stays_flat_while_a_collection_grows_tenfold(found: dict[str, Any]) -> None:
    """Of 2,000 and of 20,000 documents, in a table and in gzipped files, one at a time is held."""
    for small, large in (("mmarco/v2/it/dev/small", "mmarco/v2/pt/dev/small"), ("miracl/bn/dev", "miracl/ko/dev")):
        (few, low), (many, high) = found["peaks"][small], found["peaks"][large]
        assert (few, many) == (2_000, 20_000)
        assert high < 1.2 * low + 50_000


def test_memory_stays_flat_while_a_document_store_grows_tenfold(found: dict[str, Any]) -> None:
    """Whole, in shards, and for the fingerprint; the package's index of ids is left alone."""
    (few, few_in_shards, low), (many, many_in_shards, high) = found["store peaks"].values()
    assert (few, few_in_shards, many, many_in_shards) == (2_000, 2_000, 20_000, 20_000)
    assert high < 1.2 * low + 50_000


@pytest.mark.parametrize("identifier", ["beir/nfcorpus/test", "miracl/te/dev", "mmarco/v2/dt/dev/small"])
def test_a_fingerprint_names_the_collection_and_stays(found: dict[str, Any], identifier: str) -> None:
    """Id, the package's version, and the files' sizes and times."""
    one, again = found[identifier]["fingerprints"]
    assert one == again
    assert one.startswith(f"{identifier}-0.")


def test_a_fingerprint_changes_with_any_of_a_collections_files(found: dict[str, Any]) -> None:
    """Else an old survey, and vectors stored under its shards' names, would be believed of other texts."""
    assert found["fingerprint after a change of the second file"] not in found["miracl/te/dev"]["fingerprints"]


def test_an_unknown_id_is_refused_with_the_nearest(found: dict[str, Any]) -> None:
    """Within the family of the id, or with the families where there is no such family."""
    message = found["refusals"]["unknown"]
    assert message.startswith("ir_datasets_id='beir/nfcorpsu/test': got an id that ir-datasets 0.")
    assert " does not know, wanted one that it does; did you mean beir/nfcorpus/test" in message
    assert "; valid: " in found["refusals"]["unknown family"]
    assert " beir, " in found["refusals"]["unknown family"]


def test_a_config_without_an_id_is_refused(found: dict[str, Any]) -> None:
    """`source: ir_datasets` needs to say which."""
    assert found["refusals"]["none"] == (
        "dataset small: got no ir_datasets_id, wanted one such as beir/scifact/test; set dataset.ir_datasets_id"
    )


def test_judgements_of_one_split_are_not_read_under_the_name_of_another(found: dict[str, Any]) -> None:
    assert found["refusals"]["other split"] == (
        "dataset small: got split 'dev' and ir_datasets_id 'beir/nfcorpus/test', wanted the same split in both; "
        "set dataset.split=test, or an id of that split (beir/nfcorpus/dev)"
    )
    assert found["refusals"]["a split of none"] == (
        "dataset small: got split 'dev' and ir_datasets_id 'beir/scidocs', wanted the same split in both; "
        "set dataset.split=test"
    )


@pytest.mark.parametrize(
    ("case", "identifier", "remedy"),
    [
        ("a longer name", "wikir/en1k/training", "train, or an id of that split (wikir/en1k/test)"),
        ("a numbered name", "trec-tot/2025/dev1", "dev, or an id of that split (trec-tot/2025/test)"),
    ],
)
def test_a_split_is_known_by_its_other_names(found: dict[str, Any], case: str, identifier: str, remedy: str) -> None:
    """Both were read under the name test."""
    assert found["refusals"][case] == (
        f"dataset small: got split 'test' and ir_datasets_id {identifier!r}, wanted the same split in both; "
        f"set dataset.split={remedy}"
    )
    assert found["training"] == {"1": {"1": 1}}


def test_all_splits_together_are_not_read_as_one(found: dict[str, Any]) -> None:
    """The judgements of mr-tydi/sw are those of its three splits."""
    assert found["refusals"]["several splits"] == (
        "dataset small: got split 'test' and ir_datasets_id 'mr-tydi/sw', which has the judgements of several splits "
        "together, wanted one split; set dataset.ir_datasets_id to that of one "
        "(mr-tydi/sw/dev, mr-tydi/sw/test, mr-tydi/sw/train)"
    )


def test_titles_are_read_whatever_their_field_is_called(found: dict[str, Any]) -> None:
    """trec-tot/2023 has a page_title for documents, and a title for queries: both are part of the text there."""
    assert found["films"] == {
        "documents": [["1", "Vertigo", "a film of 1958"], ["2", "", "no title"]],
        "queries": [["q", "Fear of heights which film"]],
    }


def test_documents_of_more_fields_than_a_title_and_a_text_are_refused(found: dict[str, Any]) -> None:
    assert found["refusals"]["three fields"] == (
        "dataset small: got documents of fields title + text + extra_text from ir_datasets id 'istella22/test', wanted "
        "text, or title and text; write them to a BEIR-format folder"
    )


def test_an_id_without_judgements_is_refused_with_its_split(found: dict[str, Any]) -> None:
    """`beir/nfcorpus` is documents and queries; its splits have the judgements."""
    message = found["refusals"]["parent"]
    assert message.startswith(
        "dataset small: got ir_datasets_id 'beir/nfcorpus' without qrels, wanted documents and queries with text, and "
        "judgements; did you mean beir/nfcorpus/test"
    )


@pytest.mark.parametrize(
    ("case", "identifier", "reason"),
    [
        ("unfetchable", "beir/scifact/test", "ProxyError: "),
        ("unfetchable corpus", "miracl/sw/dev", "ProxyError: "),
        ("damaged", "beir/arguana", "BadZipFile: File is not a zip file"),
        ("damaged corpus", "miracl/yo/dev", "EOFError: "),
        ("half a zip", "beir/scidocs", "BadZipFile: File is not a zip file"),
        ("too few columns", "mmarco/v2/vi/dev/small", "RuntimeError: "),
        ("qrels of too few columns", "miracl/fi/dev", "RuntimeError: "),
    ],
)
def test_files_that_cannot_be_had_or_read_are_refused(
    found: dict[str, Any], case: str, identifier: str, reason: str
) -> None:
    """The package's own reason, and the three ways out: network, files by hand, another source."""
    message = found["refusals"][case]
    assert "\n" not in message
    assert message.startswith(f"ir_datasets id {identifier!r}: got {reason}")
    assert message.endswith(
        ", wanted its whole files on disk or a download; check the network, delete damaged files under "
        f"{found['home']} or copy complete ones there, or give a BEIR-format folder by dataset.path=DIR"
    )


@pytest.mark.parametrize(
    ("case", "language", "complaint"),
    [
        ("two grades", "ar", "grades 1 and 0 for query '7' and document '1#0', wanted one for a pair"),
        ("empty query", "es", "query '7' with empty text, wanted some text"),
        ("query twice", "fa", "a query id twice, wanted every id once"),
    ],
)
def test_queries_and_judgements_are_held_to_the_folders_rules(
    found: dict[str, Any], case: str, language: str, complaint: str
) -> None:
    """The package itself lets the last of two grades win, and an empty query through."""
    remedy = f"delete its files under {found['home']} and get them again"
    assert found["refusals"][case] == f"ir_datasets id 'miracl/{language}/dev': got {complaint}; {remedy}"


def test_another_split_is_held_to_the_same_rules(found: dict[str, Any]) -> None:
    others, unread = found["other splits"]
    assert others == []
    (line,) = unread
    assert line.startswith("split train: ir_datasets id 'miracl/te/train': got grades 1 and 0 for query '7'")


@pytest.mark.parametrize(
    ("case", "got"),
    [("text null", "document '0#0' with text None"), ("id with a space", "document '0 0' with text 'x'")],
)
def test_a_document_that_no_run_file_or_model_can_take_is_refused(found: dict[str, Any], case: str, got: str) -> None:
    """A title that is null is none."""
    assert f": got ValueError: {got}, wanted an id without white space and text, " in found["refusals"][case]


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("fever", "query '7' with text None, wanted an id without white space and text"),
        ("hotpotqa", "query '7' with half a surrogate pair in its text, wanted text that UTF-8 can hold"),
    ],
)
def test_a_query_that_no_run_file_or_model_can_take_is_refused(found: dict[str, Any], name: str, got: str) -> None:
    assert f": got ValueError: {got}, " in found["refusals"][name]


def test_a_query_id_with_white_space_is_refused() -> None:
    with pytest.raises(ValueError, match="query '7 8' with text 'x', wanted an id without white space and text"):
        irds._query(SimpleNamespace(query_id="7 8", text="x"))


def test_a_grade_that_is_no_number_is_refused(found: dict[str, Any]) -> None:
    assert found["refusals"]["grade in words"] == (
        "ir_datasets id 'miracl/te/dev': got a judgement ('7', '1#0', 'high'), wanted two ids as text and a whole "
        f"number; delete its files under {found['home']} and get them again"
    )


def test_no_query_with_a_judgement_is_refused(found: dict[str, Any]) -> None:
    """There would be no mean to take."""
    assert found["refusals"]["unjudged"] == (
        "dataset small: got no query with a judgement from ir_datasets id 'beir/nq', wanted at least one; "
        "delete its files under IR_DATASETS_HOME and get them again"
    )
