"""Threads beside the model end with the run: no signal leaves an orphan, and the same command ends the work."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from holding import go_on, held_run

SIZE = [
    "dim=64",
    "dataset.demo.documents=150",
    "dataset.demo.queries=50",
    "store.shard_tokens=3000",
    "engine.threads=1",
]


def words(folder, workers):
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    return ["run", *SIZE, f"engine.tokenizer_workers={workers}", *places]


def finish(folder, workers):
    command = [sys.executable, "-m", "evalkit", *words(folder, workers)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
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
    return finish(tmp_path_factory.mktemp("whole"), 0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_signal_ends_every_thread_and_the_run_resumes_to_the_same_bytes(tmp_path, name, wanted):
    """The signal comes while one thread writes the second shard, another tokenises ahead and the model has the third.

    After SIGINT that write is let go on: the run waits for it before it ends.
    """
    folder = tmp_path / "broken"
    with held_run(words(folder, 2), tmp_path, before="stores/*/*.json", count=2, start_new_session=True) as process:
        process.send_signal(getattr(signal, name))
        go_on(tmp_path)
        process.communicate(timeout=600)
        assert process.returncode != 0
        assert members(process.pid) == []
    assert not list((folder / "results").rglob("scores.json"))
    assert len(list((folder / "cache" / "topk").glob("*/*.json"))) in {1, 2}
    assert finish(folder, 2) == wanted
