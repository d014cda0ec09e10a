"""Records of runs at work: there while it runs, gone when it is done, kept with the error when it failed."""

import dataclasses

import pytest

from evalkit.config.compose import compose
from evalkit.errors import ScoreError
from evalkit.report import plans
from evalkit.run import jobs


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


def test_the_same_command_twice_keeps_one_record_until_the_first_is_done(config):
    with jobs.recorded(config):
        with jobs.recorded(config):
            assert len(jobs.known(config.cache_dir)) == 1
        assert jobs.known(config.cache_dir)[0].running
    assert jobs.known(config.cache_dir) == []


def test_a_record_that_cannot_be_read_is_a_run_without_settings(config):
    path = config.cache_dir / jobs.FOLDER / "x.json"
    path.parent.mkdir(parents=True)
    for text in ("", "{", "[]", '{"config": {}, "process": "p", "started": "s", "error": null}'):
        path.write_text(text, encoding="utf-8")
        (job,) = jobs.known(config.cache_dir)
        assert (job.config, job.running) == (None, False)


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
        assert [column.header for column in table.columns] == [
            *("worker", "where", "device", "state", "shards done", "ended"),
        ]
        cells = [next(iter(column.cells)) for column in table.columns]
        assert cells == ["0", "node (process 1)", "cpu", "idle", "3", "1"]
    assert job.workers() == []
    assert plans.workers_table([job]) is None
