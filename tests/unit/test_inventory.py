"""What `evalkit cache rm` takes for a name, and what it refuses as unclear."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from evalkit.errors import StoreError
from evalkit.operations.inventory import Entry, chosen, entries, remove
from evalkit.report.plans import cache_table
from evalkit.storage import seal
from evalkit.storage.paths import environments_dir, index_dir, learned_file, write_atomic


def entry(kind, key, *datasets):
    return Entry(kind, key, (), datasets, (), (), 0, datetime.fromtimestamp(0, UTC))


FOUND = (
    entry("embeddings", "ab11", "demo"),
    entry("embeddings", "ab11", "demo", "beir/nq"),
    entry("top-k", "ab22", "demo"),
    entry("survey", "cd33"),
    entry("leftover", "tmp"),
    entry("checksum", "beir-nq.ee44", "beir/nq"),
)


def test_the_last_use_is_said_to_be_in_utc():
    header, row = cache_table([entry("survey", "cd33")]).lines()
    assert header.index("last use (UTC)") == row.index("1970-01-01 00:00")


@pytest.mark.parametrize("word", ["", " ", "\t"])
def test_an_empty_word_names_nothing(word):
    with pytest.raises(StoreError, match=r"an empty word \(an unset variable\?\), wanted a key or a dataset; nothing"):
        chosen(FOUND, ["demo", word], unused=False)


def test_a_beginning_of_several_keys_is_refused_with_their_names():
    with pytest.raises(StoreError, match="'ab' is the beginning of 2 keys: embeddings ab11, top-k ab22; give more"):
        chosen(FOUND, ["ab"], unused=False)


def test_a_beginning_of_one_key_names_every_entry_of_that_key():
    assert chosen(FOUND, ["ab1"], unused=False) == [FOUND[0], FOUND[1]]
    assert chosen(FOUND, ["c", "tmp"], unused=False) == [FOUND[3], FOUND[4]]


def test_the_checksum_of_a_first_read_goes_by_its_key_alone():
    """Without it the next copy of the corpus would be believed unseen."""
    assert chosen(FOUND, ["beir-nq.ee44"], unused=False) == [FOUND[5]]
    assert FOUND[5] not in chosen(FOUND, ["demo", "beir/nq"], unused=True)


def test_what_a_first_read_left_is_listed(tmp_path):
    learned = learned_file(tmp_path, "beir/nq", "ee44")
    write_atomic(learned, json.dumps(seal.seal({"dataset": "beir/nq", "checksum": "c"})).encode())
    (found,) = entries(tmp_path, ())
    assert (found.kind, found.key, found.datasets, found.files) == ("checksum", learned.stem, ("beir/nq",), (learned,))


def test_a_dataset_names_what_it_alone_uses():
    assert chosen(FOUND, ["demo"], unused=False) == [FOUND[0], FOUND[2]]
    assert chosen(FOUND, ["demo", "beir-nq"], unused=False) == [FOUND[0], FOUND[1], FOUND[2]]


def test_an_environment_is_listed_kept_by_unused_and_removed_by_its_name(tmp_path):
    binaries = environments_dir(tmp_path) / "plaid" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text("123456", encoding="utf-8")
    (binaries / "python").symlink_to(sys.executable)
    (binaries.parent / "lib64").symlink_to(binaries)
    (found,) = entries(tmp_path, [])
    assert (found.kind, found.key, found.size_bytes) == ("environment", "plaid", 6)
    assert chosen([found], [], unused=True) == []
    assert remove(chosen([found], ["plaid"], unused=False), tmp_path) == 6
    assert list(environments_dir(tmp_path).iterdir()) == []
    assert Path(sys.executable).exists()


def test_an_index_is_listed_and_removed_with_its_folders(tmp_path):
    folder = index_dir(tmp_path, "ab12")
    write_atomic(folder / "record.json", b"{}")
    write_atomic(folder / "parts" / "codes.npy", b"1234")
    (found,) = entries(tmp_path, ())
    assert (found.kind, found.key, found.size_bytes) == ("index", "ab12", 6)
    assert remove([found], tmp_path) == 6
    assert not folder.exists()
