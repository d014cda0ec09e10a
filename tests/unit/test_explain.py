"""Why a run scores what it scores: parts of Δ that add up, flags, and one pair token by token."""

import dataclasses
import gzip
import logging
import math

import pytest
from report_material import cell, put
from rich.console import Console
from test_hub_copies import COMMIT, lay, lines, small_copy

from evalkit import datasets
from evalkit.analysis import explain, precision, replay
from evalkit.config.compose import compose
from evalkit.datasets.folder import load_folder
from evalkit.errors import ConfigError, DatasetError, StoreError
from evalkit.report import verbs
from evalkit.run import pipeline
from evalkit.storage import cell_config, results
from evalkit.types import Hit


def material_of(run, qrels, *, drop_self=False):
    scores = cell(protocol={"drop_self": drop_self, "depth": 100})
    return replay.Material(scores, {query: list(hits) for query, hits in run.items()}, qrels, 100)


def test_the_parts_of_all_queries_add_up_to_the_difference():
    material = material_of({"a": [], "b": [], "c": []}, {})
    values = {"a": 1.0, "b": 0.0, "c": 0.5}
    parts = explain.contributions(material, values, 0.4)
    assert math.fsum(one.part for one in parts) == pytest.approx(0.5 - 0.4)
    assert [one.query for one in parts] == ["a", "b", "c"]
    other = explain.contributions(material, values, {"a": 1.0, "b": 0.5, "c": 0.25})
    assert [(one.query, round(one.part, 4)) for one in other] == [("b", -0.1667), ("c", 0.0833), ("a", 0.0)]


def test_against_a_mean_the_queries_that_score_nothing_are_listed_and_not_those_at_one():
    material = material_of({"a": [], "b": [], "c": [], "d": []}, {"b": {"x": 1}})
    values = {"a": 1.0, "d": 0.0, "b": 0.0, "c": 0.5}
    shown = explain.lowest(material, values, 0.4, most=5)
    assert [(one.query, one.part) for one in shown] == [("b", -0.1), ("d", -0.1)]
    assert shown[0].flags == ("no hits", "missing 1 of 1 relevant: x")
    assert [one.query for one in explain.lowest(material, values, 0.4, most=1)] == ["b"]
    assert [one.query for one in explain.lowest(material, {"a": 1.0, "c": 0.5}, 0.4, most=1)] == ["c"]


def test_the_distribution_counts_every_query_once():
    values = {"a": 0.0, "b": 0.0, "c": 0.1, "d": 0.25, "e": 0.26, "f": 0.75, "g": 0.99, "h": 1.0}
    bands = explain.distribution(values)
    assert [band.queries for band in bands] == [2, 2, 1, 1, 1, 1]
    text = list(verbs.distribution_table(bands, metric="ndcg@10").lines())
    assert text[1].split() == ["0", "2", "25.0", "%", "█████"]
    assert text[-1].split()[:3] == ["1", "1", "12.5"]


def test_every_flag_says_what_is_odd():
    run = {"q": [Hit("q", 3.0), Hit("x", 2.0), Hit("d", 1.0)]}
    qrels = {"q": {"d": 1, "e": 1, "n": 0}, "p": {"d": 1}}
    wanted = ("self-hit at rank 1, dropped", "missing 1 of 2 relevant: e", "unjudged at 10: 1")
    assert explain.flags(material_of(run, qrels, drop_self=True), "q") == wanted
    assert explain.flags(material_of(run, qrels), "q") == ("self-hit at rank 1, kept", wanted[1], "unjudged at 10: 2")
    assert explain.flags(material_of(run, qrels), "p") == ("no hits", "missing 1 of 1 relevant: d")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    words = ["model=demo", "dim=64", "dataset.demo.documents=60", "dataset.demo.queries=6"]
    words += ["model.query.max_tokens=20", "model.document.max_tokens=12"]
    config = compose([*words, f"results_dir={folder}/results", f"cache_dir={folder}/cache"])
    (scores,) = pipeline.run(config, console=Console(quiet=True))
    return folder / "results", scores


def test_a_pair_token_by_token_adds_up_to_the_runs_score(demo):
    results_dir, scores = demo
    material = replay.load(results_dir, scores)
    config = cell_config.saved(results_dir, scores)
    query, hits = next(iter(material.run.items()))
    view = explain.pair(config, material, query, hits[0].document_id)
    assert view.in_run == hits[0].score
    assert view.score == pytest.approx(view.in_run, abs=1e-5)
    assert len(view.matches) == 20
    assert view.matches[1].query_token == "[QueryMarker]"
    assert view.document_cut


def test_truncation_and_absent_documents_are_found_in_the_texts(demo):
    results_dir, scores = demo
    material = replay.load(results_dir, scores)
    query = next(iter(material.qrels))
    absent = material._replace(qrels={query: {**material.qrels[query], "nowhere": 1}})
    config = cell_config.saved(results_dir, scores)
    short = dataclasses.replace(config.model, query=dataclasses.replace(config.model.query, max_tokens=6))
    lines = explain.text_flags(dataclasses.replace(config, model=short), absent, [query])[query]
    assert "not in the corpus: nowhere" in lines
    assert "query truncated" in lines
    assert any(line.startswith("relevant documents truncated: ") for line in lines)


