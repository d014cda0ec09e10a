"""kill -9 at any moment, the same command again: nothing finished is redone, and the run file has the same bytes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZE = ["dataset.demo.documents=600", "dataset.demo.queries=30", "store.shard_tokens=2000", "engine.threads=1"]


def command(folder: Path, *words: str) -> list[str]:
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    return [sys.executable, "-m", "evalkit", "run", *SIZE, *places, *words]


def run_file(folder: Path) -> bytes:
    (path,) = (folder / "results" / "runs").glob("*/run.trec.gz")
    return path.read_bytes()


def finished_shards(folder: Path) -> dict[str, int]:
    """Every checkpoint whose manifest is there, with the time at which its arrays were written."""
    manifests = (folder / "cache").glob("*/*/*.json")
    return {str(path): path.with_suffix(".safetensors").stat().st_mtime_ns for path in manifests}


@pytest.mark.parametrize("model", ["demo", "bm25"])
def test_a_killed_run_goes_on_where_it_stopped_and_ends_in_the_same_bytes(tmp_path, model):
    words = [f"model={model}", *(["dim=64"] if model == "demo" else [])]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, *words), check=True, capture_output=True, timeout=600)

    kills = 0
    for shards_before_the_kill in (1, 3, 6):
        process = subprocess.Popen(command(killed, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            written = list((killed / "cache" / "topk").glob("*/*.json"))
            if len(written) >= shards_before_the_kill:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait(timeout=300)
        if process.returncode == 0:
            break
    assert kills > 0, "every run was over before it could be killed; the test needs more documents"
    before = finished_shards(killed)
    subprocess.run(command(killed, *words), check=True, capture_output=True, timeout=600)
    after = finished_shards(killed)
    assert {path: after[path] for path in before} == before
    assert run_file(killed) == run_file(whole)


def test_a_damaged_shard_is_redone_and_reported(tmp_path):
    words = command(tmp_path, "model=demo", "dim=64")
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    wanted = run_file(tmp_path)
    shard = sorted((tmp_path / "cache" / "stores").glob("*/*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-7] + b"damaged")
    for path in [*(tmp_path / "cache" / "topk").glob("*/*"), *(tmp_path / "results" / "runs").glob("*/*")]:
        path.unlink()
    again = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
    (said,) = [line for line in again.stderr.splitlines() if "the shard is redone" in line]
    assert said.startswith(f"{shard}: checksum is ")
    assert run_file(tmp_path) == wanted
