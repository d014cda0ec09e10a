"""Who is at work on which cells: a record per `evalkit run`, locked while its process lives, so that a kill shows.

A record lies beside the checkpoints and goes when its run is done; one that nobody holds is of a run that stopped or
failed. That of a run that failed stays until the same run ends well or it is forgotten: nobody may be there to see.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.config.settings import RunConfig
from evalkit.errors import ConfigError, EngineError, EvalkitError, StoreError
from evalkit.run.identity import key_of
from evalkit.storage.paths import make_folder, unwritable, write_whole
from evalkit.storage.results import config_of, plain

FOLDER = "jobs"
WORKERS = ".workers"
"""Suffix of the file beside a record that says what the run's workers are doing."""
CLAIM = ".claim"
"""Suffix of the file that a driver with workers holds locked for each of its cells."""


class Job(NamedTuple):
    """One `evalkit run` that has not ended well yet."""

    path: Path
    config: RunConfig | None
    """None where the record cannot be read, which also is so in the instant in which it is written."""
    running: bool
    """Whether its process lives; of a process on another machine that the file system's locks tell."""
    process: str
    """Machine and process id."""
    started: str
    error: str | None
    """The line that it ended with, if any."""

    def workers(self) -> list[Mapping[str, Any]]:
        """Return what each of its workers is doing, as `record_workers` wrote it; empty for a run without workers."""
        try:
            found = json.loads(self.path.with_suffix(WORKERS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [worker for worker in found if isinstance(worker, dict)] if isinstance(found, list) else []


@contextmanager
def recorded(config: RunConfig) -> Iterator[None]:
    """Keep a record while a config is run, and afterwards if it failed; a cache that cannot be written has none."""
    facts = {
        "config": plain(absolute(config)),
        "process": _process(),
        "started": _now(),
        "error": None,
    }
    path = _record(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # the same command twice: each shard is written whole by either, and one record is enough
            yield
            return
        _write(path, facts)
        try:
            yield
        except EvalkitError as error:
            _write(path, {**facts, "error": str(error)})
            raise
        finally:
            path.with_suffix(WORKERS).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def record_workers(config: RunConfig, workers: Sequence[Mapping[str, Any]]) -> None:
    """Write what a run's workers are doing beside its record, for `evalkit status`; a full disk stops no run."""
    path = _record(config).with_suffix(WORKERS)
    with suppress(OSError, StoreError):
        write_whole(path, json.dumps(list(workers), ensure_ascii=False).encode())


@contextmanager
def claimed(config: RunConfig, run_ids: Iterable[str]) -> Iterator[None]:
    """Hold the claim on some cells while the context lasts. Raises EngineError that says who has one of them."""
    folder = config.cache_dir / FOLDER
    with ExitStack() as held:
        for run_id in sorted(run_ids):
            path = folder / f"{run_id}{CLAIM}"
            make_folder(folder)
            try:
                file = held.enter_context(path.open("a+", encoding="utf-8"))
            except OSError as error:
                raise unwritable(path, error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                who = file.read().strip() or "another process"
                msg = f"{run_id}: {who} is at work on it; wait until it is done, or stop it (evalkit status)"
                raise EngineError(msg) from None
            held.callback(path.unlink, missing_ok=True)
            with suppress(OSError):
                file.truncate(0)
                file.write(f"{_process()}, since {_now()},")
                file.flush()
        yield


def known(cache_dir: Path) -> list[Job]:
    """Return every record under a cache, oldest first; a lock that is tried is given back at once."""
    found = [job for path in sorted((cache_dir / FOLDER).glob("*.json")) if (job := _read(path)) is not None]
    return sorted(found, key=lambda job: (job.started, job.path))


def forget(records: Iterable[Job]) -> int:
    """Take out the records of runs that failed, unless they are at work again; return how many were taken out."""
    failed = [job.path for job in records if job.error]
    again = [job for path in failed if (job := _read(path)) is not None and job.error and not job.running]
    for job in again:
        job.path.unlink(missing_ok=True)
    return len(again)


def _record(config: RunConfig) -> Path:
    return config.cache_dir / FOLDER / f"{key_of({'config': plain(absolute(config))})}.json"


def _process() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Job | None:
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                running = False
            except OSError:
                running = True
            text = file.read()
    except OSError:  # gone by now: its run is done
        return None
    try:
        facts = json.loads(text)
        config = config_of(facts["config"])
        return Job(path, config, running, str(facts["process"]), str(facts["started"]), facts["error"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return Job(path, None, running, "unknown", "", None)


def _write(path: Path, facts: dict[str, Any]) -> None:
    """Write a record in place, for it is locked; on a full disk it stays empty, and the run is not stopped by it."""
    with suppress(OSError):
        path.write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def absolute(config: RunConfig) -> RunConfig:
    """Return a config that means the same in every working folder."""
    dataset = config.dataset
    if dataset.path is not None:
        dataset = dataclasses.replace(dataset, path=str(Path(dataset.path).expanduser().absolute()))
    return dataclasses.replace(
        config, dataset=dataset, results_dir=config.results_dir.absolute(), cache_dir=config.cache_dir.absolute()
    )
