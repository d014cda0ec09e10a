"""`replay`, `explain`, `compare` and `score` as a user types them, on runs that the pipeline made."""

import gzip
import json
import os
import subprocess
import sys

import pytest

SIZE = ["dataset.demo.documents=120", "dataset.demo.queries=12"]
COUNTED = ["dataset.counts.queries=10", "dataset.counts.judgements=10"]
"""The folder's numbers of queries and judgements. That they are not the published ones is then part of a verdict."""


def evalkit(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "EVALKIT_RESULTS": "results"},
    )


def collection(folder):
    """Ten documents of which each is also a query, as in ArguAna: every query finds itself first."""
    words = ["apple", "bread", "chair", "dance", "eagle", "flame", "grape", "house", "index", "jelly"]
    texts = {f"d{place}": f"{word} {words[place - 1]} common" for place, word in enumerate(words)}
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"d{place}\td{(place + 1) % 10}\t1" for place in range(10)]
    splits = {"test": rows, "dev": [*rows[:3], "x1\td1\t1"], "train": ["t1\td1\t1"]}
    for name, judged in splits.items():
        text = "\n".join(["query-id\tcorpus-id\tscore", *judged])
        (folder / "qrels" / f"{name}.tsv").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    places = ["results_dir=results", "cache_dir=cache"]
    assert evalkit("run", "model=demo", "dim=[128,64]", *SIZE, *places, cwd=folder).returncode == 0
    collection(folder / "own")
    own = ["model=bm25", "dataset=beir/arguana", "dataset.path=own", "dataset.verify=false", "cache_dir=cache"]
    assert evalkit("run", *own, "results_dir=results", cwd=folder).returncode == 0
    assert evalkit("run", *own, "dataset.drop_self=false", "results_dir=kept", cwd=folder).returncode == 0
    return folder


def values(folder):
    (path,) = folder.glob("runs/beir-arguana*/scores.json")
    return json.loads(path.read_text(encoding="utf-8"))["metrics"]


def test_replay_gives_the_scores_of_the_run_that_kept_its_own_ids(finished):
    dropped = evalkit("replay", "beir-arguana", cwd=finished).stdout
    kept = evalkit("replay", "beir-arguana", "--results-dir", "kept", cwd=finished).stdout
    line = next(line for line in dropped.splitlines() if line.rstrip().endswith(" the query's own id kept"))
    assert line.startswith(f"{values(finished / 'kept')['ndcg@10']:.5f}")
    line = next(line for line in kept.splitlines() if line.rstrip().endswith(" the query's own id dropped"))
    assert line.startswith(f"{values(finished / 'results')['ndcg@10']:.5f}")
    assert "drop_self is off, published with on" in kept


def test_replay_tries_the_splits_that_judge_the_runs_queries(finished):
    done = evalkit("replay", "beir-arguana", cwd=finished)
    assert done.returncode == 0
    assert "judgements of split dev, 3 of whose 4 queries are in the run; the others left out" in done.stdout
    assert "split train: none of its 1 judged queries is among the run's 10; only a run of that" in done.stdout
    moved = evalkit("replay", "beir-arguana", "--dataset-path", "gone", cwd=finished)
    assert moved.returncode == 0
    assert "other splits are not tried: dataset.path=gone: not on disk" in moved.stderr


def test_what_was_dropped_lies_beside_the_run(finished):
    (path,) = (finished / "results").glob("runs/beir-arguana*/dropped.trec.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert [line.split()[0] for line in lines] == [line.split()[2] for line in lines] == [f"d{n}" for n in range(10)]
    assert not list((finished / "results").glob("runs/demo*/dropped.trec.gz"))


def test_explain_flags_the_self_hits(finished):
    done = evalkit("explain", "beir-arguana", "--results-dir", "kept", "--top", "2", cwd=finished)
    assert done.returncode == 0, done.stderr
    assert "against card's 0.315, over 10 queries" in done.stdout
    assert "0.25 to 0.5" in done.stdout
    assert "self-hit at rank 1, kept" in done.stdout


def test_explain_shows_a_pair_whose_tokens_add_up(finished):
    (run,) = (finished / "results").glob("runs/demo.test.demo-64*/run.trec.gz")
    query, _, document, *_ = gzip.decompress(run.read_bytes()).decode().split()
    done = evalkit("explain", "demo-64", "--query", query, "--document", document, cwd=finished)
    assert "[QueryMarker]" in done.stdout
    shown, recorded = done.stdout.splitlines()[-1].removeprefix("MaxSim ").removesuffix(" in the run").split(", ")
    assert float(shown) == pytest.approx(float(recorded), abs=1e-4)
    alone = evalkit("explain", "demo-64", "--query", query, cwd=finished)
    assert alone.returncode == 2
    assert "got one of --query and --document, wanted both or none of them" in alone.stderr


def test_explain_against_another_run_adds_up_without_the_dataset(finished):
    done = evalkit("explain", "beir-arguana", "--results-dir", "kept", "--dataset-path", "gone", cwd=finished)
    assert done.returncode == 0
    assert "truncation is not checked: " in done.stderr
    done = evalkit("explain", "demo-64", "--against", "demo-128", "--no-texts", cwd=finished)
    assert "against demo:128, over 12 queries" in done.stdout


def test_compare_shows_differences_costs_and_a_plot(finished):
    done = evalkit("compare", "demo", "--plot", "dims.svg", cwd=finished)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert next(row[4] for row in rows if row[:3] == ["demo", "128", "demo"]) == "base"
    assert "p (Holm): corrected over the one comparison of this table" in done.stdout
    place = next(number for number, row in enumerate(rows) if "passage" in row)
    costs = {row[1]: row[3:] for row in rows[place:] if row[:1] == ["demo"]}
    assert (costs["128"][0], costs["64"][0]) == ("256", "128")
    assert int(costs["128"][1]) == pytest.approx(2 * int(costs["64"][1]), abs=1)
    assert all(float(seconds) >= 0 for row in costs.values() for seconds in row[3:])
    assert (finished / "dims.svg").read_text(encoding="utf-8").count("demo:") >= 2


def test_precision_is_measured_on_the_stored_embeddings(finished):
    stored = {path: path.stat().st_mtime_ns for path in (finished / "cache" / "stores").rglob("*.safetensors")}
    words = ["--precision", "--stored-as", "float16,int8,binary", "--pool", "1,2", "--plot", "frontier.svg"]
    done = evalkit("compare", "demo-128", "demo-64", *words, cwd=finished)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("stored embeddings in smaller forms") :]
    lines = [line.split() for line in table.splitlines()]
    rows = {tuple(line[:3]): line for line in lines if line[0] in ("128", "64")}
    assert {name: row[3] for name, row in rows.items() if name[0] == "64"} == {
        **{("64", "float16", pool): "128" for pool in "12"},
        **{("64", "int8", pool): "66" for pool in "12"},
        **{("64", "binary", pool): "8" for pool in "12"},
    }
    assert rows["128", "float16", "1"][6:8] == ["+0.0000", "base"]
    assert len(rows) == 12
    assert (finished / "frontier.svg").read_text(encoding="utf-8").count("demo:") >= 2
    wrong = evalkit("compare", "demo-64", "--precision", "--pool", "0", cwd=finished)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--pool '0': wanted whole numbers from 1" in wrong.stderr
    assert {path: path.stat().st_mtime_ns for path in stored} == stored


