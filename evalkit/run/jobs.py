"""Records of jobs: `evalkit status` reads from them which cells are being computed and which jobs failed.

A record is in the cache, next to the checkpoints, and is deleted when its job succeeds. The record of a failed or
killed job stays until the same job succeeds or `evalkit status --forget` removes it, because nobody may have seen the
error.

Two signs show that a job's process is alive. It holds a lock (`flock`) on the record, and it touches the record every
HEARTBEAT_S seconds. The lock is exact on one machine. On file systems without locks, and from other machines, the
heartbeat decides: a record that was touched within the last DEAD_AFTER_S seconds belongs to a living process.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from evalkit.config.settings import RunConfig
from evalkit.errors import EngineError, EvalkitError, StoreError
from evalkit.storage import seal, untrusted
from evalkit.storage.cell_config import config_of, plain
from evalkit.storage.keys import key_of
from evalkit.storage.paths import make_folder, write_atomic, write_error

FOLDER = "jobs"
WORKERS = ".workers"
"""Suffix of the file next to a record that contains the state of the job's workers."""
CLAIM = ".claim"
"""Suffix of the file that a driver with workers keeps locked for each of its cells."""
HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
"""Several heartbeats: a file system can be slow, and a native call can hold the GIL for a while."""
REASON_CHARACTERS = 200
"""The maximum length of the reason why a record is damaged, in characters."""


class Job(NamedTuple):
    """One `evalkit run` that has not succeeded yet."""

    path: Path
    config: RunConfig | None
    """None if the record is damaged or edited, or is just being written."""
    running: bool
    """Whether its process is alive, by its lock or its heartbeat."""
    process: str
    """Host name and process id."""
    started: str
    error: str | None
    """The error message that it ended with, or what is wrong with its record, if any."""

    def workers(self) -> list[Mapping[str, Any]]:
        """Return the state of each worker, as written by `record_workers`; empty for a job without workers."""
        try:
            found = untrusted.read_json(self.path.with_suffix(WORKERS))
        except untrusted.UnreadableError:
            return []
        return [worker for worker in found if isinstance(worker, dict)] if isinstance(found, list) else []


@contextmanager
def recorded(config: RunConfig) -> Iterator[None]:
    """Keep a record while a job runs, and afterwards if it failed. A cache that cannot be written gets no record."""
    facts = {
        "config": plain(absolute(config)),
        "process": _process(),
        "started": _utc(),
        "error": None,
    }
    key = _key(config)
    path = config.cache_dir / FOLDER / f"{key}.{_host()}.{os.getpid()}.{next(_numbers)}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError:
        yield
        return
    with file:
        facts["locked"] = _lock(file, fcntl.LOCK_EX) is None
        _write(path, facts)
        _supersede(path, key)
        _records[key] = path
        try:
            with _heartbeat(path):
                yield
        except BaseException as error:
            message = _error_message(error)
            # The final record: a recent heartbeat must not make an ended process look alive.
            _write(path, {**facts, **({"ended": True} if message is None else {"error": message})})
            raise
        finally:
            _records.pop(key, None)
            path.with_suffix(WORKERS).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        _supersede(path, key)


def _error_message(error: BaseException) -> str | None:
    """Return the message that a failed job prints on the terminal, or None if it was stopped."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) if isinstance(error, EvalkitError) else None


_numbers = itertools.count(1)
"""Distinguishes the records of one process: a sweep computes several configs, one after the other."""
_records: dict[str, Path] = {}
"""The records of this process's jobs, by the keys of their configs."""


def _host() -> str:
    """Return this machine's name in a form that is valid in file names."""
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:64] or "unknown"


def _lock(file: IO[Any], kind: int) -> OSError | None:
    """Try to lock an open record; return the error if it cannot be locked."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


@contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Touch a record every HEARTBEAT_S seconds from a thread, while the context lasts."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(OSError):
                os.utime(path)  # without a time, so that a file server sets that of its own clock

    thread = threading.Thread(target=beat, name="evalkit-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _supersede(own: Path, key: str) -> None:
    """Remove the records of stopped or failed jobs with the same config, because this job replaces them."""
    for path in [*own.parent.glob(f"{key}.*.json"), own.parent / f"{key}.json"]:
        job = None if path == own else _read(path)
        if job is not None and job.config is not None and not job.running:  # no config: it may be half-written
            path.unlink(missing_ok=True)
            path.with_suffix(WORKERS).unlink(missing_ok=True)


def record_workers(config: RunConfig, workers: Sequence[Mapping[str, Any]]) -> None:
    """Write the state of a job's workers next to its record. Errors are ignored: a full disk must not stop a job."""
    path = _records.get(_key(config))
    if path is None:  # a job without a record
        return
    with suppress(OSError, StoreError):
        write_atomic(path.with_suffix(WORKERS), json.dumps(list(workers), ensure_ascii=False).encode())


