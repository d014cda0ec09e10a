"""Files that are whole or absent, what killed processes leave, and names that stay below a folder."""

import os
import socket
import subprocess
import sys

import pytest

from evalkit.errors import StoreError
from evalkit.storage import paths


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "a\0b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    with pytest.raises(StoreError, match="wanted a name of a file below"):
        paths.below(tmp_path, name)
    assert paths.below(tmp_path, "a/b.json") == tmp_path / "a" / "b.json"


def left_over(folder, owner):
    path = folder / f".scores.json.{owner}.tmp"
    path.write_text("half", "utf-8")
    return path


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    host = socket.gethostname()
    dead = left_over(tmp_path, f"{host}.{process.pid}")
    alive = left_over(tmp_path, f"{host}.{os.getpid()}")
    elsewhere = left_over(tmp_path, "another.example.7")
    other = tmp_path / ".notes.tmp"
    other.write_text("of somebody else", "utf-8")
    assert paths.remove_left_over([tmp_path, tmp_path / "missing"]) == 1
    assert not dead.exists()
    long_ago = elsewhere.stat().st_mtime - paths.ABANDONED_AFTER_S - 60
    os.utime(elsewhere, (long_ago, long_ago))
    assert paths.remove_left_over([tmp_path]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, other.name])


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")
    paths.write_atomic(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1