def test_what_is_not_there_is_named(demo):
    results_dir, scores = demo
    material = replay.load(results_dir, scores)
    config = cell_config.saved(results_dir, scores)
    query = next(iter(material.qrels))
    with pytest.raises(DatasetError, match="query 'q99' is not in demo; "):
        explain.pair(config, material, "q99", "d")
    with pytest.raises(DatasetError, match="document 'd' is not in the corpus of demo; wanted a document of it, such"):
        explain.pair(config, material, query, "d")


@pytest.fixture
def fallen_through(tmp_path, monkeypatch):
    """A run of the second source, because the first one's documents turned out damaged."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lay(tmp_path / "hub", small_copy())
    folder = tmp_path / "folder"
    (folder / "qrels").mkdir(parents=True)
    corpus = lines([{"_id": f"d{n}", "text": "x"} for n in range(99)])
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus)[:-9])
    (folder / "queries.jsonl").write_bytes(lines([{"_id": "q1", "text": "judged"}]))
    (folder / "qrels" / "test.tsv").write_text("q1\td7\t1\n", encoding="utf-8")
    damaged = {"ir_datasets": lambda config: load_folder(dataclasses.replace(config, path=str(folder)))}
    monkeypatch.setattr(datasets, "SOURCES", {**datasets.SOURCES, **damaged})
    monkeypatch.setattr("evalkit.datasets.irds.stored", lambda _: True)
    words = ["model=demo", "dim=64", "dataset=xquad/en", "dataset.sources=[ir_datasets,hub]", "dataset.checksum=null"]
    words += ["dataset.ir_datasets_id=any/id", "dataset.hub.repo=owner/small", f"dataset.hub.revision={COMMIT}"]
    words += ["dataset.hub.corpus=corpus", "dataset.hub.queries=queries", "dataset.hub.qrels=default"]
    words += ["dataset.hub.split=test", *(f"dataset.counts.{what}=null" for what in ("documents", "queries"))]
    words += ["dataset.counts.judgements=null", f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    (scores,) = pipeline.run(compose(words), console=Console(quiet=True))
    assert scores.environment["dataset_source"] == f"hub owner/small@{COMMIT}"
    return tmp_path / "results", scores


def test_the_source_that_a_run_used_is_read_again_not_the_one_that_failed_it(fallen_through, caplog):
    results_dir, scores = fallen_through
    (results_dir / "runs" / scores.run_id / "qrels.trec.gz").unlink()
    with caplog.at_level(logging.WARNING):
        material = replay.load(results_dir, scores)
        config = cell_config.saved(results_dir, scores)
        flags = explain.text_flags(config, material, ["q1"])
        view = explain.pair(config, material, "q1", "d7")
    assert config.dataset.sources == ("hub", "ir_datasets")
    assert material.qrels == {"q1": {"d7": 2, "d0": 0}}
    assert (flags, view.document) == ({"q1": ()}, "Title 7 text 7")
    assert caplog.records == []


def test_where_no_source_is_recorded_a_damaged_one_gives_way_to_the_next(fallen_through, caplog):
    results_dir, scores = fallen_through
    material = replay.load(results_dir, scores)
    config = cell_config.saved(results_dir, dataclasses.replace(scores, environment={}))
    assert config.dataset.sources == ("ir_datasets", "hub")
    with caplog.at_level(logging.WARNING):
        assert explain.pair(config, material, "q1", "d7").document == "Title 7 text 7"
        assert explain.text_flags(config, material, ["q1"]) == {"q1": ()}
    assert sum("source ir_datasets failed, the next one is tried" in one.getMessage() for one in caplog.records) == 2


def test_a_system_without_token_vectors_has_no_pairs_to_show(tmp_path):
    scores = cell()
    config = compose(["model=bm25", f"results_dir={tmp_path}", f"cache_dir={tmp_path}"])
    with pytest.raises(ConfigError, match="bm25 has no token vectors; wanted a cell of a late-interaction model"):
        explain.pair(config, material_of({}, {})._replace(cell=scores), "q", "d")


def test_settings_that_cannot_be_read_are_one_clear_line(tmp_path):
    path = put(tmp_path, cell()) / "config.yaml"
    for text in ("[", "5", "model: 5\n"):
        path.write_text(text, encoding="utf-8")
        results.write(cell(), tmp_path)
        with pytest.raises(ConfigError, match=r"config\.yaml: not the settings of a cell"):
            cell_config.saved(tmp_path, cell())


def test_precision_wants_vectors_and_the_very_run(demo):
    results_dir, scores = demo
    config = cell_config.saved(results_dir, scores)
    changed = dataclasses.replace(scores, run_id="demo.test.demo-64.0")
    with pytest.raises(StoreError, match=r"demo\.test\.demo-64\.0: its settings now give demo\.test\.demo-64\..*again"):
        precision.measure(config, changed, results_dir, console=Console(quiet=True))
    with pytest.raises(ConfigError, match=r"stores no vectors; wanted a cell of a model with dims"):
        precision.measure(config, dataclasses.replace(scores, dim=None), results_dir, console=Console(quiet=True))
