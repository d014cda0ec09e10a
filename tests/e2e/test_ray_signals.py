"""A run with workers that is ended leaves no process and no shared memory behind, and the same command finishes it."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra evalkit[ray] is not installed")

SIZE = ["dim=64", "dataset.demo.documents=400", "dataset.demo.queries=12", "store.shard_tokens=3000"]
WORKERS = ["engine=ray", "engine.workers=1"]


def command(folder, *words):
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    return [sys.executable, "-m", "evalkit", "run", *SIZE, *places, *words]


def run_file(folder):
    (path,) = (folder / "results" / "runs").glob("*/run.trec.gz")
    return path.read_bytes()


def marked(mark):
    """Processes whose environment has a mark, which every child inherits: Ray's are in sessions of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes() and "\nState:\tZ" not in (path.parent / "status").read_text():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def shared_memory():
    return {path.name for path in Path("/dev/shm").iterdir() if "plasma" in path.name}


def until(what, *, process=None):
    """Wait for something that must come; the limit only ends a test that fails."""
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.long
def test_ended_runs_leave_nothing_behind_and_finish_in_the_same_bytes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=600)
    memory = shared_memory()
    topk = broken / "cache" / "topk"
    for shards, name in ((1, "SIGTERM"), (3, "SIGINT"), (5, "SIGKILL")):
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            command(broken, *WORKERS),
            env={**os.environ, "EVALKIT_TEST_MARK": mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda wanted=shards: len(list(topk.glob("*/*.json"))) >= wanted, process=process)
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=300)
        assert process.returncode != 0, "the run was over before the signal came; the test needs more documents"
        until(lambda mark=mark: not marked(mark))
        assert not list((broken / "results").rglob("scores.json"))
        assert shared_memory() <= memory
    done = subprocess.run(command(broken, *WORKERS), check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert run_file(broken) == run_file(whole)
