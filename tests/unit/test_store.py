"""Shards on disk: whole, verified, never trusted because they merely exist."""

import json
import logging

import torch

from evalkit import store
from evalkit.store import ShardVectors


def shard():
    return ShardVectors(("é", "doc 2"), torch.tensor([2, 1]), torch.arange(6).view(3, 2).half())


def saved(folder):
    store.save(folder, "shard-00000", store.vectors_to_arrays(shard()), {"start": 0})
    return folder


def test_a_saved_shard_comes_back_as_it_was(tmp_path):
    arrays = store.load(saved(tmp_path), "shard-00000")
    back = store.vectors_from_arrays(arrays)
    assert back.ids == shard().ids
    assert torch.equal(back.lengths_N, shard().lengths_N)
    assert torch.equal(back.vectors_XD, shard().vectors_XD)
    assert back.vectors_XD.dtype == torch.float16


def test_a_shard_without_its_manifest_is_unfinished(tmp_path):
    (saved(tmp_path) / "shard-00000.json").unlink()
    assert store.finished(tmp_path, "shard-00000") is None
    assert store.load(tmp_path, "shard-00000") is None


def test_a_shard_with_one_flipped_bit_is_not_trusted_and_reported(tmp_path, caplog):
    path = saved(tmp_path) / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.load(tmp_path, "shard-00000") is None
    assert "checksum" in caplog.text
    assert "the shard is redone" in caplog.text


def test_a_shard_cut_short_is_unfinished(tmp_path):
    path = saved(tmp_path) / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.finished(tmp_path, "shard-00000") is None


def test_a_damaged_manifest_is_reported_and_the_shard_redone(tmp_path, caplog):
    (saved(tmp_path) / "shard-00000.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert store.load(tmp_path, "shard-00000") is None
    assert "manifest damaged" in caplog.text


def test_a_shard_of_another_format_is_unfinished(tmp_path):
    path = saved(tmp_path) / "shard-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}), encoding="utf-8")
    assert store.load(tmp_path, "shard-00000") is None


def test_saving_leaves_no_temporary_file(tmp_path):
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == ["shard-00000.json", "shard-00000.safetensors"]
