"""Threads beside the model end with the run: no signal leaves an orphan, and the same command ends the work."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE = [
    "dim=64",
    "dataset.demo.documents=400",
    "dataset.demo.queries=50",
    "store.shard_tokens=3000",
    "engine.threads=1",
]


def command(folder, workers):
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    return [sys.executable, "-m", "evalkit", "run", *SIZE, f"engine.tokenizer_workers={workers}", *places]


def run_file(folder):
    (path,) = (folder / "results" / "runs").glob("*/run.trec.gz")
    return path.read_bytes()


def members(group):
    """Processes of a process group that are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(folder, 0), check=True, capture_output=True, timeout=600)
    return run_file(folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_signal_ends_every_thread_and_the_run_resumes_to_the_same_bytes(tmp_path, name, wanted):
    folder = tmp_path / "broken"
    process = subprocess.Popen(
        command(folder, 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((folder / "cache" / "topk").glob("*/*.json"))) >= 2:
            process.send_signal(getattr(signal, name))
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode != 0, "the run was over before the signal came; the test needs more documents"
    assert members(process.pid) == []
    assert not list((folder / "results").rglob("scores.json"))
    subprocess.run(command(folder, 2), check=True, capture_output=True, timeout=600)
    assert run_file(folder) == wanted
