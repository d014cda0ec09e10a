"""Records of runs at work: there while it runs, gone when it is done, kept with the error when it failed."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest

from evalkit.config.compose import compose
from evalkit.errors import ScoreError, StoreError
from evalkit.operations import inventory
from evalkit.report import plans
from evalkit.run import jobs
from evalkit.storage import seal
from evalkit.storage.cell_config import plain


@pytest.fixture
def config(tmp_path):
    return dataclasses.replace(compose(["model=bm25"]), cache_dir=tmp_path / "cache", results_dir=tmp_path / "results")


def test_a_record_is_locked_while_its_run_works_and_gone_afterwards(config):
    with jobs.recorded(config):
        (job,) = jobs.known(config.cache_dir)
        assert job.running
        assert job.config == config
    assert jobs.known(config.cache_dir) == []


def fail(config, error):
    with jobs.recorded(config):
        raise error


def test_a_failed_run_keeps_its_record_with_the_error(config):
    with pytest.raises(ScoreError):
        fail(config, ScoreError("got this, wanted that"))
    (job,) = jobs.known(config.cache_dir)
    assert (job.running, job.error) == (False, "got this, wanted that")


def test_a_run_that_met_a_path_it_cannot_use_has_failed_and_was_not_stopped(config):
    with pytest.raises(OSError, match="File name too long"):
        fail(config, OSError(errno.ENAMETOOLONG, "File name too long", "/data/x"))
    (job,) = jobs.known(config.cache_dir)
    assert (job.running, job.error) == (False, "/data/x: File name too long")


def test_only_what_failed_and_is_not_at_work_again_is_forgotten(config):
    with pytest.raises(ScoreError):
        fail(config, ScoreError("got this, wanted that"))
    other = dataclasses.replace(config, results_dir=config.results_dir / "other")
    with pytest.raises(KeyboardInterrupt):
        fail(other, KeyboardInterrupt())
    seen = jobs.known(config.cache_dir)
    with jobs.recorded(config):
        assert jobs.forget(seen) == 0
    with pytest.raises(ScoreError):
        fail(config, ScoreError("got this, wanted that"))
    assert jobs.forget(jobs.known(config.cache_dir)) == 1
    (left,) = jobs.known(config.cache_dir)
    assert left.config == other


def test_an_interrupted_run_keeps_its_record_without_an_error(config):
    with pytest.raises(KeyboardInterrupt):
        fail(config, KeyboardInterrupt())
    (job,) = jobs.known(config.cache_dir)
    assert (job.running, job.error) == (False, None)


def test_the_same_command_twice_has_a_record_for_each_process(config):
    with jobs.recorded(config):
        with jobs.recorded(config):
            assert [job.running for job in jobs.known(config.cache_dir)] == [True, True]
        (first,) = jobs.known(config.cache_dir)
        assert first.running
    assert jobs.known(config.cache_dir) == []


RUN_UNTIL_KILLED = """
import sys, time
from pathlib import Path
import dataclasses
from evalkit.config.compose import compose
from evalkit.run import jobs
config = dataclasses.replace(compose(["model=bm25"]), cache_dir=Path(sys.argv[1]), results_dir=Path(sys.argv[2]))
with jobs.recorded(config):
    print("at work", flush=True)
    time.sleep(600)
