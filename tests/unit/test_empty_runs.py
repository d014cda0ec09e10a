"""A finished run without a single hit is a result; an empty file of anybody else is a file cut short."""

import json
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evalkit.analysis import explain, replay
from evalkit.cli import app
from evalkit.config.compose import compose
from evalkit.errors import ScoreError
from evalkit.run import pipeline
from evalkit.storage import results


@pytest.fixture
def folder(tmp_path):
    """Two documents, and two queries that share no word with either."""
    (tmp_path / "qrels").mkdir()
    for name, rows in {"corpus": {"d1": "apple", "d2": "pear"}, "queries": {"q1": "stone", "q2": "glass"}}.items():
        text = "".join(json.dumps({"_id": one, "text": words}) + "\n" for one, words in rows.items())
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\td2\t1\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def finished(folder):
    words = ["model=bm25", "dataset=folder", f"dataset.path={folder}", f"results_dir={folder}/results"]
    (scores,) = pipeline.run(compose([*words, f"cache_dir={folder}/cache"]), console=Console(quiet=True))
    return folder / "results", scores


def score(run, folder):
    return CliRunner().invoke(app, ["score", str(run), "dataset=folder", f"dataset.path={folder}"])


def test_a_finished_run_without_a_hit_is_read_scored_explained_and_replayed(folder, finished):
    results_dir, scores = finished
    assert set(scores.metrics.values()) == {0.0}
    run = results_dir / "runs" / scores.run_id / "run.trec.gz"
    assert results.read_run(run) == {}
    done = score(run, folder)
    assert done.exit_code == 0, done.exception
    assert "2 queries, 2 of them not in the run (0)" in done.stdout
    assert "ndcg@10\t0.00000" in done.stdout
    material = replay.load(results_dir, scores)
    assert explain.flags(material, "q1") == ("no hits", "missing 1 of 1 relevant: d1")
    assert {one.value for one in replay.replay(material, "ndcg@10")} == {0.0}


def test_an_empty_run_without_the_scores_that_vouch_for_it_is_refused(folder, finished):
    results_dir, scores = finished
    path = results_dir / "runs" / scores.run_id
    shutil.copy(path / "run.trec.gz", folder / "run.trec.gz")
    with pytest.raises(ScoreError, match=r"run\.trec\.gz: got an empty file, wanted a TREC run"):
        results.read_run(folder / "run.trec.gz")
    (path / "run.trec").write_bytes(b"")
    with pytest.raises(ScoreError, match=r"run\.trec: got an empty file, wanted a TREC run"):
        results.read_run(path / "run.trec")


def test_a_run_whose_document_ids_match_no_judgement_says_so_beside_its_zeros(folder):
    (folder / "other.trec").write_text("q1 Q0 doc1 1 2 t\nq2 Q0 doc2 1 2 t\n", encoding="utf-8")
    done = score(folder / "other.trec", folder)
    assert done.exit_code == 0
    assert "ndcg@10\t0.00000" in done.stdout
    assert done.stderr == (
        f"evalkit: {folder}/other.trec: no document id of the run is judged: got 'doc1' and so on, wanted 'd1' and so "
        "on; check that the run is of this dataset and writes its document ids\n"
    )
