"""The commands as a user types them: what they print, what they leave, how they fail."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SMALL = ["dataset.demo.documents=300", "dataset.demo.queries=24"]


def evalkit(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "evalkit", *words]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def places(folder: Path) -> list[str]:
    return [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "home").mkdir()
    words = ("run", "-m", "model=bm25,demo", "dim=128,96,64", *SMALL, *places(folder))
    done = evalkit(*words, cwd=folder, HOME=f"{folder}/home")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_sweep_ends_in_one_table_of_every_system_and_dim(finished):
    _, done = finished
    lines = [line.split()[:3] for line in done.stdout.splitlines() if "demo" in line]
    assert lines == [["bm25", "–", "demo"], ["demo", "128", "demo"], ["demo", "96", "demo"], ["demo", "64", "demo"]]


def test_each_cell_leaves_its_scores_where_they_are_looked_for(finished):
    folder, _ = finished
    found = [json.loads(path.read_text("utf-8")) for path in (folder / "results" / "runs").glob("*/scores.json")]
    assert sorted((scores["model"], scores["dim"] or 0) for scores in found) == [
        ("bm25", 0),
        ("demo", 64),
        ("demo", 96),
        ("demo", 128),
    ]
    for scores in found:
        assert set(scores["metrics"]) == {"ndcg@10", "mrr@10", "recall@100"}
        assert scores["dataset"] == "demo"
        assert scores["environment"]["packages"]["torch"]
        assert scores["counts"]["documents"] == 300
        folder_of_run = folder / "results" / "runs" / scores["run_id"]
        assert {path.name for path in folder_of_run.iterdir()} == {
            "scores.json",
            "run.trec.gz",
            "per_query.tsv",
            "qrels.trec.gz",
            "config.yaml",
            "local.yaml",
        }


def test_nothing_is_written_outside_results_dir_and_cache_dir(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {"results", "cache", "home"}
    assert list((folder / "home").rglob("*")) == []


def test_a_finished_run_is_only_printed(finished):
    folder, first = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = evalkit("run", "model=demo", *SMALL, *places(folder), cwd=folder)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    table = [line.split() for line in again.stdout.splitlines() if line.startswith("demo")]
    assert table == [line.split() for line in first.stdout.splitlines() if line.startswith("demo")]


def test_keeping_only_the_top_k_gives_the_same_run_files(finished, tmp_path):
    folder, _ = finished
    done = evalkit("run", "model=demo", "store.keep=topk", *SMALL, *places(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "stores").exists()
    for path in (tmp_path / "results" / "runs").glob("*/run.trec.gz"):
        assert path.read_bytes() == (folder / "results" / "runs" / path.parent.name / path.name).read_bytes()


def test_dims_encoded_together_or_alone_give_the_same_run_files(finished, tmp_path):
    folder, _ = finished
    done = evalkit("run", "model=demo", "dim=64", *SMALL, *places(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results" / "runs").glob("*/run.trec.gz")
    assert path.read_bytes() == (folder / "results" / "runs" / path.parent.name / path.name).read_bytes()


def test_the_config_can_be_shown_without_running(tmp_path):
    done = evalkit("run", "--cfg", "job", "model=bm25", *places(tmp_path), cwd=tmp_path)
    assert done.returncode == 0
    assert "name: bm25" in done.stdout
    assert not (tmp_path / "results").exists()


def test_a_config_that_cannot_run_is_shown_and_fails(tmp_path):
    done = evalkit("run", "--cfg", "job", "dim=77", *places(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (2, "dim: 77")
    assert done.stderr == "evalkit: dim=77 is not a dim of model 'demo'; valid: 128, 96, 64\n"


def test_report_prints_markdown_of_what_is_finished(finished):
    folder, _ = finished
    done = evalkit("report", "--results-dir", f"{folder}/results", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("| system | dim | dataset |")
    assert done.stdout.count("\n") == 2 + 4


def on_a_terminal(*words: str, cwd: Path, columns: int = 80) -> list[str]:
    """Return the lines that a command prints to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    shown = bytearray()
    with subprocess.Popen([sys.executable, "-m", "evalkit", *words], stdout=theirs, env=environment, cwd=cwd):
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal says that its last user has gone
            while piece := os.read(ours, 1 << 16):
                shown += piece
    os.close(ours)
    return shown.decode().splitlines()


def test_report_and_score_fit_a_terminal(finished):
    folder, _ = finished
    lines = on_a_terminal("report", "--results-dir", f"{folder}/results", cwd=folder)
    assert [line.split()[:3] for line in lines[1:]] == [
        *(["bm25", "–", "demo"], ["demo", "128", "demo"], ["demo", "96", "demo"], ["demo", "64", "demo"])
    ]
    wide = on_a_terminal("report", "--wide", "--results-dir", f"{folder}/results", cwd=folder, columns=60)
    assert "recall@100" in "".join(wide)
    assert max(map(len, [*lines, *wide])) <= 80
    assert max(map(len, wide)) <= 60
    path = next((folder / "results" / "runs").glob("demo.test.demo-64.*/run.trec.gz"))
    scored = on_a_terminal("score", str(path), "dataset=demo", *SMALL, *places(folder), cwd=folder)
    assert len({line.rindex(" ") for line in scored if "@" in line}) == 1