"""


def test_when_the_first_of_two_identical_runs_is_killed_the_second_is_still_seen(config):
    words = [sys.executable, "-c", RUN_UNTIL_KILLED, str(config.cache_dir), str(config.results_dir)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"at work\n"
        with jobs.recorded(config):
            first.kill()
            first.wait()
            assert sorted(job.running for job in jobs.known(config.cache_dir)) == [False, True]
            with pytest.raises(StoreError, match="has used this cache since"):
                inventory.remove((), config.cache_dir)
    assert jobs.known(config.cache_dir) == []  # what ended well takes the place of what was killed


def record(config, **facts):
    path = config.cache_dir / jobs.FOLDER / "key.elsewhere.1.1.json"
    path.parent.mkdir(parents=True)
    known = {"config": plain(jobs.absolute(config)), "process": "elsewhere 1", "started": "s", "error": None}
    path.write_text(json.dumps(seal.seal(known | facts)), "utf-8")
    return path


def test_on_another_machine_the_heartbeat_tells_whether_a_run_lives(config):
    path = record(config, locked=True)
    assert jobs.known(config.cache_dir)[0].running
    touched = path.stat().st_mtime - jobs.DEAD_AFTER_S - 1
    os.utime(path, (touched, touched))
    assert not jobs.known(config.cache_dir)[0].running
    assert [path.name for path in path.parent.iterdir()] == [path.name]  # looking leaves nothing behind


def test_without_locks_the_heartbeat_tells_whether_a_run_lives(config, monkeypatch):
    def unsupported(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(jobs.fcntl, "flock", unsupported)
    with jobs.recorded(config):
        (job,) = jobs.known(config.cache_dir)
        assert job.running
        touched = job.path.stat().st_mtime - jobs.DEAD_AFTER_S - 1
        os.utime(job.path, (touched, touched))
        assert not jobs.known(config.cache_dir)[0].running


def test_a_run_touches_its_record_while_it_works(config, monkeypatch):
    monkeypatch.setattr(jobs, "HEARTBEAT_S", 0.01)
    with jobs.recorded(config):
        (job,) = jobs.known(config.cache_dir)
        os.utime(job.path, (1, 1))
        while job.path.stat().st_mtime == 1:
            pass


def test_an_interrupted_run_without_locks_is_not_taken_for_a_living_one(config, monkeypatch):
    def unsupported(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(jobs.fcntl, "flock", unsupported)
    with pytest.raises(KeyboardInterrupt):
        fail(config, KeyboardInterrupt())
    assert not jobs.known(config.cache_dir)[0].running


def test_a_record_that_cannot_be_read_is_named_with_its_reason(config):
    path = config.cache_dir / jobs.FOLDER / "x.json"
    path.parent.mkdir(parents=True)
    for text, reason in (
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("{", "Expecting property name"),
        ("[]", "got a list, wanted a JSON object"),
        ("[" * 100_000, "brackets nested too deep"),
        ("\xff", "'utf-8' codec can't decode byte 0xff"),
        ('"\\ud800"', "half a surrogate pair"),
        ("1" * 5000, "digits"),
        ('{"config": {}, "process": "p", "started": "s", "error": null}', "got no xxh3_128, wanted the checksum"),
        (json.dumps(seal.seal({"process": "p"})), "got no field 'config'"),
    ):
        path.write_text(text, encoding="latin-1")
        (job,) = jobs.known(config.cache_dir)
        assert (job.config, job.running) == (None, False)
        assert job.error is not None
        assert job.error.startswith(f"{path}: this record of a job cannot be read: ")
        assert job.error.endswith("; evalkit status --forget removes it")
        assert reason in job.error
    assert jobs.forget(jobs.known(config.cache_dir)) == 1
    assert not path.exists()


def test_a_record_that_was_edited_is_named(config):
    with pytest.raises(ScoreError):
        fail(config, ScoreError("got this, wanted that"))
    (path,) = (config.cache_dir / jobs.FOLDER).glob("*.json")
    path.write_text(path.read_text("utf-8").replace("got this", "got that"), encoding="utf-8")
    (job,) = jobs.known(config.cache_dir)
    assert job.config is None
    assert job.error is not None
    assert f"{path}: this record of a job cannot be read: its content has checksum " in job.error


def test_a_record_that_is_being_written_is_no_damage(config):
    with jobs.recorded(config):
        (path,) = (config.cache_dir / jobs.FOLDER).glob("*.json")
        path.write_text("", encoding="utf-8")
        assert [(job.running, job.error) for job in jobs.known(config.cache_dir)] == [(True, None)]


def test_a_cache_that_cannot_be_written_stops_no_run(config, tmp_path):
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with jobs.recorded(config):
        assert jobs.known(config.cache_dir) == []


def test_a_record_that_finds_no_space_stops_no_run(config):
    path = config.cache_dir / jobs.FOLDER
    with jobs.recorded(config):
        (record,) = path.glob("*.json")
        record.unlink()
        record.symlink_to("/dev/full")  # every write to it fails with ENOSPC
        jobs._write(record, {"config": None})


def test_workers_are_shown_while_their_run_is_at_work_and_go_with_it(config):
    states = [{"number": 0, "where": "node (process 1)", "device": "cpu", "state": "idle", "done": 3, "deaths": 1}]
    with jobs.recorded(config):
        jobs.record_workers(config, states)
        (job,) = jobs.known(config.cache_dir)
        assert job.workers() == states
        table = plans.workers_table([job])
        assert [column.name for column in table.columns] == [
            *("worker", "where", "device", "state", "shards done", "ended"),
        ]
        assert [line.cells for line in table.rows] == [("0", "node (process 1)", "cpu", "idle", "3", "1")]
    assert job.workers() == []
    assert plans.workers_table([job]) is None


@pytest.mark.parametrize("data", [b"\xff", b"[" * 100_000, b"{}", b"[3, null]"])
def test_workers_whose_file_is_damaged_are_not_shown(config, data):
    with jobs.recorded(config):
        (job,) = jobs.known(config.cache_dir)
        job.path.with_suffix(jobs.WORKERS).write_bytes(data)
        assert job.workers() == []
