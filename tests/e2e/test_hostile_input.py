"""What text from outside does to a whole command: markup, terminal escapes, odd streams, folders and names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evalkit.storage import seal

COMMAND = [sys.executable, "-m", "evalkit"]
PLACES = ["results_dir=r", "cache_dir=c"]
MARKUP = "[/red]"
ESCAPE = "\x1b[2J"


def evalkit(*words, cwd, stdout=subprocess.PIPE, preexec_fn=None, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=600,
        check=False,
        encoding="utf-8",
        preexec_fn=preexec_fn,
        env={name: value for name, value in {**os.environ, **environment}.items() if value is not None},
    )


def dataset(folder, *, document=f"d1{MARKUP}", query=f"q1{MARKUP}", text=f"red {ESCAPE} fox"):
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": document, "text": text}, {"_id": "d2", "text": "grey wolf"}]
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in documents), "utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": query, "text": "red fox"}) + "\n", "utf-8")
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\t{document}\t1\n", "utf-8")
    return folder


PROGRESS = re.compile(r"(survey of )?\S+( (on|counts|scores) \S+)?: (loading|.* documents.*)")


def one_line(done, code):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert line.startswith("evalkit: ")
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hostile")
    dataset(made / "T")
    done = evalkit("run", "model=bm25", "dataset=folder", "dataset.path=T", *PLACES, cwd=made)
    assert done.returncode == 0, done.stderr
    return made


def test_markup_in_an_id_is_shown_as_it_is(folder):
    done = evalkit("explain", "bm25", "--results-dir", "r", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"\nq1{MARKUP} " in done.stdout


def test_no_escape_of_a_text_reaches_the_terminal(folder):
    words = ["--query", f"q1{MARKUP}", "--document", f"d1{MARKUP}"]
    for verb in (["explain", "bm25", *words], ["replay", "bm25"], ["report"], ["ls", "runs"]):
        done = evalkit(*verb, "--results-dir", "r", cwd=folder)
        assert "\x1b" not in done.stdout + done.stderr


def test_a_saved_config_keeps_paths_of_this_machine_in_a_file_that_may_be_deleted(folder, tmp_path):
    shutil.copytree(folder / "r", tmp_path / "r")
    (path,) = (tmp_path / "r" / "runs").glob("*/config.yaml")
    local = path.with_name("local.yaml")
    paths = {"results_dir": folder / "r", "cache_dir": folder / "c", "dataset.path": folder / "T"}
    assert local.read_text("utf-8") == "".join(f"{name}: {value}\n" for name, value in paths.items())
    assert "path: null" in path.read_text("utf-8")
    local.unlink()
    done = evalkit("replay", "bm25", "--results-dir", tmp_path / "r", "--dataset-path", folder / "T", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_output_is_one_line_and_the_results_are_there(tmp_path):
    dataset(tmp_path / "T")
    with Path("/dev/full").open("w") as full:
        done = evalkit(
            "run",
            "model=bm25",
            "dataset=folder",
            "dataset.path=T",
            "dataset.language=en",
            *PLACES,
            cwd=tmp_path,
            stdout=full,
        )
    line = one_line(done, 1)
    assert line == (
        "evalkit: standard output could not be written (No space left on device); results are where results_dir says"
    )
    assert len(list((tmp_path / "r" / "runs").glob("*/scores.json"))) == 1


def test_closed_streams_stop_nothing_and_receive_no_file(folder):
    done = evalkit("ls", "models", cwd=folder, preexec_fn=lambda: (os.close(0), os.close(1)))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", [["ls", "runs"], ["replay", "bm25"], ["explain", "bm25"], ["report"], ["status"]])
def test_an_output_of_ascii_alone_shows_other_characters_escaped(folder, verb):
    places = ["results_dir=r", "cache_dir=c"] if verb == ["status"] else ["--results-dir", "r"]
    without_utf8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for environment in ({"PYTHONIOENCODING": "ascii"}, without_utf8):
        done = evalkit(*verb, *places, cwd=folder, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()


def test_a_locale_that_cannot_read_a_runs_name_is_told_so(tmp_path):
    dataset(tmp_path / "größe")
    assert evalkit("run", "model=bm25", "dataset=folder", "dataset.path=größe", *PLACES, cwd=tmp_path).returncode == 0
    done = evalkit("report", "--results-dir", "r", cwd=tmp_path, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert "wanted its folder's name; set PYTHONUTF8=1, which reads such names" in one_line(done, 1)


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir '{gone}'; exec '{sys.executable}' -m evalkit ls models"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=gone, capture_output=True, text=True, check=False, env=environment
    )
    assert "the working folder cannot be used (No such file or directory); change to one that is there" in one_line(
        done, 1
    )


def test_a_path_that_no_file_system_takes_is_one_line(tmp_path):
    done = evalkit("run", "model=bm25", "dataset=folder", f"dataset.path={'x' * 300}", *PLACES, cwd=tmp_path)
    assert "File name too long" in one_line(done, 1)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"model": "../x"}, "model is '../x', wanted letters"),
        ({"dataset": "../../x"}, "dataset is '../../x', wanted letters"),
        ({"split": ".."}, "split is '..', wanted letters"),
        ({"environment": {"checkpoint": {"revision": "../../../x"}}}, "revision is '../../../x', wanted letters"),
    ],
)
def test_names_in_a_result_cannot_make_a_report_write_elsewhere(folder, tmp_path, values, wanted):
    (path,) = (folder / "r" / "runs").glob("*/scores.json")
    runs = tmp_path / "in" / "runs" / path.parent.name
    runs.mkdir(parents=True)
    scores = seal.seal(seal.read(path.read_bytes()) | values)
    (runs / "scores.json").write_text(json.dumps(scores), "utf-8")
    done = evalkit("report", "--results-dir", "in", "--out", "out/deep/er", cwd=tmp_path)
    assert wanted in one_line(done, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_run_without_a_hit_is_read_like_any_other(tmp_path):
    dataset(tmp_path / "T", query="q1", document="d1", text="nothing alike")
    done = evalkit("run", "model=bm25", "dataset=folder", "dataset.path=T", *PLACES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "r" / "runs").glob("*/run.trec.gz")
    for words in (["explain", "bm25", "--results-dir", "r"], ["replay", "bm25", "--results-dir", "r"]):
        done = evalkit(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    scored = evalkit("score", run, "dataset=folder", "dataset.path=T", cwd=tmp_path)
    assert "ndcg@10\t0.00000" in scored.stdout
    run.write_bytes(b"")
    emptied = evalkit("score", run, "dataset=folder", "dataset.path=T", cwd=tmp_path)
    assert "got an empty file, wanted a TREC run" in one_line(emptied, 1)


def test_a_password_in_the_hub_s_address_is_told_nowhere(tmp_path):
    words = ["model=jina-colbert-v2", "dim=64", "dataset=demo", *PLACES]
    environment = {"HF_ENDPOINT": "http://me:hunter22@127.0.0.1:9", "HF_HOME": "hf", "HF_HUB_OFFLINE": None}
    done = evalkit("run", *words, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "could not be reached (http://***@127.0.0.1:9" in done.stderr
    status = evalkit("status", *PLACES, cwd=tmp_path, **environment)
    assert "hunter22" not in done.stderr + status.stdout + status.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter22" in path.read_bytes()]


def test_a_package_that_breaks_transformers_is_named_in_one_line(tmp_path):
    broken = tmp_path / "broken"
    for name, text in (
        ("torchvision/__init__.py", 'raise RuntimeError("operator torchvision::nms does not exist")\n'),
        ("torchvision-0.20.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n"),
    ):
        (broken / name).parent.mkdir(parents=True)
        (broken / name).write_text(text, "utf-8")
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(broken)])
    done = evalkit(
        "run",
        "dim=64",
        "dataset.demo.documents=120",
        "dataset.demo.queries=12",
        *PLACES,
        cwd=tmp_path,
        PYTHONPATH=paths,
    )
    line = one_line(done, 1)
    assert "transformers cannot be imported here (RuntimeError: operator torchvision::nms does not exist)" in line
    assert "reinstall or remove that package" in line
