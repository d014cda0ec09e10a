"""`plan`, `status` and `cache` as a user types them: before a run, beside one, after a kill, and when it is done."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from holding import held_run

SMALL = ["dataset.demo.documents=120", "dataset.demo.queries=12", "store.shard_tokens=3000"]
PLACES = ["results_dir=results", "cache_dir=cache"]
COMMAND = [sys.executable, "-m", "evalkit"]


def evalkit(*words, cwd, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **environment},
    )


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(text, first):
    cells, _, _ = text.partition("\n\n")  # the forecast by dataset stands behind an empty line
    return [line.split() for line in cells.splitlines() if line.startswith(first)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    done = evalkit("run", "-m", "model=demo,bm25", "dim=[128,64]", *SMALL, *PLACES, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_plan_before_anything_is_there_writes_nothing_and_invents_nothing(tmp_path):
    done = evalkit("plan", "-m", "--wide", "model=demo,jina-colbert-v2", "dim=128", *SMALL, *PLACES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row[:5] for row in rows(done.stdout, "demo ")] == [["demo", "128", "demo", "to", "do"]]
    assert "to fetch: jinaai/jina-colbert-v2@" in done.stdout
    assert "after the survey" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("time unknown: run with --probe here")]
    assert line.endswith(": demo:128 on demo, jina-colbert-v2:128 on demo")
    assert "and 2 cells of unknown size" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_knows_what_is_finished_and_forecasts_the_rest_from_it(finished):
    before = files(finished)
    done = evalkit("plan", "model=demo,bm25", "--wide", *SMALL, *PLACES, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert files(finished) == before
    states = {(row[0], row[1]): row[3] for row in rows(done.stdout, ("demo", "bm25")) if row[2] == "demo"}
    assert states == {
        ("demo", "128"): "finished",
        ("demo", "96"): "to",
        ("demo", "64"): "finished",
        ("bm25", "–"): "finished",
    }
    (path,) = (finished / "results" / "runs").glob("demo.test.demo-64.*/scores.json")
    scores = json.loads(path.read_text("utf-8"))
    row = next(row for row in rows(done.stdout, "demo ") if row[1] == "64")
    shards = str(scores["counts"]["shards"])
    assert row[4:7] == [shards, "of", shards]
    assert ["120", "–", f"{scores['counts']['document_vectors']:,}"] == row[row.index("120") : row.index("120") + 3]
    assert row[-1] == scores["run_id"]
    assert "vectors counted by demo.test.demo-" in done.stdout
    assert "time at " in done.stdout
    assert "over 2 cells here: demo:96 on demo" in done.stdout
    assert "4 cells: 3 finished, 1 to do" in done.stdout


def test_plan_sizes_embeddings_by_dim_and_keeps_none_for_topk(finished):
    vectors = {
        dim: json.loads(next((finished / "results" / "runs").glob(f"*demo-{dim}.*/scores.json")).read_text("utf-8"))
        for dim in (128, 64)
    }
    count = vectors[64]["counts"]["document_vectors"]
    done = evalkit("plan", "model=demo", "dim=96", *SMALL, *PLACES, cwd=finished)
    (row,) = rows(done.stdout, "demo ")
    assert f"{count * 96 * 2 / 1e6:,.1f}" in row
    none = evalkit("plan", "model=demo", "dim=96", "store.keep=topk", *SMALL, *PLACES, cwd=finished)
    assert "disk: 0 B of embeddings to write" in none.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["dataset=beir/fiqa", "dataset.path=nowhere"],
            "dataset.path=nowhere: got no folder there, wanted one in BEIR's",
        ),
        (["engine.device=cuda:7"], "engine.device='cuda:7' is not here"),
        (
            ["model=jina-colbert-v2", "model.checkpoints.128.path=nowhere", "dim=128"],
            "nowhere of jina-colbert-v2:128 is",
        ),
        (
            ["model=colbert-xm", "dataset=miracl/yo,miracl/ar"],
            "cache_dir='cache': model 'colbert-xm' has no adapter for",
        ),
        (["model=jina-colbert-v2", "dim=64"], "is not on disk, and HF_HUB_OFFLINE is set; evalkit fetch it elsewhere"),
        (["dataset=msmarco/dev-small", "dataset.sources=[hub]"], "not on disk, and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_cell_that_cannot_run_fails_the_plan_and_says_why(tmp_path, words, message):
    done = evalkit("plan", *words, *PLACES, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^1 cell: |^\d cells: ", done.stdout, re.MULTILINE)


def test_a_wrong_name_fails_the_plan_at_once(tmp_path):
    done = evalkit("plan", "model=bm52", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "model 'bm52' unknown; did you mean bm25" in done.stderr


def test_status_of_what_is_done(finished):
    done = evalkit("status", *PLACES, cwd=finished)
    assert done.returncode == 0, done.stderr
    assert [row[:4] for row in rows(done.stdout, "finished")] == [
        ["finished", "bm25", "–", "demo"],
        ["finished", "demo", "128", "demo"],
        ["finished", "demo", "64", "demo"],
    ]
    chosen = evalkit("status", "model=demo", *SMALL, *PLACES, cwd=finished)
    assert [line.split("demo")[0].strip() for line in chosen.stdout.splitlines()[1:]] == [
        "finished",
        "to do",
        "finished",
    ]
    assert not list((finished / "cache" / "jobs").glob("*"))


def test_status_and_cache_beside_a_run_after_its_kill_and_after_its_end(tmp_path):
    words = ["run", "model=demo", "dim=64", "dataset.demo.documents=300", "store.shard_tokens=3000"]
    words += ["dataset.demo.queries=20", *PLACES]
    with held_run(words, tmp_path / "handshake", before="topk/*/*.json", count=3, cwd=tmp_path) as process:
        beside = evalkit("status", *PLACES, cwd=tmp_path)
        refused = evalkit("cache", "rm", "demo", "--yes", "--cache-dir", "cache", cwd=tmp_path)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    (row,) = rows(beside.stdout, "running")
    assert row[1:4] == ["demo", "64", "demo"]
    assert int(row[4]) == 2 < int(row[6])
    assert str(process.pid) in beside.stdout
    assert refused.returncode == 1
    assert "has used this cache since" in refused.stderr
    after = evalkit("status", *PLACES, cwd=tmp_path)
    assert [row[:4] for row in rows(after.stdout, "stopped")] == [["stopped", "demo", "64", "demo"]]
    assert after.returncode == 0
    planned = evalkit("plan", *words[1:], cwd=tmp_path)
    assert "vectors estimated from the shards that are done: demo:64 on demo" in planned.stdout
    assert "vectors/s, as the " in planned.stdout
    listed = evalkit("cache", "ls", "--cache-dir", "cache", cwd=tmp_path)
    assert [row[2] for row in rows(listed.stdout, ("embeddings", "top-k", "survey", "job"))] == ["demo"] * 4


def test_a_run_that_failed_is_told_with_its_error(tmp_path):
    failed = evalkit("run", "dataset=folder", "dataset.path=nowhere", "model=bm25", *PLACES, cwd=tmp_path)
    assert failed.returncode == 1
    done = evalkit("status", *PLACES, cwd=tmp_path)
    assert done.returncode == 1
    assert rows(done.stdout, "failed")[0][:2] == ["failed", "bm25"]
    assert "nothing at this path" in done.stderr
    assert "1 job failed: run it again, or remove it from this list with evalkit status --forget" in done.stderr


def test_a_run_that_failed_is_forgotten_when_asked_and_status_is_content(finished, tmp_path):
    places = (f"results_dir={finished / 'results'}", f"cache_dir={tmp_path}")
    assert evalkit("run", "dataset=folder", "dataset.path=nowhere", "model=bm25", *places, cwd=tmp_path).returncode == 1
    forgotten = evalkit("status", "--forget", *places, cwd=tmp_path)
    assert forgotten.returncode == 0, forgotten.stderr
    assert "forgot 1 failed job" in forgotten.stdout
    assert rows(forgotten.stdout, "failed") == []
    assert len(rows(forgotten.stdout, "finished")) == 3
    assert evalkit("status", *places, cwd=tmp_path).returncode == 0


def test_a_damaged_record_of_a_failed_run_is_told_until_it_is_forgotten(tmp_path):
    evalkit("run", "dataset=folder", "dataset.path=nowhere", "model=bm25", *PLACES, cwd=tmp_path)
    (path,) = (tmp_path / "cache" / "jobs").glob("*.json")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = evalkit("status", *PLACES, cwd=tmp_path)
    assert done.returncode == 1
    assert rows(done.stdout, "damaged")[0][0] == "damaged"
    assert f"{path.name}: this record of a job cannot be read: " in done.stderr
    assert evalkit("status", "--forget", *PLACES, cwd=tmp_path).returncode == 0
    assert not path.exists()


def test_status_says_so_where_nothing_was_run(tmp_path):
    done = evalkit("status", *PLACES, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("no finished, running, stopped or failed cell in results;")


def test_a_damaged_result_is_told_by_status(finished, tmp_path):
    (path,) = (finished / "results" / "runs").glob("demo.test.bm25.*/scores.json")
    other = tmp_path / "runs" / path.parent.name
    other.mkdir(parents=True)
    (other / "scores.json").write_text(path.read_text("utf-8")[:100], "utf-8")
    done = evalkit("status", "model=bm25", *SMALL, f"results_dir={tmp_path}", "cache_dir=cache", cwd=finished)
    assert done.returncode == 1
    assert rows(done.stdout, "damaged")[0][:2] == ["damaged", "bm25"]
    assert "not valid JSON" in done.stderr


def test_the_cache_is_listed_verified_and_emptied_by_name(finished, tmp_path):
    cache = tmp_path / "cache"
    subprocess.run(["cp", "-r", finished / "cache", cache], check=True)
    places = ["--cache-dir", cache, "--results-dir", finished / "results"]
    results_before = files(finished / "results")
    listed = evalkit("cache", "ls", *places, cwd=tmp_path)
    kinds = [line.split()[0] for line in listed.stdout.splitlines()[1:-1]]
    # Two dims of embeddings; their top-k and BM25's counts; the survey for the model and the one for BM25.
    assert sorted(kinds) == ["embeddings"] * 2 + ["survey"] * 2 + ["top-k"] * 3
    assert "demo.test.demo-64." in listed.stdout
    assert "no known cell" not in listed.stdout
    whole = evalkit("cache", "verify", "--cache-dir", cache, cwd=tmp_path)
    assert whole.returncode == 0
    assert whole.stdout.endswith("0 unfinished\n")
    stored = sorted((cache / "stores").rglob("*.safetensors"))
    data = bytearray(stored[0].read_bytes())
    data[-1] ^= 1
    stored[0].write_bytes(data)
    stored[1].unlink()
    stored[2].with_suffix(".json").unlink()
    damaged = evalkit("cache", "verify", "--cache-dir", cache, cwd=tmp_path)
    assert damaged.returncode == 1
    assert f"{stored[0].name}: got checksum " in damaged.stderr
    assert f"{stored[1].name}: is not there, though its manifest is" in damaged.stderr
    assert damaged.stdout.endswith("1 unfinished\n")
    # A kill between a shard's two files leaves one without a manifest: it is its neighbours', and no entry of its own.
    for path in cache.glob(f"topk/*/{stored[2].stem}.*"):
        path.unlink()
    still = evalkit("cache", "ls", *places, cwd=tmp_path)
    assert [row[2] for row in rows(still.stdout, "embeddings")] == ["demo"] * 2
    key = next(line.split()[1] for line in listed.stdout.splitlines() if line.startswith("embeddings"))
    asked = evalkit("cache", "rm", key[:8], *places, cwd=tmp_path)
    assert asked.returncode == 1
    assert (cache / "stores" / key).exists()
    done = evalkit("cache", "rm", key[:8], "--yes", *places, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (cache / "stores" / key).exists()
    unused = evalkit("cache", "rm", "--unused", "--yes", *places, cwd=tmp_path)
    assert unused.returncode == 0
    assert list(cache.rglob("*.safetensors"))
    rest = evalkit("cache", "rm", "demo", "--yes", *places, cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert not [path for path in files(cache) if path.parent.name != "hydra"]
    assert files(finished / "results") == results_before


def test_what_no_run_uses_goes_and_the_rest_stays(finished, tmp_path):
    cache, results = tmp_path / "cache", tmp_path / "results"
    subprocess.run(["cp", "-r", finished / "cache", cache], check=True)
    subprocess.run(["cp", "-r", finished / "results", results], check=True)
    (gone,) = (results / "runs").glob("demo.test.demo-128.*")
    subprocess.run(["rm", "-r", gone], check=True)
    (cache / "stores" / ".half.1.tmp").write_bytes(b"x")
    before = len(list(cache.rglob("*.safetensors")))
    places = ["--cache-dir", cache, "--results-dir", results]
    assert evalkit("cache", "rm", "--unused", "--yes", *places, cwd=tmp_path).returncode == 0
    listed = evalkit("cache", "ls", *places, cwd=tmp_path).stdout
    assert "demo-128" not in listed
    assert "demo.test.demo-64." in listed
    assert not (cache / "stores" / ".half.1.tmp").exists()
    assert len(list(cache.rglob("*.safetensors"))) < before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rm"], 2, "got nothing to remove, wanted keys, datasets or --unused"),
        (["rm", "--unused", "--results-dir", "nowhere"], 2, "so all would count as unused; name the results with"),
        (["rm", "demmo"], 1, "cache entry 'demmo' unknown; did you mean demo?"),
    ],
)
def test_a_removal_that_is_not_clear_removes_nothing(finished, words, code, message):
    before = files(finished)
    done = evalkit("cache", *words, "--cache-dir", "cache", cwd=finished)
    assert done.returncode == code
    assert message in done.stderr
    assert files(finished) == before


def test_an_empty_cache_says_so(tmp_path):
    done = evalkit("cache", "rm", "demo", "--cache-dir", "nowhere", cwd=tmp_path)
    assert "cache entry 'demo' unknown; the cache is empty" in done.stderr
    assert evalkit("cache", "ls", "--cache-dir", "nowhere", cwd=tmp_path).stdout.endswith("nowhere: 0 B\n")
