"""`evalkit fetch` as a user types it: on disk, proved, moved, and refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from shared_material import shared_data


def evalkit(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_selection_is_fetched_and_then_proved_without_the_network(tmp_path: Path) -> None:
    """The demo needs no network at all; its checksums are the same both times."""
    words = ("model=demo,bm25", "dim=128,64", "dataset=demo", "dataset.demo.documents=100", "dataset.demo.queries=20")
    place = f"cache_dir={tmp_path / 'cache'}"
    fetched = evalkit("fetch", *words, place, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert "model demo at dim 128, 64: on disk, from package evalkit.models:demo/demo-colbert" in fetched.stdout
    proved = evalkit("fetch", *words, place, "--verify", cwd=tmp_path)
    assert proved.returncode == 0, proved.stderr
    assert "dataset demo test: read whole, network off, from demo" in proved.stdout
    checksums = [line for line in fetched.stdout.splitlines() if line.startswith("  ")]
    assert checksums
    assert set(checksums) <= set(proved.stdout.splitlines())


def test_the_integrity_report_of_nfcorpus_is_printed(tmp_path: Path) -> None:
    """Forty texts occur twice; no judged document is missing; no id means two things."""
    words = ("model=bm25", "dataset=beir/nfcorpus", f"dataset.path={shared_data('nfcorpus')}")
    done = evalkit("fetch", *words, "--verify", f"cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "texts that occurred before        40 (MED-2123, MED-2205, MED-2432, …)" in done.stdout
    assert "ids of both query and document    0" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dataset=beir/nfcropus"], 2, "dataset 'beir/nfcropus' unknown; did you mean beir/nfcorpus"),
        (["model=bm25", "dataset=demo", "--bundle", "b.tar"], 1, "nothing of this selection needs moving"),
        (["--unpack", "nowhere.tar"], 1, "nowhere.tar: got nothing at this path, wanted a bundle"),
        (["dataset=folder", "dataset.path=nowhere"], 1, "nowhere: got nothing at this path"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    place = [f"cache_dir={tmp_path / 'cache'}"] if any("=" in word for word in words) else []
    done = evalkit("fetch", *words, *place, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
