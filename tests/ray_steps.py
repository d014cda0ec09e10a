"""Steps for Ray workers in tests: they do almost nothing, or fail at a known point; state is kept in files."""

import os
import signal
from pathlib import Path
from typing import NamedTuple

from evalkit.errors import ModelError, StoreError


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Step(NamedTuple):
    """Doubles numbers; work that is a string says how to fail."""

    folder: Path

    def prepare(self, work, latest):
        return work, latest

    def run(self, prepared):
        work, latest = prepared
        attempts = self.folder / f"attempt {work} {os.getpid()}"
        attempts.touch()
        if work == "dies once" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            die()
        if work == "always dies":
            die()
        if work == "raises":
            raise ValueError("three is no even number\nand more lines")
        if work == "no space":
            raise StoreError("/cache: could not be written (No space left on device)")
        if work == "no space once" and not (self.folder / "full").exists():
            (self.folder / "full").touch()
            raise StoreError("/cache: could not be written (No space left on device)")
        if work == "waits":
            (self.folder / f"waiting {os.getpid()}").touch()
            while not (self.folder / "go on").exists():
                os.sched_yield()
        return work, latest

    def settle(self, done):
        work, latest = done
        return (work * 2 if isinstance(work, int) else work), latest, os.getpid()

    def close(self):
        pass


class Load(NamedTuple):
    folder: Path

    def __call__(self):
        (self.folder / f"loaded {os.getpid()}").touch()
        return Step(self.folder)


class CannotLoad(NamedTuple):
    def __call__(self):
        raise ModelError("checkpoint folder /nowhere does not exist")
