"""Code that all faults share: a small collection, two commands, forked command lines, and counting outcomes.

A command runs in a fork of a process that has imported everything, so that a trial takes about a second. A fault is
patched into the fork only; evalkit has no hooks for it. kills.py also kills commands that were started separately.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

POLL_S = 0.005
LONGEST_S = 600.0
PLACES = ("results_dir=r", "cache_dir=c")
COMMANDS: dict[str, tuple[str, ...]] = {
    "bm25": ("model=bm25", "store.shard_tokens=2000"),
    "vectors": ("model=demo", "dim=64", "store.shard_tokens=4000", "engine.threads=1"),
}
"""The two kinds of runs; `--systems` selects some."""
LOST = b"lost, as the result says"


class Done(NamedTuple):
    """How a command ended."""

    code: int | None
    """None if a signal ended it."""
    out: str
    err: str

    def refusal(self) -> str | None:
        """Return the line of an error message, or None if the command did not end with a clean error."""
        lines = [line for line in self.err.splitlines() if line.startswith("evalkit: ")]
        if self.code in (1, 2) and lines and "Traceback" not in self.err:
            return lines[-1]
        return None


@dataclass
class Trials:
    """The outcomes of one fault."""

    fault: str
    command: str
    until: float
    """The time (time.monotonic) after which no trial starts."""
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """A line per failed trial: lost data, a wrong number without a warning, a traceback."""
    note: str = ""

    def more(self) -> bool:
        """Return whether there is time for another trial."""
        return time.monotonic() < self.until

    def count(self, outcome: str) -> None:
        """Count a trial under its outcome."""
        self.tried += 1
        self.outcomes[outcome] += 1

    def failed(self, what: str, done: Done | None = None) -> None:
        """Count a failed trial."""
        self.count("BROKEN")
        tail = "" if done is None else f" (exit {done.code}: {' '.join(done.err[-300:].split())})"
        self.wrong.append(f"{what}{tail}"[:600])


class Base(NamedTuple):
    """The small collection, and the files of its undisturbed runs."""

    folder: Path
    data: Path
    wanted: Mapping[str, Mapping[str, bytes]]
    """The content of each file, by command and path below `runs/`."""

    def words(self, command: str) -> list[str]:
        """Return a command's words."""
        return [
            "run",
            *COMMANDS[command],
            "dataset=folder",
            f"dataset.path={self.data}",
            "dataset.language=en",
            *PLACES,
        ]

    def same(self, command: str, folder: Path) -> str | None:
        """Return how a finished run differs from the undisturbed one, or None."""
        found = result_files(folder / "r")
        for name, data in self.wanted[command].items():
            if found.get(name) not in (data, LOST):
                return f"{name} is {'not there' if name not in found else 'another'}"
        return None

    def finish(self, command: str, folder: Path, trials: Trials, what: str) -> bool:
        """Run the command undisturbed; count a failed trial if its result is wrong, and return whether it is right."""
        done = forked(self.words(command), folder)
        if done.code != 0:
            trials.failed(f"{what}: the same command then fails", done)
        elif (other := self.same(command, folder)) is not None:
            trials.failed(f"{what}: afterwards {other}")
        elif temporary := [path.name for path in folder.rglob(".*.tmp")]:
            trials.failed(f"{what}: afterwards {temporary[0]} is left")
        else:
            return True
        return False


def result_files(results: Path) -> dict[str, bytes]:
    """Return what must be identical in every run, by path below `runs/`; `same` accepts LOST for any of it.

    These are rankings, judgements, per-query values, metrics and counts. LOST replaces the number of vectors if the
    result says that a manifest was lost. `reused_shards` is left out: another run may have encoded a shard.
    """
    found = {}
    for path in results.glob("runs/*/*"):
        name = f"{path.parent.name}/{path.name}"
        if path.name in ("run.trec.gz", "qrels.trec.gz", "per_query.tsv"):
            found[name] = path.read_bytes()
        elif path.name == "scores.json":
            values = json.loads(path.read_bytes())
            counts = dict(values["counts"])
            counts.pop("reused_shards", None)
            lost = counts.pop("shards_without_costs", 0) > 0
            vectors = counts.pop("document_vectors", None)
            found[name] = json.dumps([values["run_id"], values["metrics"], counts]).encode()
            found[f"{name}: document_vectors"] = LOST if lost and vectors is None else json.dumps(vectors).encode()
    return found