@contextmanager
def claimed(config: RunConfig, run_ids: Iterable[str]) -> Iterator[None]:
    """Lock cells while the context lasts, so that no two drivers with workers compute the same cell.

    Raises EngineError that names the process that has locked one of them.
    """
    folder = config.cache_dir / FOLDER
    with ExitStack() as held:
        for run_id in sorted(run_ids):
            path = folder / f"{run_id}{CLAIM}"
            make_folder(folder)
            try:
                file = held.enter_context(path.open("a+", encoding="utf-8"))
            except OSError as error:
                raise write_error(path, error) from error
            if _is_held(_lock(file, fcntl.LOCK_EX)):
                file.seek(0)
                who = file.read().strip() or "another process"
                msg = f"{run_id}: {who} is computing it; wait until it is finished, or stop it (evalkit status)"
                raise EngineError(msg)
            held.callback(path.unlink, missing_ok=True)
            with suppress(OSError):
                file.truncate(0)
                file.write(f"{_process()}, since {_utc()},")
                file.flush()
        yield


def known(cache_dir: Path) -> list[Job]:
    """Return every record in a cache, oldest first. Locks are tried and released again."""
    found = [job for path in sorted((cache_dir / FOLDER).glob("*.json")) if (job := _read(path)) is not None]
    return sorted(found, key=lambda job: (job.started, job.path))


def forget(records: Iterable[Job]) -> int:
    """Remove the records of failed jobs, except those that run again; return how many were removed."""
    failed = [job.path for job in records if job.error]
    again = [job for path in failed if (job := _read(path)) is not None and job.error and not job.running]
    for job in again:
        job.path.unlink(missing_ok=True)
    return len(again)


def _key(config: RunConfig) -> str:
    return key_of({"config": plain(absolute(config))})


def _is_held(refused: OSError | None) -> bool:
    """Whether a lock was refused because another process holds it, not because the file system has no locks."""
    return refused is not None and refused.errno in (errno.EWOULDBLOCK, errno.EACCES)


def _process() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Job | None:
    try:
        with path.open("rb") as file:
            refused = _lock(file, fcntl.LOCK_SH)
            data, touched = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:  # deleted meanwhile: its job succeeded
        return None
    except OSError as failure:
        return Job(path, None, running=False, process="unknown", started="", error=_unreadable(path, failure))
    held = _is_held(refused)
    try:
        facts = seal.read(data)
        config = config_of(facts["config"])
        process, started, error = str(facts["process"]), str(facts["started"]), facts["error"]
        job = Job(path, config, held, process, started, None if error is None else str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as failure:  # ConfigError is a ValueError
        return Job(path, None, held, "unknown", "", None if held else _unreadable(path, failure))
    if held or job.error or facts.get("ended"):
        return job
    # A free lock proves that the process ended only if it had locked the record, and on the same machine.
    exact = refused is None and facts.get("locked", True) and process.partition(" ")[0] == socket.gethostname()
    return job if exact else job._replace(running=_now(path.parent) - touched < DEAD_AFTER_S)


def _unreadable(path: Path, error: Exception) -> str:
    """Return what is wrong with the record of a job that is not running."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = (
            f"got no field {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:REASON_CHARACTERS]
        )
    return f"{path}: this record of a job cannot be read: {reason}; evalkit status --forget removes it"


def _now(folder: Path) -> float:
    """Return the time of the clock that sets modification times in a folder. It may be the clock of a file server."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".tmp") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _write(path: Path, facts: dict[str, Any]) -> None:
    """Write a record in place, because it is locked. On a full disk it stays empty, and the job continues."""
    with suppress(OSError):
        path.write_text(json.dumps(seal.seal(facts), ensure_ascii=False), encoding="utf-8")


def absolute(config: RunConfig) -> RunConfig:
    """Return a config with absolute paths, so that it has the same meaning in every working folder."""
    dataset = config.dataset
    if dataset.path is not None:
        dataset = dataclasses.replace(dataset, path=str(Path(dataset.path).absolute()))
    return dataclasses.replace(
        config, dataset=dataset, results_dir=config.results_dir.absolute(), cache_dir=config.cache_dir.absolute()
    )
