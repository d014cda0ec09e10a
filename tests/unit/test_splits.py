"""A run scored by its dataset's other splits: as far as they judge its queries, and no further."""

import dataclasses
import json

import pytest
from report_material import cell, put
from rich.console import Console

from evalkit.analysis import replay
from evalkit.config.compose import compose
from evalkit.datasets import splits
from evalkit.errors import DatasetError, EvalkitError
from evalkit.run import pipeline
from evalkit.storage import cell_config
from evalkit.types import Hit

DEV = {"q1": "d1", "q2": "d2", "q3": "d3"}


@pytest.fixture
def folder(tmp_path):
    """dev/small judges q1 and q2 of dev's three queries, deep judges q1 otherwise, train shares none with them."""
    (tmp_path / "qrels").mkdir()
    for name, judged in {
        "small": {"q1": "d1", "q2": "d2"},
        "dev": DEV,
        "deep": {"q1": "d9"},
        "train": {"t1": "d1", "t2": "d2"},
    }.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in judged.items())]
        (tmp_path / "qrels" / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def config(folder):
    return compose(["dataset=folder", f"dataset.path={folder}", "dataset.split=small"]).dataset


@pytest.fixture
def material(folder):
    """q1 has its document first and the deep one second, q2 has its second."""
    run = {"q1": [Hit("d1", 2.0), Hit("d9", 1.0)], "q2": [Hit("d1", 2.0), Hit("d2", 1.0)]}
    scores = cell(split="small", metrics={"mrr@10": 0.75}, main_metric="mrr@10", protocol={"depth": 100})
    put(folder, scores, run=run, qrels={"q1": {"d1": 1}, "q2": {"d2": 1}})
    return replay.load(folder, scores)


def test_every_other_split_is_found_with_what_it_shares(config, material):
    found, unread = splits.others(config, replay.asked(material))
    assert [(one.name, one.judged, sorted(one.qrels)) for one in found] == [
        ("deep", 1, ["q1"]),
        ("dev", 3, ["q1", "q2"]),
        ("train", 2, []),
    ]
    assert unread == []


def test_shared_queries_are_scored_and_the_others_counted(config, material):
    found, _ = splits.others(config, replay.asked(material))
    values = {one.changed[0]: (one.value, one.queries) for one in replay.replay_splits(material, found, "mrr@10")}
    words = "judgements of split dev, 2 of whose 3 queries are in the run"
    assert values == {
        "judgements of split deep": (0.5, 1),
        f"{words}; the others left out": (0.75, 2),
        f"{words}; the others 0": (0.5, 3),
    }


def test_a_split_without_a_shared_query_is_named_and_not_scored(config, material):
    found, _ = splits.others(config, replay.asked(material))
    (line,) = replay.disjoint(material, found)
    assert line.startswith("split train: none of its 2 judged queries is among the run's 2; ")
    assert line.endswith("; only a run of that split's queries can be scored by it (dataset.split=train)")


def test_a_split_can_be_what_lands_on_the_published_number(config, material, monkeypatch):
    from evalkit.scoring import published

    score = published.find("bm25", None, "beir/nfcorpus", "ndcg@10")[0]._replace(value=0.5, digits=3, metric="mrr@10")
    monkeypatch.setattr(published, "find", lambda *_: [score])
    found, _ = splits.others(config, replay.asked(material))
    replayed = [*replay.replay(material, "mrr@10"), *replay.replay_splits(material, found, "mrr@10")]
    (reproduction,) = replay.reproductions(material, replayed, "mrr@10")
    reached = [one.changed[0] for one in reproduction.reproduced_by]
    assert "judgements of split deep" in reached


def test_a_damaged_split_costs_only_itself(folder, config, material):
    (folder / "qrels" / "train.tsv").write_text("q1\td1\tmuch", encoding="utf-8")
    found, (line,) = splits.others(config, replay.asked(material))
    assert [one.name for one in found] == ["deep", "dev"]
    assert line.startswith("split train: ")
    assert "relevance 'much', wanted a whole number" in line


def test_a_dataset_that_moved_says_how_to_name_it(config):
    moved = dataclasses.replace(config, path="gone")
    with pytest.raises(DatasetError, match=r"dataset\.path=gone: not on disk; give its present folder by"):
        splits.others(moved, {"q1"})


def test_the_demo_has_one_split():
    assert splits.others(compose(["dataset=demo"]).dataset, {"q1"}) == ([], [])


TEXTS = {"corpus": {"d1": "apple", "d2": "pear"}, "queries": {"q1": "apple", "q2": "pear"}}
SPLITS = {"test": "q1\td1\t1\nq2\td2\t1\n", "dev": "q1\td2\t1\n"}


def write_dataset(folder, **changed):
    (folder / "qrels").mkdir(parents=True)
    for name, rows in {**TEXTS, **changed}.items():
        if name in TEXTS:
            text = "".join(json.dumps({"_id": one, "text": words}) + "\n" for one, words in rows.items())
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name, rows in SPLITS.items():
        (folder / "qrels" / f"{name}.tsv").write_text(changed.get(name, rows), encoding="utf-8")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A finished cell of the folder `data`, named by a path that only holds in the folder `here`."""
    write_dataset(tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    words = ["model=bm25", "dataset=folder", "dataset.path=data", "results_dir=r", "cache_dir=c"]
    (scores,) = pipeline.run(compose(words), console=Console(quiet=True))
    return tmp_path, scores


def splits_of(folder, scores, dataset_path=None):
    material = replay.load(folder / "here" / "r", scores, dataset_path=dataset_path)
    config = cell_config.saved(folder / "here" / "r", scores, dataset_path=dataset_path)
    return replay.other_splits(material, config.dataset)


def test_the_splits_of_a_run_are_those_of_its_own_folder_wherever_they_are_asked_for(ran, monkeypatch):
    folder, scores = ran
    write_dataset(folder / "there" / "data", dev="q1\td1\t1\nq2\td2\t1\n")
    monkeypatch.chdir(folder / "there")
    assert splits_of(folder, scores) == ([splits.OtherSplit("dev", 1, {"q1": {"d2": 1}})], [])


@pytest.mark.parametrize(
    ("part", "content", "got"),
    [
        ("test", "q1\td1\t1\nq2\td1\t1\n", "judgements"),
        ("queries", {"q1": "apple", "q2": "plum"}, "queries"),
        ("corpus", {"d1": "apple", "d2": "plum"}, "corpus"),
    ],
)
def test_the_splits_of_another_dataset_than_the_runs_are_refused(ran, part, content, got):
    folder, scores = ran
    write_dataset(folder / "other", **{part: content})
    with pytest.raises(EvalkitError, match=rf"got {got} of checksum .* from folder other, wanted the .*--dataset-path"):
        splits_of(folder, scores, folder / "other")
    write_dataset(folder / "same")
    assert len(splits_of(folder, scores, folder / "same")[0]) == 1
