"""kill -9 at any moment, the same command again: nothing finished is redone, and the run file has the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from holding import held_run

SIZE = ["dataset.demo.documents=300", "dataset.demo.queries=30", "store.shard_tokens=2000", "engine.threads=1"]


def words_of(folder: Path, *words: str) -> list[str]:
    return ["run", *SIZE, f"results_dir={folder}/results", f"cache_dir={folder}/cache", *words]


def finish(words: list[str]) -> str:
    command = [sys.executable, "-m", "evalkit", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stderr


def run_file(folder: Path) -> bytes:
    (path,) = (folder / "results" / "runs").glob("*/run.trec.gz")
    return path.read_bytes()


def finished_shards(folder: Path) -> dict[str, int]:
    """Every checkpoint whose manifest is there, with the time at which its arrays were written."""
    manifests = (folder / "cache").glob("*/*/*.json")
    return {str(path): path.with_suffix(".safetensors").stat().st_mtime_ns for path in manifests}


@pytest.mark.parametrize("model", ["demo", "bm25"])
def test_a_killed_run_goes_on_where_it_stopped_and_ends_in_the_same_bytes(tmp_path, model):
    """Killed three times: between the two files of a checkpoint, before the first of them, and between them again."""
    words = [f"model={model}", *(["dim=64"] if model == "demo" else [])]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(words_of(whole, *words))
    for before, count, finished in (
        ("topk/*/*.json", 2, 1),
        ("topk/*/*.safetensors", 3, 1 + 2),
        ("topk/*/*.json", 4, 3 + 3),
    ):
        with held_run(words_of(killed, *words), tmp_path, before=before, count=count) as process:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=600)
        assert len(list((killed / "cache" / "topk").glob("*/*.json"))) == finished
    before = finished_shards(killed)
    finish(words_of(killed, *words))
    after = finished_shards(killed)
    assert {path: after[path] for path in before} == before
    assert len(after) > len(before)
    assert run_file(killed) == run_file(whole)


def test_a_damaged_manifest_is_reported_once(tmp_path):
    words = words_of(tmp_path, "model=demo", "dim=64")
    finish(words)
    wanted = run_file(tmp_path)
    manifest = sorted((tmp_path / "cache" / "stores").glob("*/*.json"))[2]
    manifest.write_bytes(manifest.read_bytes().replace(b"format", b"fOrmat", 1))
    for path in [*(tmp_path / "cache" / "topk").glob("*/*"), *(tmp_path / "results" / "runs").glob("*/*")]:
        path.unlink()
    (said,) = [line for line in finish(words).splitlines() if "the shard is redone" in line]
    assert said.startswith(f"{manifest}: manifest damaged")
    assert run_file(tmp_path) == wanted


def test_a_damaged_shard_is_redone_and_reported(tmp_path):
    words = words_of(tmp_path, "model=demo", "dim=64")
    finish(words)
    wanted = run_file(tmp_path)
    shard = sorted((tmp_path / "cache" / "stores").glob("*/*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-7] + b"damaged")
    for path in [*(tmp_path / "cache" / "topk").glob("*/*"), *(tmp_path / "results" / "runs").glob("*/*")]:
        path.unlink()
    (said,) = [line for line in finish(words).splitlines() if "the shard is redone" in line]
    assert said.startswith(f"{shard}: checksum is ")
    assert run_file(tmp_path) == wanted
