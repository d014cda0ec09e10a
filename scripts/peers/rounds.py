"""The benchmark's side: worker processes, and the rotating order of rounds, so that drift affects all contenders."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from peers import environments


class Contender(NamedTuple):
    """A contender of the benchmark and its job."""

    name: str
    """The name in the output."""
    library: str
    """The library whose script (peers/with_*.py) and environment it uses."""
    job: Mapping[str, Any]
    precision: str = "fp32"
    """The precision of the GEMM ceiling that it is compared with."""


class WorkerError(Exception):
    """Raised if a worker cannot be started, exits or does not answer in time."""


class Worker:
    """A contender's process, which runs one round per request."""

    def __init__(self, contender: Contender, *, environments_dir: Path, work: Path, limit_s: float) -> None:
        """Start the process and wait until it is ready, at most `limit_s`. Raises WorkerError."""
        interpreter = environments.python(contender.library, environments_dir)
        if not interpreter.exists():
            msg = f"no environment at {interpreter.parents[1].name}; create it with --install {contender.library}"
            raise WorkerError(msg)
        stem = "".join(character if character.isalnum() else "-" for character in contender.name)
        own = work / stem
        own.mkdir(parents=True, exist_ok=True)
        job = own / "job.json"
        job.write_text(json.dumps({"work": str(own), **contender.job}), encoding="utf-8")
        self._limit_s = limit_s
        self._errors = (own / "stderr.txt").open("wb")
        places = [str(environments.FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [interpreter, environments.script(contender.library), job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=own,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )
        try:
            self.facts = self._answer()["ready"]
        except WorkerError:
            self.close()
            raise

    @property
    def process_id(self) -> int:
        """Return the process id."""
        return self._process.pid

    def round(self, size: int, *, save: Path | None = None) -> dict[str, Any]:
        """Run one round of a size; return its `seconds` and the stage's own facts. Raises WorkerError."""
        request = {"size": size, "save": None if save is None else str(save)}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._exit_message()) from error
        return self._answer()

    def finish(self) -> dict[str, Any]:
        """End the rounds; return the worker's final facts (its peak memory), empty if it no longer answers."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._answer()
        except WorkerError:
            return {}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit_s)
        if not ready:
            msg = f"no answer in {self._limit_s:.0f} s"
            raise WorkerError(msg)
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._exit_message())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _exit_message(self) -> str:
        self._process.wait()
        text = Path(str(self._errors.name)).read_text(encoding="utf-8", errors="replace").strip()
        return f"exit status {self._process.returncode}: {text.splitlines()[-1] if text else 'no message'}"

    def close(self) -> None:
        """End the process if it still runs, and close its files."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None and not stream.closed:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TreePeak:
    """Samples, in a thread, the total resident memory of a process and all its descendants."""

    def __init__(self, process_id: int, *, every_s: float = 0.25) -> None:
        """Start sampling, every `every_s` seconds."""
        self.peak_mib = 0.0
        self._process_id, self._every_s = process_id, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Stop sampling and return the largest total, in MiB."""
        self._stop.set()
        self._thread.join()
        return round(self.peak_mib, 1)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.peak_mib = max(self.peak_mib, sum(map(_resident_mib, tree(self._process_id))))


def tree(process_id: int) -> list[int]:
    """Return the ids of a process and its descendants, without those that end meanwhile."""
    found = [process_id]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _resident_mib(process_id: int) -> float:
    try:
        text = Path(f"/proc/{process_id}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    lines = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """Return the order of contenders in each round; each round starts one contender later than the previous one.

    >>> turns(["a", "b", "c"], 2)
    [['a', 'b', 'c'], ['b', 'c', 'a']]
    """
    return [[*names[turn % len(names) :], *names[: turn % len(names)]] for turn in range(rounds)]


def fitting_size(full: int, probe: int, probe_s: float, budget_s: float | None) -> int:
    """Return the size of a round that fits a time budget, extrapolated linearly from a smaller round.

    >>> fitting_size(100, 8, probe_s=1.0, budget_s=4.0)
    32
    """
    if budget_s is None:
        return full
    return min(full, max(probe, int(probe * budget_s / probe_s)))
