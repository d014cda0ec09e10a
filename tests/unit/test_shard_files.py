"""Shards on disk: whole, verified, never trusted because they merely exist."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evalkit.errors import StoreError
from evalkit.operations import inventory
from evalkit.ragged import ragged
from evalkit.run import identity
from evalkit.storage import seal, shard_files
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


def edited(path, **changes):
    """Change a manifest under a checksum that fits, as only another evalkit could."""
    values = seal.read(path.read_bytes())
    path.write_bytes(json.dumps(seal.seal(values | changes)).encode())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "got a list, wanted a JSON object"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "brackets nested too deep"),
        (b'{"facts": []}', "its format is None, this evalkit reads 2"),
        (b'{"format": 1, "size_bytes": 9, "xxh3_128": "0", "facts": {}}', "its format is 1, this evalkit reads 2"),
        (b'{"format": 2, "size_bytes": 9, "facts": {}}', "got no xxh3_128, wanted the checksum of its content"),
        (b'{"format": 2, "xxh3_128": 5}', "its content has checksum "),
        (json.dumps(seal.seal({"format": 2})).encode(), "'name'"),
    ],
    ids=["cut", "list", "not utf-8", "deep", "facts alone", "format 1", "no checksum", "other type", "fields missing"],
)
def test_a_manifest_that_cannot_be_believed_is_one_line_and_its_shard_redone(tmp_path, caplog, data, reason):
    path = saved(tmp_path) / "shard-00000.json"
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert shard_files.finished(tmp_path, "shard-00000") is None
        assert shard_files.load(tmp_path, "shard-00000") is None
    for record in caplog.records:
        line = record.getMessage()
        assert line.startswith(f"{path}: manifest damaged or not of this version (")
        assert reason in line
        assert line.endswith("the shard is redone")
        assert "\n" not in line
    with pytest.raises(StoreError, match="manifest damaged"):
        shard_files.read_manifest(tmp_path, "shard-00000")
    shard_files.save(tmp_path, "shard-00000", shard_files.vectors_to_arrays(shard()), {"start": 0})
    assert shard_files.finished(tmp_path, "shard-00000") == {"start": 0}


@pytest.mark.parametrize("changes", [{"facts": {"start": 0, "vectors": 13}}, {"size_bytes": 1}, {"name": "other"}])
def test_a_manifest_with_one_value_edited_is_not_believed(tmp_path, caplog, changes):
    path = saved(tmp_path) / "shard-00000.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert shard_files.finished(tmp_path, "shard-00000") is None
    assert "its content has checksum" in caplog.text


def test_a_shard_under_another_shards_name_is_not_that_shard(tmp_path, caplog):
    for path in sorted(saved(tmp_path).iterdir()):
        path.rename(tmp_path / f"other{path.suffix}")
    with caplog.at_level(logging.WARNING):
        assert shard_files.load(tmp_path, "other") is None
    assert "it is of shard shard-00000, wanted other" in caplog.text


def test_a_manifest_that_is_a_folder_is_one_line(tmp_path, caplog):
    path = saved(tmp_path) / "shard-00000.json"
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        assert shard_files.finished(tmp_path, "shard-00000") is None
    assert f"{path}: manifest damaged or not of this version (Is a directory); the shard is redone" in caplog.text


@pytest.mark.parametrize("name", ["read_bytes", "stat"])
def test_a_file_that_may_not_be_read_is_one_line(tmp_path, caplog, monkeypatch, name):
    saved(tmp_path)

    def refused(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path." + name, refused)
    with caplog.at_level(logging.WARNING):
        assert shard_files.load(tmp_path, "shard-00000") is None
    (record,) = caplog.records
    assert "(Permission denied); the shard is redone" in record.getMessage()


def test_a_manifest_is_read_once_for_a_load(tmp_path, monkeypatch):
    saved(tmp_path)
    read, found = Path.read_bytes, []

    def counted(self):
        found.append(self.name)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    assert shard_files.load(tmp_path, "shard-00000") is not None
    assert found == ["shard-00000.json"]


def test_the_cache_names_every_shard_that_cannot_be_believed(tmp_path):
    folder = tmp_path / "stores" / "key"
    for name in ("a", "b", "c", "d"):
        shard_files.save(folder, name, {"x": torch.arange(2)}, {"run_id": "ds.test.m.1"})
    (folder / "a.json").write_text('{"facts": []}', encoding="utf-8")
    (folder / "b.json").write_bytes(b"\xff")
    (folder / "c.json").unlink()
    (folder / "c.json").mkdir()
    found = inventory.entries(tmp_path, ())
    assert sum(len(entry.shards) for entry in found) == 4
    checked = inventory.verify(found)
    assert (checked.intact, checked.unfinished) == (1, 0)
    assert [line.partition(": ")[0] for line in sorted(checked.damaged)] == [str(folder / f"{x}.json") for x in "abc"]
    assert all("\n" not in line for line in checked.damaged)


def test_a_shard_of_another_format_is_unfinished(tmp_path):
    path = saved(tmp_path) / "shard-00000.json"
    edited(path, format=99)
    assert shard_files.load(tmp_path, "shard-00000") is None


def test_saving_leaves_no_temporary_file(tmp_path):
    assert sorted(path.name for path in saved(tmp_path).iterdir()) == ["shard-00000.json", "shard-00000.safetensors"]


WRITER = """
import select, sys, torch
from itertools import count
from pathlib import Path
from evalkit.ragged import ragged
from evalkit.storage import shard_files
from evalkit.storage.shard_files import ShardVectors
vectors = torch.arange(300_000).view(-1, 3).half()
arrays = shard_files.vectors_to_arrays(ShardVectors(("a", "b"), ragged(vectors, torch.tensor([1, len(vectors) - 1]))))
for number in count():
    shard_files.save(Path(sys.argv[1]), "shared", arrays, {"run_id": sys.argv[2], "encode_s": number})
    if number == 0:
        print("saved", flush=True)
    if number >= 20 and select.select([sys.stdin], [], [], 0)[0]:
        break
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
        assert writer.stdout.readline() == "saved\n"
    for _ in range(40):  # both go on writing until they are told to stop
        assert shard_files.finished(tmp_path, "shared") is not None
        assert shard_files.load(tmp_path, "shared") is not None
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdin.close()
        writer.stdout.close()
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


def test_the_store_key_of_a_protocol_is_that_of_its_system_alone():
    system = {"dim": 8, "query": {"max_tokens": 32}}
    corpus = {"corpus": "0f", "shard_tokens": 1000, "cut": "by content, 1"}
    search = {"queries": "1e", "depth": 100, "drop_self": True, "search_rules": 1}
    assert identity.store_key_in({**system, **corpus, **search}) == identity.store_key(system)
