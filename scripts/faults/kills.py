"""Kill runs with SIGKILL: at every stage of every write, and separately started commands at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trials import COMMANDS, Base, Trials, forked, new_folder, within_time

WRITES = {
    "survey": "surveys/*.json",
    "embeddings": "stores/*/*.safetensors",
    "embeddings' manifest": "stores/*/*.json",
    "top-k": "topk/*/*.safetensors",
    "top-k's manifest": "topk/*/*.json",
    "run": "runs/*/run.trec.gz",
    "judgements": "runs/*/qrels.trec.gz",
    "per-query values": "runs/*/per_query.tsv",
    "local paths": "runs/*/local.yaml",
    "config": "runs/*/config.yaml",
    "scores": "runs/*/scores.json",
    "record of the run": "jobs/*.json",
}
"""Every write of a run: its name, and a pattern of its path."""
STAGES = ("empty", "half", "written", "renamed")
"""The file is empty, half written, complete but not renamed, or renamed when the run is killed."""


def dies(pattern: str, stage: str, count: int) -> Callable[[], None]:
    """Return a patch that kills the process at a stage of the `count`-th write of a matching file."""

    def patch() -> None:
        from evalkit.run import jobs
        from evalkit.storage import paths, shard_files

        met: list[Path] = []
        publish, write = paths.publish, jobs._write

        def end(path: Path, share: float | None) -> None:
            if share is not None:
                os.truncate(path, int(path.stat().st_size * share))
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(unfinished: Path, path: Path) -> None:
            if path.match(pattern):
                met.append(path)
                if len(met) == count and stage != "renamed":
                    end(unfinished, {"empty": 0, "half": 0.5, "written": None}[stage])
            publish(unfinished, path)
            if met[-1:] == [path] and len(met) == count:
                end(path, None)

        def writing(path: Path, facts: dict[str, Any]) -> None:
            write(path, facts)
            if path.match(pattern):
                end(path, {"empty": 0, "half": 0.5}.get(stage))

        paths.publish = shard_files.publish = dying  # type: ignore[attr-defined]  # imported there by name
        jobs._write = writing

    return patch


class Kill(NamedTuple):
    """The moment at which a run is killed."""

    write: str
    stage: str
    command: str
    nth: int


def at_every_write(base: Base, trials: Trials) -> None:
    """Kill at the first and the second write of each name; the same command must then give the same bytes."""
    choices = [
        Kill(write, stage, command, count)
        for count in (1, 2)
        for write in WRITES
        for stage in STAGES
        for command in COMMANDS
        if command == "vectors" or not write.startswith("embeddings")  # BM25 has none
    ]
    reached: dict[str, int] = dict.fromkeys(WRITES, 0)
    for kill in within_time(trials, choices):
        folder = new_folder(base.folder, "kill")
        done = forked(base.words(kill.command), folder, before=dies(WRITES[kill.write], kill.stage, kill.nth))
        if done.code is not None:
            continue  # there was no such write
        reached[kill.write] += 1
        what = f"{kill.command} killed at {kill.stage} {kill.write} {kill.nth}"
        before = {path: path.stat().st_mtime_ns for path in finished(folder)}
        if not base.finish(kill.command, folder, trials, what):
            continue
        redone = [path.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns]
        if redone:
            trials.failed(f"{what}: finished shard {redone[0]} was computed again")
        else:
            trials.count("the same bytes, no finished shard computed again")
    if missed := [name for name, times in reached.items() if not times]:
        trials.note = f"{trials.note} not reached: {', '.join(missed)}".strip()


def finished(folder: Path) -> Iterator[Path]:
    """Yield the array files of shards with a manifest."""
    for manifest in (folder / "c").glob("[st]o*/*/*.json"):
        yield manifest.with_suffix(".safetensors")


def at_random(base: Base, trials: Trials, draw: random.Random) -> None:
    """Kill a separately started command one to three times at random moments, then let it finish."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    took = dict.fromkeys(COMMANDS, 0.0)
    kills = 0
    while trials.more():
        command = draw.choice(list(COMMANDS))
        folder = new_folder(base.folder, "random")
        words = [sys.executable, "-m", "evalkit", *base.words(command)]
        for _ in range(draw.randint(1, 3)):
            longest = took[command] or 15.0
            process = subprocess.Popen(
                words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
            )
            started = time.monotonic()
            try:
                process.wait(timeout=draw.uniform(0.3 * longest, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
            if process.returncode == 0:
                took[command] = max(took[command], time.monotonic() - started)
        if base.finish(command, folder, trials, f"{command} killed at random"):
            trials.count("the same bytes")
    trials.note = f"{kills} kills in {trials.tried} runs"