WORDS = (
    *("red", "fox", "grey", "wolf", "old", "river", "cold", "stone", "small", "bird", "green", "leaf", "deep"),
    *("water", "long", "road", "warm", "wind", "dark", "night"),
)


def write_collection(folder: Path, *, documents: int, queries: int, seed: int) -> Path:
    """Write a BEIR-format folder of random words."""
    draw = random.Random(seed)
    (folder / "qrels").mkdir(parents=True)
    judged = draw.sample(range(documents), queries)
    own = {document: draw.choices(WORDS, k=3) for document in judged}
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join([*draw.choices(WORDS, k=30), *own.get(number, ())])
            file.write(json.dumps({"_id": f"d{number}", "title": draw.choice(WORDS), "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for number, document in enumerate(judged):
            file.write(json.dumps({"_id": f"q{number}", "text": " ".join(own[document])}) + "\n")
    rows = [f"q{number}\td{document}\t1\n" for number, document in enumerate(judged)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    return folder


def base(folder: Path, *, seed: int) -> Base:
    """Create the collection and run both commands undisturbed."""
    data = write_collection(folder / "data", documents=90, queries=12, seed=seed)
    made = Base(folder, data, {})
    wanted = {}
    for command in COMMANDS:
        place = new_folder(folder, f"undisturbed-{command}")
        done = forked(made.words(command), place)
        if done.code != 0:
            msg = f"the undisturbed run of {command} failed: {done.err}"
            raise SystemExit(msg)
        wanted[command] = result_files(place / "r")
    return made._replace(wanted=wanted)


def new_folder(folder: Path, name: str) -> Path:
    """Create an empty folder for a trial; an existing one is removed."""
    import shutil

    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def imported() -> None:
    """Import all modules that forks need, as listed by a fork: a run in this process would start threads."""
    with TemporaryDirectory(prefix="faults-") as scratch:
        data = write_collection(Path(scratch) / "data", documents=20, queries=2, seed=1)
        for command in COMMANDS:
            folder = new_folder(Path(scratch), command)
            child = start(Base(Path(scratch), data, {}).words(command), folder, tell_modules=True)
            child.wait()
            names = (folder / "modules").read_text("utf-8").split()
            for name in names:
                if name not in sys.modules:
                    with suppress(Exception):
                        importlib.import_module(name)


@dataclass
class Child:
    """A forked command."""

    pid: int
    folder: Path
    name: str
    code: int | None = None
    ended: bool = False

    def poll(self) -> bool:
        """Return whether it has ended."""
        if not self.ended:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = True
                self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        return self.ended

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal unless it has ended."""
        if not self.poll():
            os.kill(self.pid, number)

    def wait(self, longest_s: float = LONGEST_S) -> Done:
        """Wait until it ends; after `longest_s` it is killed, and its code is 124."""
        until = time.monotonic() + longest_s
        while not self.poll():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.ended, self.code = True, 124
                break
            time.sleep(POLL_S)
        out, err = (self.folder / f"{self.name}.{kind}" for kind in ("out", "err"))
        return Done(self.code, *(path.read_text("utf-8", errors="replace") for path in (out, err)))


def start(
    words: Sequence[str],
    folder: Path,
    *,
    before: Callable[[], None] | None = None,
    name: str = "said",
    tell_modules: bool = False,
) -> Child:
    """Fork a command that runs in a folder; `before` is called first in the fork."""
    logs = folder.parent / f"{folder.name}.logs"
    logs.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return Child(pid, logs, name)
    code = 70
    try:
        os.chdir(folder)
        for number, kind in ((1, "out"), (2, "err")):
            target = os.open(logs / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        if before is not None:
            before()
        sys.argv = ["evalkit", *words]
        from evalkit.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 (the parent looks for the traceback)
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        if tell_modules:
            (folder / "modules").write_text("\n".join(sys.modules), "utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forked(words: Sequence[str], folder: Path, *, before: Callable[[], None] | None = None) -> Done:
    """Run a forked command to its end."""
    return start(words, folder, before=before).wait()


Choice = TypeVar("Choice")


def within_time(trials: Trials, choices: Sequence[Choice]) -> Iterator[Choice]:
    """Yield choices until the time is over; note how many were left out."""
    for place, choice in enumerate(choices):
        if not trials.more():
            trials.note = f"{len(choices) - place} of {len(choices)} trials left out: the time was over"
            return
        yield choice
