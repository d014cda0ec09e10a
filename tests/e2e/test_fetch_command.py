"""`evalkit fetch` as a user types it: on disk, proved, moved, and refused in one line."""

import contextlib
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import write_jina_checkpoint
from fake_hub import FakeHub
from shared_material import shared_data

from evalkit.config.compose import compose
from evalkit.storage.paths import file_checksum


def evalkit(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evalkit", *words], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


def test_a_selection_is_fetched_and_then_proved_without_the_network(tmp_path: Path) -> None:
    """The demo needs no network at all; its checksums are the same both times."""
    words = ("model=demo,bm25", "dim=128,64", "dataset=demo", "dataset.demo.documents=100", "dataset.demo.queries=20")
    place = f"cache_dir={tmp_path / 'cache'}"
    fetched = evalkit("fetch", *words, place, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert "model demo:128,64: on disk, from package evalkit.models:demo/demo-colbert" in fetched.stdout
    proved = evalkit("fetch", *words, place, "--verify", cwd=tmp_path)
    assert proved.returncode == 0, proved.stderr
    assert "dataset demo test: read completely, network off, from demo" in proved.stdout
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


SMALL = ["dim=128", "dataset=demo", "dataset.demo.documents=100", "dataset.demo.queries=20"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that holds a small jina-colbert-v2, large enough to be cut off inside."""
    commit = compose(["model=jina-colbert-v2"]).model.checkpoints["128"].revision
    with FakeHub() as server:
        folder = write_jina_checkpoint(tmp_path / "repository", dim=128, hidden=640, layers=3)
        server.publish("jinaai/jina-colbert-v2", folder, commit=commit)
        yield server


def reaching(hub: FakeHub, home: Path) -> dict[str, str]:
    offline = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE")
    inherited = {name: value for name, value in os.environ.items() if name not in offline}
    return {**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)}


def test_a_download_that_was_killed_goes_on_where_it_stopped(tmp_path: Path, hub: FakeHub) -> None:
    """The second process asks for the rest alone, prints no bar into a pipe, and the file is whole."""
    command = [sys.executable, "-m", "evalkit", "fetch", "model=jina-colbert-v2", *SMALL]
    command += [f"cache_dir={tmp_path / 'cache'}"]
    settings = {"env": reaching(hub, tmp_path / "home"), "cwd": tmp_path, "text": True}
    hub.faults["model.safetensors"] = ("stall", 25_000_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as killed:
        assert hub.stalled.wait(600)
        (partial,) = waited_for(
            lambda: [path for path in (tmp_path / "home").rglob("*.incomplete") if size(path)], killed
        )
        killed.kill()
    kept = size(partial)
    assert 0 < kept <= 25_000_000
    hub.go_on.set()
    hub.faults.clear()
    hub.asked.clear()
    done = subprocess.run(command, capture_output=True, timeout=600, check=False, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert [each.range for each in hub.gets("model.safetensors")] == [f"bytes={kept}-"]
    assert f"128/model.safetensors             {file_checksum(tmp_path / 'repository' / 'model.safetensors')}" in (
        done.stdout
    )
    hub.asked.clear()
    again = subprocess.run(command, capture_output=True, timeout=600, check=False, **settings)
    assert again.returncode == 0
    assert not [each for each in hub.asked if "/resolve/" in each.path]


def waited_for(found: Callable[[], list[Path]], process: subprocess.Popen[str]) -> list[Path]:
    """Wait, however long it takes, for what a process will leave; the server holds the process until then."""
    while not (paths := found()):
        assert process.poll() is None, "the download ended before a part of it was on disk"
        time.sleep(0.01)
    return paths


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def test_progress_is_shown_on_a_terminal(tmp_path: Path, hub: FakeHub) -> None:
    command = [sys.executable, "-m", "evalkit", "fetch", "model=jina-colbert-v2", *SMALL]
    command += [f"cache_dir={tmp_path / 'cache'}"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    shown = bytearray()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env=reaching(hub, tmp_path / "home"), cwd=tmp_path
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal says that its last user has gone
            while piece := os.read(ours, 1 << 16):
                shown += piece
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    assert "jina-colbert-v2/model.safetensors: 100%" in shown.decode()
    assert "MB/s" in shown.decode()
