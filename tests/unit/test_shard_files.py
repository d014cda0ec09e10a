"""Shards on disk: whole, verified, never trusted because they merely exist."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from evalkit.errors import StoreError
from evalkit.ragged import ragged
from evalkit.run import identity
from evalkit.storage import shard_files
from evalkit.storage.shard_files import ShardVectors


def shard():
    return ShardVectors(("é", "doc 2"), ragged(torch.arange(6).view(3, 2).half(), torch.tensor([2, 1])))


def saved(folder):
    shard_files.save(folder, "shard-00000", shard_files.vectors_to_arrays(shard()), {"start": 0})
    return folder


def test_a_saved_shard_comes_back_as_it_was(tmp_path):
    arrays = shard_files.load(saved(tmp_path), "shard-00000")
    back = shard_files.vectors_from_arrays(arrays)
    assert back.ids == shard().ids
    assert torch.equal(back.vectors.lengths_N, shard().vectors.lengths_N)
    assert torch.equal(back.vectors.rows_XD, shard().vectors.rows_XD)
    assert back.vectors.rows_XD.dtype == torch.float16


def test_a_shard_without_its_manifest_is_unfinished(tmp_path):
    (saved(tmp_path) / "shard-00000.json").unlink()
    assert shard_files.finished(tmp_path, "shard-00000") is None
    assert shard_files.load(tmp_path, "shard-00000") is None


def test_a_shard_with_one_flipped_bit_is_not_trusted_and_reported(tmp_path, caplog):
    path = saved(tmp_path) / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert shard_files.load(tmp_path, "shard-00000") is None
    assert "checksum" in caplog.text
    assert "the shard is redone" in caplog.text


def test_a_shard_cut_short_is_unfinished(tmp_path):
    path = saved(tmp_path) / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert shard_files.finished(tmp_path, "shard-00000") is None


def test_a_damaged_manifest_is_reported_and_the_shard_redone(tmp_path, caplog):
    (saved(tmp_path) / "shard-00000.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert shard_files.load(tmp_path, "shard-00000") is None
    assert "manifest damaged" in caplog.text


def test_a_shard_of_another_format_is_unfinished(tmp_path):
    path = saved(tmp_path) / "shard-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}), encoding="utf-8")
    assert shard_files.load(tmp_path, "shard-00000") is None


def test_saving_leaves_no_temporary_file(tmp_path):
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == ["shard-00000.json", "shard-00000.safetensors"]


WRITER = """
import sys, torch
from pathlib import Path
from evalkit.ragged import ragged
from evalkit.storage import shard_files
from evalkit.storage.shard_files import ShardVectors
vectors = torch.arange(300_000).view(-1, 3).half()
arrays = shard_files.vectors_to_arrays(ShardVectors(("a", "b"), ragged(vectors, torch.tensor([1, len(vectors) - 1]))))
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    shard_files.save(Path(sys.argv[1]), "shared", arrays, {"run_id": sys.argv[2], "encode_s": number})
"""


def test_two_processes_that_write_one_shard_leave_it_whole_at_every_moment(tmp_path):
    """Two datasets that share the shard, run side by side: the arrays are equal, so that either's manifest fits."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    loaded = 0
    while any(writer.poll() is None for writer in writers):
        if shard_files.finished(tmp_path, "shared") is not None:
            assert shard_files.load(tmp_path, "shared") is not None
            loaded += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdin.close()
        writer.stdout.close()
    assert loaded > 0
    assert shard_files.load(tmp_path, "shared") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared.json", "shared.safetensors"]


def test_a_write_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(path, arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_files, "_write", full)
    with pytest.raises(StoreError, match=r"shard-00000.safetensors: could not be written \(No space left on device\)"):
        saved(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_store_key_holds_what_moves_a_documents_vector_and_no_query_rule():
    facts = {"checkpoint": {"model": "x"}, "query": {"max_tokens": 32}, "document": {"max_tokens": 300}, "dim": 128}
    key = identity.store_key(facts)
    assert identity.store_key({**facts, "query": {"max_tokens": 64}}) == key
    for other in ({"document": {"max_tokens": 180}}, {"dim": 64}, {"checkpoint": {"model": "y"}}):
        assert identity.store_key({**facts, **other}) != key
