"""A worker of the Ray engine: the actor that builds a step and runs items through it, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import evalkit
from evalkit.errors import EngineError, EvalkitError

COMPARED = ("torch", "transformers")
"""Packages whose versions must be equal everywhere, as evalkit's: they can change the last bits of a vector."""
Work_contra = TypeVar("Work_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Step(Protocol[Work_contra, Result_co]):
    """What a worker does with an item, in three parts; `run` is called for one item at a time."""

    def prepare(self, work: Work_contra, latest: Any) -> Any:
        """Prepare an item for `run`; may be called while another item is in `run`. `latest` is the driver's state."""

    def run(self, prepared: Any) -> Any:
        """Compute the result; no other call uses the device meanwhile."""

    def settle(self, done: Any) -> Result_co:
        """Return the result for the driver; may be called while another item is in `run`."""

    def close(self) -> None:
        """Free the step's memory, before the next step is built."""


Load = Callable[[], Step[Any, Any]]
"""Builds a step in the worker's process. It is sent pickled, with a key, so that a worker builds each step once."""


class Facts(NamedTuple):
    """What a worker reports about itself."""

    versions: dict[str, str]
    """By package; see `versions`."""
    node: str
    """Ray's name of the node; one machine can run several nodes."""
    host: str
    process_id: int
    device: str

    def label(self) -> str:
        """Name the worker's process for messages."""
        return f"{self.host} (process {self.process_id})"


def versions() -> dict[str, str]:
    """Return the versions that must be the same on the driver and all workers."""
    return {"evalkit": evalkit.__version__, **{name: importlib.metadata.version(name) for name in COMPARED}}


class Outcome(NamedTuple):
    """The outcome of a call: a value or an error, and the warnings that were logged meanwhile."""

    value: Any
    error: EvalkitError | None
    warnings: tuple[str, ...]


class _WarningCollector(logging.Handler):
    """Collects warnings for the driver to show, because a worker's own output goes to Ray's log files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def drain(self) -> tuple[str, ...]:
        """Return the collected warnings and forget them."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return tuple(lines)


class Worker:
    """The actor. It has one step; while an item is in `run`, another can be in `prepare` or `settle`."""

    def __init__(self) -> None:
        """Start without a step."""
        self._key = ""
        self._step: Step[Any, Any] | None = None
        self._loading, self._running = threading.Lock(), threading.Lock()
        self._warnings = _WarningCollector()
        logging.getLogger().addHandler(self._warnings)

    def facts(self) -> Facts:
        """Return the worker's versions, node, process and device."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        return Facts(versions(), node, socket.gethostname(), os.getpid(), _device())

    def load(self, key: str, loader_box: Sequence[Any]) -> Outcome:
        """Build the step of a key unless it exists, and return the worker's facts.

        `loader_box` is a list with a reference to the pickled loader (see `Pool._box_loader`).
        """
        return self._outcome(lambda: self._loaded(key, loader_box) and self.facts())

    def run(self, key: str, loader_box: Sequence[Any], work: Any, latest: Any) -> Outcome:
        """Run one item through the step of a key. `latest` is the driver's state when it sent the item."""

        def done() -> Any:
            step = self._loaded(key, loader_box)
            prepared = step.prepare(work, latest)
            with self._running:
                computed = step.run(prepared)
            return step.settle(computed)

        return self._outcome(done)

    def _loaded(self, key: str, loader_box: Sequence[Any]) -> Step[Any, Any]:
        """Return the step of a key; if the worker has another step, it is closed and replaced."""
        import ray

        with self._loading:
            if self._step is None or self._key != key:
                with self._running:
                    if self._step is not None:
                        self._step.close()
                    self._step = None  # free the memory of the old step before the new one is built
                    load: Load = ray.get(loader_box[0])
                    self._step, self._key = load(), key
            return self._step

    def _outcome(self, call: Callable[[], Any]) -> Outcome:
        """Return the outcome of a call; an error other than an EvalkitError becomes an EngineError of one line."""
        try:
            return Outcome(call(), None, self._warnings.drain())
        except EvalkitError as error:
            return Outcome(None, error, self._warnings.drain())
        except Exception as error:  # noqa: BLE001 (the driver reports any error with the item)
            traceback.print_exc()  # into Ray's log file of this worker
            return Outcome(None, EngineError(one_line(error)), self._warnings.drain())


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def one_line(error: BaseException) -> str:
    """Return an error's class and the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