def test_precision_without_stored_embeddings_says_what_to_do(finished, tmp_path):
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
    assert evalkit("run", "model=demo", "dim=64", "store.keep=topk", *SIZE, *places, cwd=tmp_path).returncode == 0
    done = evalkit("compare", "demo-64", "--precision", "--results-dir", tmp_path / "results", cwd=tmp_path)
    assert done.returncode == 1
    assert "the embeddings of this shard are not stored; run the cell again with store.keep=embeddings" in done.stderr
    bm25 = evalkit("compare", "beir-arguana", "--precision", cwd=finished)
    assert bm25.returncode == 0


def test_score_gives_a_run_file_the_same_verdict(finished):
    (run,) = (finished / "results").glob("runs/beir-arguana*/run.trec.gz")
    words = ["score", run, "dataset=beir/arguana", "dataset.path=own", *COUNTED]
    named = evalkit(*words, "model=bm25", cwd=finished)
    assert "wanted 1,406 as published; " in named.stdout
    assert "; drop_self is on, published with off (card 0.315 for bm25, " in named.stdout
    assert "(anserini 0.4142 for bm25, " in named.stdout
    unnamed = evalkit(*words, cwd=finished)
    assert "scores are published for all-minilm-l6-v2, bm25, " in unnamed.stdout
    other = evalkit(*words, "model=demo", "dim=64", cwd=finished)
    assert "nothing is published for demo on beir/arguana" in other.stdout


def test_score_takes_the_declared_settings_into_its_verdict(finished):
    (run,) = (finished / "results").glob("runs/beir-arguana*/run.trec.gz")
    words = ["score", run, "dataset=beir/arguana", "dataset.path=own", *COUNTED]
    late = evalkit(*words, "model=jina-colbert-v2", "dim=128", "model.query.max_tokens=16", cwd=finished).stdout
    assert "; query.max_tokens is 16, published with 32 (card 0.366 for jina-colbert-v2" in late
    lexical = evalkit(*words, "model=bm25", "model.k1=1.2", "model.b=0.4", cwd=finished).stdout
    assert "; k1 is 1.2, published with 0.9 (anserini 0.4142 for bm25" in lexical
    silent = evalkit(*words, "model=jina-colbert-v2", "dim=128", cwd=finished).stdout
    assert "query.max_tokens" not in silent


def test_score_without_a_self_hit_asks_nothing_of_the_self_id_rule(finished):
    (filtered,) = (finished / "results").glob("runs/beir-arguana*/run.trec.gz")
    (kept,) = (finished / "kept").glob("runs/beir-arguana*/run.trec.gz")
    words = ["dataset=beir/arguana", "dataset.path=own", *COUNTED, "dataset.drop_self=false"]
    differs = "drop_self is off, published with on"
    assert differs not in evalkit("score", filtered, *words, "model=bm25", cwd=finished).stdout
    assert differs in evalkit("score", kept, *words, "model=bm25", cwd=finished).stdout


def test_a_run_counts_the_self_hits_that_it_kept(finished):
    (path,) = (finished / "kept").glob("runs/beir-arguana*/scores.json")
    counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
    assert (counts["kept_self"], counts["dropped_self"]) == (10, 0)


def test_a_run_that_is_not_there_is_named(finished):
    done = evalkit("replay", "demo-65", cwd=finished)
    assert done.returncode == 1
    assert done.stderr.startswith("evalkit: cell 'demo-65' unknown; ")
