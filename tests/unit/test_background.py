"""The threads beside the model: one shard ahead, one behind, and nothing lost when one of them fails."""

import os
import resource
import subprocess
import sys
import threading
import time

import pytest
import torch

from evalkit.config.compose import compose
from evalkit.engines.local import map_shards
from evalkit.errors import ConfigError, StoreError
from evalkit.run.background import Prefetcher, Writer, limit_tokenizer, tokenizer_threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_tokenises_in_turn_on_the_cpu_and_ahead_of_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert [tokenizer_threads("auto", device) for device in (CPU, CUDA)] == [0, 8]
    assert [tokenizer_threads(asked, CPU) for asked in (0, 1, 5)] == [0, 1, 5]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert tokenizer_threads("auto", CUDA) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1", "engine.tokenizer_workers=-1: wanted auto, 0 or up to 1024 threads"),
        ("two", "engine.tokenizer_workers='two': wanted one of auto or a whole number"),
    ],
)
def test_a_number_of_threads_that_is_none_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        compose([f"engine.tokenizer_workers={value}"])


def test_the_tokenizers_pool_is_limited_unless_the_user_has_said_so(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "kept")
    limit_tokenizer(3)
    assert os.environ["RAYON_NUM_THREADS"] == "kept"
    monkeypatch.delenv("RAYON_NUM_THREADS")
    limit_tokenizer(0)
    assert "RAYON_NUM_THREADS" not in os.environ
    monkeypatch.setenv("RAYON_NUM_THREADS", "")
    monkeypatch.delenv("RAYON_NUM_THREADS")
    limit_tokenizer(3)
    assert os.environ.pop("RAYON_NUM_THREADS") == "3"


def test_the_engine_names_each_shard_while_the_one_before_it_has_its_turn():
    heard = []
    results = list(map_shards(lambda shard: heard.append(shard) or shard, "abc", ahead=lambda s: heard.append(s + "?")))
    assert results == ["a", "b", "c"]
    assert heard == ["b?", "a", "c?", "b", "c"]
    assert list(map_shards(str, [])) == []


def test_an_item_is_prepared_in_a_thread_before_it_is_taken():
    threads = {}
    ready = threading.Event()

    def prepare(item):
        threads[item] = threading.current_thread().name
        ready.set()
        return item * 2

    with Prefetcher(prepare, threaded=True) as ahead:
        ahead.start(1)
        assert ready.wait(timeout=600)
        assert ahead.take(1) == 2
        assert ahead.take(7) == 14
    assert threads[1].startswith("evalkit-ahead")
    assert threads[7] == threading.current_thread().name


def test_without_a_thread_an_item_is_prepared_on_use():
    prepared = []
    with Prefetcher(lambda item: prepared.append(item) or item, threaded=False) as ahead:
        ahead.start(1)
        assert prepared == []
        assert ahead.take(1) == 1


def test_items_that_nobody_takes_are_not_kept():
    with Prefetcher(lambda item: item, threaded=True) as ahead:
        for item in range(50):
            ahead.start(item)
            assert len(ahead._started) <= 2
        assert ahead.take(49) == 49


def test_what_fails_ahead_fails_when_it_is_taken():
    def prepare(item):
        raise ValueError(f"document {item} is damaged")

    with Prefetcher(prepare, threaded=True) as ahead:
        ahead.start(3)
        with pytest.raises(ValueError, match="document 3 is damaged"):
            ahead.take(3)


def test_leaving_ends_the_thread_and_drops_what_was_not_begun():
    with Prefetcher(lambda _: time.sleep(0.05), threaded=True) as ahead:
        ahead.start(1)
        ahead.start(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("evalkit-ahead")]


def test_checkpoints_are_written_in_order_behind_the_caller(tmp_path):
    written = []
    go = threading.Event()

    def write(name):
        assert go.wait(timeout=600)
        written.append((name, threading.current_thread().name[:14]))

    with Writer() as writer:
        for name in "ab":
            writer.submit(tmp_path / name, lambda name=name: write(name))
        assert written == []
        go.set()
        writer.wait()
        assert [name for name, _ in written] == ["a", "b"]
        writer.submit(tmp_path / "c", lambda: write("c"))
    assert written == [(name, "evalkit-writer") for name in "abc"]


def full():
    raise OSError(28, "No space left on device")


def test_a_write_that_fails_names_its_path_and_stops_all_later_ones(tmp_path):
    later = []
    writer = Writer()
    writer.submit(tmp_path / "shard-00001", full)
    with pytest.raises(
        StoreError,
        match=r"shard-00001: could not be written \(.*No space left.*\); finished shards are kept: free disk",
    ):
        writer.wait()
    writer.submit(tmp_path / "shard-00002", lambda: later.append(2))
    writer.wait()
    assert later == []


def test_a_failed_write_is_heard_of_by_the_next_one_at_the_latest(tmp_path):
    writer = Writer()
    writer.submit(tmp_path / "shard-00001", full)
    deadline = time.monotonic() + 600
    while not writer._pending[0].done() and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(StoreError, match="shard-00001: could not be written"):
        writer.submit(tmp_path / "shard-00002", lambda: None)


def test_leaving_waits_for_what_is_being_written_and_raises_what_failed(tmp_path):
    with pytest.raises(StoreError, match="shard-00001: could not be written"), Writer() as writer:
        writer.submit(tmp_path / "shard-00001", full)


def interrupted(writer, path):
    writer.submit(path, full)
    raise KeyboardInterrupt


def test_a_failed_write_does_not_hide_the_error_that_ended_the_run(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt), Writer() as writer:
        interrupted(writer, tmp_path / "shard-00001")
    assert "shard-00001: could not be written" in caplog.text


def test_a_full_disk_stops_the_run_with_the_path_and_keeps_what_is_whole(tmp_path):
    """A limit on the size of a file stands for the full disk: only shards larger than it cannot be written."""
    words = [sys.executable, "-m", "evalkit", "run", "dim=128", "dataset.demo.documents=300", "dataset.demo.queries=50"]
    words += [
        "store.shard_tokens=64000",
        "engine.threads=1",
        f"results_dir={tmp_path / 'r'}",
        f"cache_dir={tmp_path / 'c'}",
    ]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    options = {"capture_output": True, "text": True, "timeout": 600}
    failed = subprocess.run(words, check=False, preexec_fn=limit, **options)
    said = " ".join(failed.stderr.split())
    assert failed.returncode == 1
    assert "could not be written (" in said
    assert "finished shards are kept" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "r").rglob("scores.json"))
    assert not list((tmp_path / "c").rglob("*.tmp"))
    assert not list((tmp_path / "c" / "topk").rglob("*.json"))
    subprocess.run(words, check=True, **options)