def test_score_gives_a_saved_run_its_own_scores(finished):
    folder, _ = finished
    path = next((folder / "results" / "runs").glob("demo.test.demo-64.*/run.trec.gz"))
    done = evalkit("score", str(path), "dataset=demo", *SMALL, *places(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    saved = json.loads((path.parent / "scores.json").read_text("utf-8"))["metrics"]
    assert f"ndcg@10\t{saved['ndcg@10']:.5f}" in done.stdout


@pytest.mark.parametrize("place", ["results_dir", "cache_dir"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path, place, sweep):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    words = ["model=bm25,bm25s" if sweep else "model=bm25", *SMALL, *places(tmp_path), f"{place}={tmp_path}/file"]
    done = evalkit("run", *sweep, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    # In a sweep each combination says so, and a last line counts them; a cache is found out before the first one.
    lines = [line for line in done.stderr.splitlines() if not line.endswith(": loading")]
    assert len(lines) == (3 if sweep and place == "results_dir" else 1)
    assert "could not be written (Not a directory)" in lines[0]
    assert "choose another place (results_dir=DIR, cache_dir=DIR)" in lines[0]


def test_a_run_of_another_dataset_is_refused_and_not_scored_as_zero(tmp_path):
    (tmp_path / "run.trec").write_text("PLAIN-1 Q0 MED-1 1 2.5 x\n", encoding="utf-8")
    done = evalkit("score", "run.trec", "dataset=demo", *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    wanted = "got no query that demo (test) judges, but 'PLAIN-1' and so on, wanted 'q000000' and so on"
    assert f"evalkit: run.trec: {wanted}" in done.stderr


def test_one_bad_combination_does_not_cost_the_rest_of_a_sweep(tmp_path):
    words = ["-m", "model=bm25", "dataset=folder,demo", *places(tmp_path)]
    done = evalkit("run", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "evalkit: dataset=folder: dataset 'folder' is read" in done.stderr
    assert "wanted dataset.path=DIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [["bm25", "–", "demo"]]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "model=bm52"], 2, "evalkit: model 'bm52' unknown; did you mean bm25"),
        (["run", "dim=100"], 2, "evalkit: dim=100 is not a dim of model 'demo'; valid: 128, 96, 64"),
        (["run", "-m", "model=demo,nope"], 2, "evalkit: model 'nope' unknown"),
        (["run", "dataset=folder", "dataset.path=nowhere"], 1, "nothing at this path"),
        (["run", "-m", "--cfg", "job", "model=demo,bm25"], 2, "got -m --cfg job, wanted one of them"),
        (["ls", "modles"], 2, "evalkit: ls 'modles' unknown; did you mean models"),
        (["report", "--results-dir", "nowhere"], 1, "no finished cell under nowhere"),
        (["score", "nowhere.trec", "dataset=demo"], 1, "nowhere.trec"),
    ],
)
def test_a_mistake_is_one_line_and_a_nonzero_exit(tmp_path, words, code, message):
    extra = places(tmp_path) if words[0] in ("run", "score") else []
    done = evalkit(*words, *extra, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    # What is run is said before the libraries are loaded; the mistake itself is one line.
    assert len([line for line in done.stderr.splitlines() if not line.endswith(": loading")]) == 1
    assert done.stdout == ""


VERBS = ("run", "ls", "check", "fetch", "plan", "status", "report", "audit", "replay", "compare", "explain", "score")


def test_the_help_names_every_verb(tmp_path):
    words = evalkit("--help", cwd=tmp_path).stdout.split()
    assert set(words) >= {*VERBS, "cache", "rerank"}


@pytest.mark.parametrize("verb", [*VERBS, "rerank", "cache", "cache ls", "cache verify", "cache rm"])
def test_every_verbs_help_gives_an_example_and_says_what_it_needs(tmp_path, verb):
    done = evalkit(*verb.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    need = {
        **dict.fromkeys(("report", "replay", "compare", "explain", "score", "cache rm"), ", after evalkit run"),
        "fetch": ", which needs the network",
        "rerank": ", which needs a run file of the demo and fetches the re-ranker from the Hub",
    }.get(verb, "")
    assert f"Example{need}: evalkit {verb}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("what", ["models", "datasets", "analyzers", "engines", "experiments", "settings"])
def test_ls_lists_every_kind_of_name(tmp_path, what):
    done = evalkit("ls", what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_without_network_three_lines_say_what_was_tried_why_it_failed_and_what_to_do(tmp_path):
    words = ("run", "model=jina-colbert-v2", "dim=128", *SMALL, *places(tmp_path))
    done = evalkit(*words, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=f"{tmp_path}/hf")
    assert done.returncode == 1
    begun, *told = done.stderr.splitlines()
    assert begun == "jina-colbert-v2:128 on demo: loading"
    assert [line.split(": ")[1] for line in told] == ["tried", "failed", "to do"]
    assert "jinaai/jina-colbert-v2@" in told[0]
    assert "model.checkpoints.DIM.path=DIR" in told[2]
