"""The integrity report and the comparison of two sources, on collections small enough to count by eye."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from shared_material import shared_data

from evalkit import datasets
from evalkit.config.compose import compose
from evalkit.datasets.integrity import agree, integrity
from evalkit.errors import DatasetError
from evalkit.report import table
from evalkit.run import pipeline
from evalkit.types import Dataset, Document, Query


@dataclass(frozen=True)
class ListCorpus:
    listed: Sequence[Document]

    def fingerprint(self) -> str:
        return str(hash(tuple(self.listed)))

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        yield from self.listed[start:stop]


DOCUMENTS = (
    Document("a", "T", "x"),
    Document("b", "", "T x"),
    Document("c", "", " "),
    Document("q1", "", "y"),
    Document("d", "T", "x"),
)


def small(source: str = "one", documents: Sequence[Document] = DOCUMENTS) -> Dataset:
    return Dataset(
        name="small",
        split="test",
        language="en",
        corpus=ListCorpus(documents),
        queries=(Query("q1", "x"), Query("q2", "y")),
        qrels={"q1": {"a": 1, "gone": 2}, "q2": {"b": 0}},
        drop_self=False,
        main_metric="ndcg@10",
        query_groups={},
        source=source,
        unjudged_queries=4,
    )


def test_every_oddity_is_counted_with_the_first_examples() -> None:
    """b and d read like a (title and text joined); c is blank; q1 is a query too; q2 has no relevant document."""
    found = integrity(small())
    assert (found.documents, found.duplicates, found.duplicate_examples) == (5, 2, ("b", "d"))
    assert (found.empty_documents, found.missing_documents) == (1, 1)
    assert (found.queries, found.unjudged_queries, found.irrelevant_queries) == (2, 4, 1)
    assert (found.shared_ids, found.shared_examples) == (1, ("q1",))
    assert "texts that occurred before        2 (b, d)" in found.lines()


def test_nfcorpus_has_40_texts_twice_and_nothing_else_that_is_odd() -> None:
    """MTEB counts 3,593 distinct texts among its 3,633 documents."""
    config = compose(["dataset=beir/nfcorpus", f"dataset.path={shared_data('nfcorpus')}"])
    found = integrity(datasets.load(config.dataset))
    assert (found.documents, found.duplicates, found.documents - found.duplicates) == (3633, 40, 3593)
    assert (found.empty_documents, found.missing_documents, found.shared_ids, found.irrelevant_queries) == (0, 0, 0, 0)
    assert (found.queries, found.unjudged_queries) == (323, 2914)


def test_sources_that_hold_the_same_agree() -> None:
    assert agree(small(), small("two"))


def test_sources_that_hold_the_same_in_another_order_agree() -> None:
    assert not agree(small(), small("two", DOCUMENTS[::-1]))


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        (
            (*DOCUMENTS[:0:-1], Document("a", "T", "other")),
            "got document number 1 ('a'): text 'x' and text 'other', wanted the same",
        ),
        (DOCUMENTS[:1:-1], "got document number 1 ('a'): id 'a' and id 'of no document'"),
        ((Document("new", "", "x"), *DOCUMENTS), "got document number 1 ('new'): id 'of no document' and id 'new'"),
        ((*DOCUMENTS, DOCUMENTS[0]), "got 5 and 6 documents, some of them more than once"),
        (
            (Document("a", "T x", ""), *DOCUMENTS[1:]),
            "got document number 1 ('a'): title 'T' and title 'T x', wanted the same",
        ),
    ],
    ids=["another text", "fewer", "one more", "one twice", "the title's end moved"],
)
def test_another_order_hides_no_difference(documents: tuple[Document, ...], complaint: str) -> None:
    """The document that differs is named, not the first that stands elsewhere."""
    with pytest.raises(DatasetError) as caught:
        agree(small(), small("two", documents))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"corpus": ListCorpus((*DOCUMENTS[:3], Document("q1", "", "z"), DOCUMENTS[4]))},
            "got document number 4 ('q1'): text 'y' and text 'z'",
        ),
        ({"corpus": ListCorpus(DOCUMENTS[:4])}, "got document number 5 ('d'): id 'd' and id 'of no document'"),
        ({"queries": (Query("q1", "x"), Query("q2", "other"))}, "got query 'q2' with text 'other' in one of them only"),
        ({"qrels": {"q1": {"a": 1}, "q2": {"b": 0}}}, "got query 'q1', document 'gone': relevance 2 and None"),
        (
            {"qrels": {"q1": {"a": 1, "gone": 3}, "q2": {"b": 0}}},
            "'gone': relevance 2 and 3, wanted the same from both",
        ),
    ],
    ids=["text", "fewer documents", "query", "judgement missing", "grade"],
)
def test_sources_that_disagree_are_named_with_the_first_difference(change: dict[str, object], complaint: str) -> None:
    other = dataclasses.replace(small("two"), **change)
    with pytest.raises(DatasetError) as caught:
        agree(small(), other)
    message = str(caught.value)
    assert message.startswith("dataset small: one and two disagree; ")
    assert complaint in message
    assert message.endswith("; get both again, or choose one with dataset.sources")


def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "title": "T", "text": "x"}\n', encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n', encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("q\td\t1\n", encoding="utf-8")
    return tmp_path


def test_another_content_than_was_measured_is_refused_or_recorded(tmp_path: Path) -> None:
    words = [
        "model=bm25",
        "dataset=folder",
        f"dataset.path={folder(tmp_path)}",
        f"dataset.checksum={'0' * 31}a",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    with pytest.raises(DatasetError) as caught:
        pipeline.prepare(compose(words), console=Console(quiet=True))
    message = str(caught.value)
    assert message.startswith(f"dataset folder/{tmp_path.name}: got a corpus of checksum ")
    assert f", wanted {'0' * 31}a, so some id, title or text differs, or their order; repair the data" in message
    task = pipeline.prepare(compose([*words, "dataset.verify=false"]), console=Console(quiet=True))
    assert len(task.deviations) == 1


def test_the_measured_contents_are_those_of_the_real_sets(tmp_path: Path) -> None:
    for name, place in (("beir/nfcorpus", "nfcorpus"), *((f"xquad/{code}",) * 2 for code in ("en", "es", "ru", "ar"))):
        path = shared_data(place)
        task = pipeline.prepare(
            compose(["model=bm25", f"dataset={name}", f"dataset.path={path}", f"cache_dir={tmp_path}"]),
            console=Console(quiet=True),
        )
        assert task.config.dataset.checksum == task.survey.checksum


def test_a_template_without_titles_leaves_them_out(tmp_path: Path) -> None:
    words = ["dataset=folder", f"dataset.path={folder(tmp_path)}"]
    with_titles = datasets.load(compose(words).dataset).corpus
    without = datasets.load(compose([*words, "dataset.template=text"]).dataset).corpus
    assert [document.joined() for document in with_titles.documents()] == ["T x"]
    assert [document.joined() for document in without.documents()] == ["x"]
    assert with_titles.fingerprint() != without.fingerprint()


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=folder", "dataset.name=beir/nfcorpus", "dataset.language=en", "dataset.drop_self=true"],
        [
            "dataset=beir/nfcorpus",
            *(f"dataset.counts.{what}=null" for what in ("documents", "queries", "judgements")),
            "dataset.checksum=null",
        ],
    ],
)
def test_a_verdict_takes_no_facts_of_a_published_dataset_from_the_command_line(
    words: list[str], tmp_path: Path
) -> None:
    """One document under the name of nfcorpus: a run is possible, but no published score is of that."""
    places = [f"dataset.path={folder(tmp_path)}", f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    (cell,) = pipeline.run(compose(["model=bm25", *words, *places]), console=Console(quiet=True))
    start = f"dataset beir/nfcorpus: got 1 documents from folder {tmp_path.name}, wanted 3,633 as published"
    assert start in cell.deviations
    assert len(cell.deviations) == 4  # also queries, judgements and the checksum
    verdicts = [row.verdict for row in table.rows([cell]) if row.verdict is not None]
    assert {verdict.label for verdict in verdicts} == {"PROTOCOL-DIFFERS"}


def test_rules_and_ids_that_are_not_those_of_a_published_dataset_are_deviations() -> None:
    """mMARCO's languages have equal counts and no checksums, so that only the id tells French from Spanish."""
    words = ["dataset=mmarco/es", "dataset.ir_datasets_id=mmarco/v2/fr/dev/small", "dataset.verify=false"]
    config = compose([*words, "dataset.language=fr", "dataset.template=text"]).dataset
    dataset = dataclasses.replace(small("ir_datasets 0.5.11 mmarco/v2/fr/dev/small"), name="mmarco/es")
    found = datasets.deviations(dataset, None, config)
    assert [line.partition(": ")[2] for line in found if line.endswith("' as published")] == [
        "got template 'text', wanted 'title text' as published",
        "got language 'fr', wanted 'es' as published",
        "got ir_datasets_id 'mmarco/v2/fr/dev/small', wanted 'mmarco/v2/es/dev/small' as published",
    ]
    of_the_folder = datasets.deviations(dataclasses.replace(dataset, source="folder x"), None, config)
    assert not any("ir_datasets_id" in line for line in of_the_folder)


def test_another_split_has_the_documents_of_the_published_dataset_and_counts_of_its_own() -> None:
    words = ["dataset=beir/fiqa", "dataset.split=dev", "dataset.ir_datasets_id=beir/fiqa/dev", "dataset.verify=false"]
    config = compose([*words, "dataset.counts.queries=2", "dataset.counts.judgements=3"]).dataset
    dataset = dataclasses.replace(small("ir_datasets 0.5.11 beir/fiqa/dev"), name="beir/fiqa", split="dev")
    assert not [line for line in datasets.deviations(dataset, None, config) if line.endswith(" as published")]


def test_a_dataset_of_ones_own_has_only_the_facts_of_its_config() -> None:
    config = compose(["dataset=demo", "dataset.language=en", "dataset.template=text"]).dataset
    own = dataclasses.replace(small(), qrels={"q1": {"a": 1}, "q2": {"b": 0}})
    assert datasets.deviations(own, None, config) == ()
    assert datasets.deviations(own, None, dataclasses.replace(config, name="folder")) == ()
