"""Run files of other programs: what `score`, `score --system` and `rerank` say of them, and of their dataset."""

import json

import pytest
from checkpoints import write_jina_reranker
from typer.testing import CliRunner

from evalkit.analysis import replay
from evalkit.cli import app
from evalkit.errors import ScoreError
from evalkit.storage import results

DOCUMENTS = {f"d{place}": f"apple pear number{place}" for place in range(12)}
QUERIES = {"q1": "number1", "q2": "number2", "q3": "number3"}
JUDGED = [("q1", "d1"), ("q2", "d2"), ("q3", "d3")]
WITHOUT_TEXT = [("zz1", "d4"), ("zz2", "d5")]


def collection(folder, judged):
    (folder / "qrels").mkdir(parents=True)
    for name, rows in {"corpus": DOCUMENTS, "queries": QUERIES}.items():
        text = "".join(json.dumps({"_id": one, "text": words}) + "\n" for one, words in rows.items())
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    rows = "".join(f"{query}\t{document}\t1\n" for query, document in judged)
    (folder / "qrels" / "test.tsv").write_text(rows, encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    collection(tmp_path / "own", JUDGED)
    collection(tmp_path / "more", [*JUDGED, *WITHOUT_TEXT])
    return tmp_path


def run_file(folder, hits):
    path = folder / "run.trec"
    lines = [
        f"{query} Q0 {document} {rank} {float(-rank)} other\n"
        for query, documents in hits.items()
        for rank, document in enumerate(documents, 1)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def evalkit(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, Exception):
        raise done.exception
    return done


def words_of(folder, name, *more):
    return [f"dataset.path={folder / name}", f"results_dir={folder}/results", f"cache_dir={folder}/cache", *more]


def test_score_says_that_a_dataset_deviates_and_gives_no_other_verdict(folder):
    run = run_file(folder, {query: [document] for query, document in JUDGED})
    words = ["score", run, "dataset=beir/arguana", *words_of(folder, "own", "dataset.verify=false", "model=bm25")]
    deviation = "dataset beir/arguana: got 3 queries with judgements from folder own, wanted 1,406 as published"
    done = evalkit(*words)
    (line,) = (line for line in done.stdout.splitlines() if "anserini 0.4142" in line)
    assert line.startswith(f"ndcg@10\tPROTOCOL-DIFFERS: {deviation}; ")
    assert deviation in done.stderr


def test_judged_queries_without_text_are_in_the_mean_in_the_counts_and_in_what_is_said(folder):
    words = words_of(folder, "more", "dataset=folder", "dataset.verify=false")
    deviation = "got judgements of 2 unknown queries (the first is 'zz1'"
    ran = evalkit("run", *words, "model=bm25")
    assert f"bm25 on folder/more: dataset folder/more: {deviation}" in ran.stderr
    ((cell,), _) = results.readable(folder / "results")
    assert (cell.counts["queries"], cell.metrics["ndcg@10"]) == (5, pytest.approx(3 / 5))
    assert deviation in evalkit("report", "--results-dir", folder / "results").stderr
    scored = evalkit("score", folder / "results" / "runs" / cell.run_id / results.RUN, *words)
    assert "folder/more (test): 5 queries, 2 of them not in the run (0)" in scored.stdout
    assert "ndcg@10\t0.60000" in scored.stdout
    assert deviation in scored.stderr


METRICS = ("map", "recall", "ndcg", "precision", "f1")


@pytest.mark.parametrize("drop_self", [False, True])
def test_a_kept_run_file_has_the_scores_that_it_has_without_being_kept(folder, monkeypatch, drop_self):
    """Judged documents lie beyond the first 100 hits, one is the query itself, and one query has no text."""
    monkeypatch.setitem(DOCUMENTS, "q1", "the query's own")
    for place in range(12, 150):
        monkeypatch.setitem(DOCUMENTS, f"d{place}", f"apple number{place}")
    collection(folder / "long", [*JUDGED, ("q1", "d149"), ("q2", "d120"), ("zz1", "d4"), ("zz1", "d130")])
    run = run_file(folder, {"q1": list(DOCUMENTS), "q2": list(DOCUMENTS)[:125], "zz1": list(DOCUMENTS)})
    words = words_of(folder, "long", "dataset=folder", "dataset.verify=false", f"metrics=[{','.join(METRICS)}]")
    words.append(f"dataset.drop_self={drop_self}")
    printed = [
        [line for line in evalkit("score", run, *words, *more).stdout.splitlines() if "\t" in line]
        for more in ((), ("--system", "other"))
    ]
    assert [line.partition("\t")[0] for line in printed[0]] == ["ndcg@10", "mrr@10", "recall@100", *METRICS]
    assert printed[0] == printed[1]
    ((cell,), _) = results.readable(folder / "results")
    material = replay.load(folder / "results", cell)
    assert replay.replay(material, "recall@100")[0].value == cell.metrics["recall@100"]


def reranked(folder, run):
    source = write_jina_reranker(folder / "reranker")
    words = words_of(folder, "own", "dataset=folder", "reranker=jina-reranker-v2-base-multilingual")
    words += [f"reranker.checkpoint.path={source}", "reranker.max_tokens=64", "engine.device=cpu"]
    return evalkit("rerank", run, "--out", folder / "new.trec", *words)


def test_a_run_of_another_dataset_is_not_reranked(folder):
    with pytest.raises(
        ScoreError, match=r"got no query that folder/own \(test\) judges, but 'x1' and so on, wanted 'q1'"
    ):
        reranked(folder, run_file(folder, {"x1": ["d1"], "x2": ["d2"]}))
    assert not (folder / "new.trec").exists()


def test_queries_that_a_reranked_run_lacks_are_counted(folder):
    done = reranked(folder, run_file(folder, {"q1": ["d4", "d5"], "x1": ["d1"]}))
    assert done.exit_code == 0, done.stderr
    assert "3 queries, 2 of them not in the run (0)" in done.stdout
    assert "no document id of the run is judged: got 'd4'" in done.stderr
