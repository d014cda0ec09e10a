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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.config.settings import RunConfig
from evalkit.errors import ConfigError, EvalkitError
from evalkit.storage import seal
from evalkit.storage.keys import key_of
from evalkit.storage.results import config_of, plain

FOLDER = "jobs"


class Job(NamedTuple):
    """One `evalkit run` that has not ended well yet."""

    path: Path
    config: RunConfig | None
    """None where the record is damaged or edited, which also is so in the instant in which it is written."""
    running: bool
    """Whether its process lives; of a process on another machine that the file system's locks tell."""
    process: str
    """Machine and process id."""
    started: str
    error: str | None
    """The line that it ended with, if any."""


@contextmanager
def recorded(config: RunConfig) -> Iterator[None]:
    """Keep a record while a config is run, and afterwards if it failed; a cache that cannot be written has none."""
    lasting = absolute(config)
    facts = {
        "config": plain(lasting),
        "process": f"{socket.gethostname()} {os.getpid()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "error": None,
    }
    path = config.cache_dir / FOLDER / f"{key_of({'config': facts['config']})}.json"
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
        path.unlink(missing_ok=True)


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


def _read(path: Path) -> Job | None:
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                running = False
            except OSError:
                running = True
            data = file.read()
    except OSError:  # gone by now: its run is done
        return None
    try:
        facts = seal.read(data)
        config = config_of(facts["config"])
        return Job(path, config, running, str(facts["process"]), str(facts["started"]), facts["error"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return Job(path, None, running, "unknown", "", None)


def _write(path: Path, facts: dict[str, Any]) -> None:
    """Write a record in place, for it is locked; on a full disk it stays empty, and the run is not stopped by it."""
    with suppress(OSError):
        path.write_text(json.dumps(seal.seal(facts), ensure_ascii=False), encoding="utf-8")


def absolute(config: RunConfig) -> RunConfig:
    """Return a config that means the same in every working folder."""
    dataset = config.dataset
    if dataset.path is not None:
        dataset = dataclasses.replace(dataset, path=str(Path(dataset.path).expanduser().absolute()))
    return dataclasses.replace(
        config, dataset=dataset, results_dir=config.results_dir.absolute(), cache_dir=config.cache_dir.absolute()
    )
