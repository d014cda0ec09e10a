"""The Ray engine: a worker is an actor with a step of its own, and the driver hands it one piece of work after another.

Ray starts the actors, restarts those that die, and carries the pieces. Nothing here is durable: whoever calls `map`
checkpoints what comes back. A piece lost with its worker is done again elsewhere; one that fails twice is reported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import evalkit
from evalkit.errors import ConfigError, DeviceError, EngineError, EvalkitError, StoreError

log = logging.getLogger(__name__)

COMPARED = ("torch", "transformers")
"""Packages whose versions must agree, beside evalkit's own: they can move the last bits of a vector."""
MOST_FAILURES = 2
"""Attempts at a piece of work before it is reported as failed."""
MOST_DEATHS = 5
"""Deaths of a worker in a row, with no piece finished in between, before it is given up."""
MOST_LOADS = 3
"""Deaths of a worker while it makes its step, before a run is given up that has not begun."""
TICK_S = 0.5
"""How long the driver waits for the workers before it looks at clock and signals again."""
PATIENCE_S = 180.0
"""How long the driver waits for workers that Ray has yet to start again, while none is ready."""
CONNECT_S = 5.0
MARGIN_BYTES = 128 << 20
"""Of the object store beside the pieces of work; Ray refuses a store below 75 MiB."""

Work = TypeVar("Work")
Work_contra = TypeVar("Work_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Step(Protocol[Work_contra, Result_co]):
    """What a worker holds: the three parts of a step, of which one call at a time is in `run`."""

    def prepare(self, work: Work_contra, latest: Any) -> Any:
        """Return the work made ready for `run`; called while `run` has another piece."""

    def run(self, prepared: Any) -> Any:
        """Do the work; the device belongs to this call."""

    def settle(self, done: Any) -> Result_co:
        """Return what goes back to the driver; called while `run` has another piece."""

    def close(self) -> None:
        """Make room for the next step."""


Load = Callable[[], Step[Any, Any]]
"""Makes a worker's step in its process. It is pickled and named by a key: a worker that has the key's step keeps it."""


class Facts(NamedTuple):
    """What a worker says of itself."""

    versions: dict[str, str]
    node: str
    """Ray's name for the node; a machine can be several."""
    host: str
    process_id: int
    device: str

    def label(self) -> str:
        """Name the worker's process for messages."""
        return f"{self.host} (process {self.process_id})"


class WorkerState(NamedTuple):
    """What one worker is doing, for people."""

    number: int
    where: str
    device: str
    state: str
    """`loading`, `idle`, `at work on …`, `starting again` or `given up: …`."""
    done: int
    deaths: int


@dataclass(frozen=True, kw_only=True)
class Piece(Generic[Work]):
    """One piece of work, what to call it in messages, and its size, by which longer pieces go first."""

    name: str
    work: Work
    size: int


class Done(NamedTuple, Generic[Result]):
    """A finished piece: its name, what the step returned, and who did it."""

    name: str
    result: Result
    facts: Facts


class Failed(NamedTuple):
    """A piece that no worker could do: its name, and where and why each attempt failed."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The workers that are asked for, and where."""

    address: str | None
    """None: Ray is started on this machine, and stopped at the end."""
    workers: int | None
    """None: as many as the machine or cluster has room for."""
    gpus_per_worker: float
    """0: the workers are on CPUs."""
    cpus_per_worker: int | None
    """None: one, or on GPUs an equal share of the node's."""
    object_bytes: int
    """A piece of work at most, about: sizes the object store of a Ray that is started here."""


def versions() -> dict[str, str]:
    """Return the versions that must agree among driver and workers."""
    return {"evalkit": evalkit.__version__, **{name: importlib.metadata.version(name) for name in COMPARED}}


# ---- in a worker's process


class _Outcome(NamedTuple):
    """What a call of a worker came to: a value or an error, and the warnings that were logged on the way."""

    value: Any
    error: EvalkitError | None
    notes: tuple[str, ...]


class _Notes(logging.Handler):
    """Collects warnings, which the driver shows: a worker's own output goes to Ray's log files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[str] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def taken(self) -> tuple[str, ...]:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return tuple(lines)


class Worker:
    """The actor: holds one step, and does a piece of work while the next is prepared and the last is settled."""

    def __init__(self) -> None:
        """Hold no step yet."""
        self._key = ""
        self._step: Step[Any, Any] | None = None
        self._loading, self._running = threading.Lock(), threading.Lock()
        self._notes = _Notes()
        logging.getLogger().addHandler(self._notes)

    def facts(self) -> Facts:
        """Say what runs here and where."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        return Facts(versions(), node, socket.gethostname(), os.getpid(), _device())

    def load(self, key: str, boxed: Sequence[Any]) -> _Outcome:
        """Make the step of a key, unless it is here. `boxed` holds a reference to the pickled loader."""
        return self._outcome(lambda: self._loaded(key, boxed) and self.facts())

    def run(self, key: str, boxed: Sequence[Any], work: Any, latest: Any) -> _Outcome:
        """Do one piece of work with the step of a key; `latest` is what the driver knew when it sent the piece."""

        def done() -> Any:
            step = self._loaded(key, boxed)
            prepared = step.prepare(work, latest)
            with self._running:
                found = step.run(prepared)
            return step.settle(found)

        return self._outcome(done)

    def _loaded(self, key: str, boxed: Sequence[Any]) -> Step[Any, Any]:
        import ray

        with self._loading:
            if self._step is None or self._key != key:
                with self._running:
                    if self._step is not None:
                        self._step.close()
                    self._step = None  # frees what the last one held before the next is made
                    load: Load = ray.get(boxed[0])
                    self._step, self._key = load(), key
            return self._step

    def _outcome(self, call: Callable[[], Any]) -> _Outcome:
        try:
            return _Outcome(call(), None, self._notes.taken())
        except EvalkitError as error:
            return _Outcome(None, error, self._notes.taken())
        except Exception as error:  # noqa: BLE001 (whatever it is, the driver reports it with the piece of work)
            traceback.print_exc()  # into Ray's log file of this worker
            return _Outcome(None, EngineError(_in_short(error)), self._notes.taken())


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _in_short(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


# ---- in the driver's process


@dataclass
class _Flight:
    """A call that a worker has not answered yet; `piece` is None for the loading of a step."""

    reference: Any
    piece: _Tried | None


@dataclass
class _Tried:
    """A piece of work, which waits in the object store, with what its attempts came to."""

    name: str
    size: int
    work: Any
    reasons: list[str] = field(default_factory=list)
    failed_on: set[int] = field(default_factory=set)
    alone: bool = False
    """Was under way beside another piece when their worker ended: next time it goes alone, so that blame is just."""


@dataclass
class _Slot:
    """A worker as the driver sees it."""

    number: int
    actor: Any
    facts: Facts
    state: str = "idle"
    flights: deque[_Flight] = field(default_factory=deque)
    done: int = 0
    deaths: int = 0
    deaths_in_a_row: int = 0

    @property
    def ready(self) -> bool:
        return self.state in ("idle", "at work")

    @property
    def given_up(self) -> bool:
        return self.state.startswith("given up")


class Pool:
    """Workers that stay while one `map` follows another; closing ends them, and Ray where it was started here."""

    def __init__(self, resources: Resources) -> None:
        """Start or join Ray and start the workers.

        Raises ConfigError for an address that does not answer, for more GPUs than there are and for workers of other
        versions, EngineError where Ray is not installed or a worker cannot start.
        """
        self.resources = resources
        self._ray = _ray(resources)
        self._clean = True
        self._session: str | None = None
        self._handler: Any = None
        self._slots: list[_Slot] = []
        self._joined = resources.address is not None
        self._sent: tuple[str, Any] = ("", None)
        self._said: set[str] = set()
        self.cpus_per_worker = 1
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def devices(self) -> list[str]:
        """The device of every worker."""
        return [slot.facts.device for slot in self._slots]

    @property
    def nodes(self) -> list[str]:
        """The node of every worker, by Ray's name."""
        return [slot.facts.node for slot in self._slots]

    def states(self) -> list[WorkerState]:
        """Return what every worker is doing."""
        return [
            WorkerState(slot.number, slot.facts.label(), slot.facts.device, _activity(slot), slot.done, slot.deaths)
            for slot in self._slots
        ]

    def prepare(self, key: str, load: Load) -> None:
        """Make the step of a key on every worker that has another. Raises the first error that a worker met."""
        boxed = self._boxed(key, load)
        slots = [slot for slot in self._slots if not slot.given_up]
        for slot in slots:
            slot.state = "loading"
            slot.flights.clear()
            slot.flights.append(_Flight(slot.actor.load.remote(key, boxed), None))
        started = time.monotonic()
        while any(slot.state == "loading" for slot in slots):
            for slot, flight in self._landed():
                slot.flights.remove(flight)
                try:
                    outcome: _Outcome = self._ray.get(flight.reference)
                except self._ray.exceptions.RayError as error:
                    if not self._is_starting(error):
                        slot.deaths_in_a_row += 1
                    if slot.deaths_in_a_row >= MOST_LOADS or time.monotonic() - started > PATIENCE_S:
                        msg = f"worker on {slot.facts.label()} ended while it loaded its step: {_cause(error)}"
                        raise EngineError(msg) from error
                    slot.flights.append(_Flight(slot.actor.load.remote(key, boxed), None))
                    continue
                self._say(outcome)
                if outcome.error is not None:
                    raise type(outcome.error)(f"worker on {slot.facts.label()}: {outcome.error}") from None
                slot.facts, slot.state, slot.deaths_in_a_row = outcome.value, "idle", 0
                _refuse_other_versions(slot.facts)

    def _is_starting(self, error: Exception) -> bool:
        """Whether a call was refused because Ray is still starting its worker again; waits a little if so."""
        if not isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return False
        time.sleep(TICK_S)
        return True

    def map(
        self,
        key: str,
        load: Load,
        pieces: Iterable[Piece[Work]],
        *,
        latest: Callable[[], Any] = lambda: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> Iterator[Done[Any] | Failed]:
        """Yield each piece's result as it comes, in no order; a bounded number of pieces is read and under way.

        `prepare` has been called with the same key. `latest` is called when a piece is sent, and its value goes along;
        `on_tick` is called at least every second or so. Raises EngineError when no worker is left.
        """
        boxed = self._boxed(key, load)
        following = iter(pieces)
        window: list[_Tried] = []
        exhausted, ready_at = False, time.monotonic()
        while True:
            ready = [slot for slot in self._slots if slot.ready]
            while not exhausted and len(window) < len(self._slots) + 2:
                piece = next(following, None)
                exhausted = piece is None
                if piece is not None:
                    window.append(_Tried(piece.name, piece.size, self._ray.put(piece.work)))
            self._dispatch(key, boxed, window, ready, plenty=not exhausted, latest=latest)
            if exhausted and not window and not any(flight.piece for slot in self._slots for flight in slot.flights):
                return
            on_tick()
            ready_at = time.monotonic() if ready else ready_at
            self._refuse_to_wait_forever(time.monotonic() - ready_at)
            for slot, flight in self._landed():
                yield from self._answer(slot, flight, key, boxed, window)

    def close(self) -> None:
        """End every worker at once, and Ray where it was started here."""
        ray = self._ray
        if not ray.is_initialized():
            return
        with _deaf_to_signals():
            for slot in self._slots:
                with contextlib.suppress(Exception):
                    ray.kill(slot.actor, no_restart=True)
            self._slots = []
            ray.shutdown()
            if self._session is not None and self._clean:
                shutil.rmtree(self._session, ignore_errors=True)
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    # ---- starting

    def _start(self) -> None:
        ray, asked = self._ray, self.resources
        _connect(ray, asked)
        if not self._joined:
            self._session = str(ray.get_runtime_context().get_session_name())
            self._session = str(Path("/tmp/ray") / self._session)  # noqa: S108 (where Ray keeps its logs)
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, _end)
        count, gpus, cpus = _share(ray, asked)
        self.cpus_per_worker = cpus
        options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": 2,
            "scheduling_strategy": "SPREAD",
        }
        actors = [ray.remote(Worker).options(**options).remote() for _ in range(count)]
        waiting = [actor.facts.remote() for actor in actors]
        answers = list(waiting)
        started = time.monotonic()
        while waiting:
            _, waiting = ray.wait(waiting, timeout=TICK_S)
            if time.monotonic() - started > PATIENCE_S:
                msg = (
                    f"{len(waiting)} of {count} workers did not start within {PATIENCE_S:.0f} s: the cluster is busy, "
                    f"or no node has {cpus} CPUs and {gpus:g} GPUs free; ask for fewer with engine.workers"
                )
                raise EngineError(msg)
        for number, (actor, answer) in enumerate(zip(actors, answers, strict=True)):
            try:
                facts: Facts = ray.get(answer)
            except ray.exceptions.RayError as error:
                msg = f"a worker could not start: {_cause(error)}; install the same evalkit[ray] on every node"
                raise EngineError(msg) from error
            self._slots.append(_Slot(number, actor, facts))
            _refuse_other_versions(facts)

    def _boxed(self, key: str, load: Load) -> list[Any]:
        """Return a reference to the loader in a list, in which Ray passes it on without fetching what it refers to."""
        if self._sent[0] != key:
            self._sent = (key, self._ray.put(load))
        return [self._sent[1]]

    # ---- handing out

    def _dispatch(  # noqa: PLR0913 (keyword-only behind the first four)
        self,
        key: str,
        boxed: Sequence[Any],
        window: list[_Tried],
        ready: Sequence[_Slot],
        *,
        plenty: bool,
        latest: Callable[[], Any],
    ) -> None:
        """Give the largest pieces that were read to idle workers; a second one to each while there are plenty."""
        window.sort(key=lambda tried: tried.size)
        for depth in (1, 2):
            for slot in ready:
                if depth == 2 and not plenty and len(window) <= len(ready):
                    return  # the last pieces wait for whoever is free first
                if len(slot.flights) >= depth or any(flight.piece and flight.piece.alone for flight in slot.flights):
                    continue
                chosen = next((tried for tried in reversed(window) if _suits(tried, slot, others=len(ready) > 1)), None)
                if chosen is None:
                    continue
                window.remove(chosen)
                reference = slot.actor.run.remote(key, boxed, chosen.work, latest())
                slot.flights.append(_Flight(reference, chosen))
                slot.state = "at work"

    def _landed(self) -> list[tuple[_Slot, _Flight]]:
        """Wait a little for answers, and return those that are there."""
        flying = {flight.reference: (slot, flight) for slot in self._slots for flight in slot.flights}
        if not flying:
            time.sleep(TICK_S)
            return []
        found, rest = self._ray.wait(list(flying), timeout=TICK_S)
        if found and rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            found += more
        return [flying[reference] for reference in found]

    def _answer(
        self, slot: _Slot, flight: _Flight, key: str, boxed: Sequence[Any], window: list[_Tried]
    ) -> Iterator[Done[Any] | Failed]:
        if flight not in slot.flights:
            return  # it was lost with its worker, by an answer that came in the same moment
        by_itself = len(slot.flights) == 1
        slot.flights.remove(flight)
        try:
            outcome: _Outcome = self._ray.get(flight.reference)
        except self._ray.exceptions.RayError as error:
            if flight.piece is None and self._is_starting(error):
                slot.flights.append(_Flight(slot.actor.load.remote(key, boxed), None))
                return
            yield from self._lost(slot, flight, _cause(error), key, boxed, window, blamed=by_itself)
            return
        self._say(outcome)
        if flight.piece is None:
            self._back(slot, outcome)
            return
        slot.state = "at work" if slot.flights else "idle"
        problem = outcome.error
        if problem is None:
            slot.done += 1
            slot.deaths_in_a_row = 0
            yield Done(flight.piece.name, outcome.value, slot.facts)
            return
        if isinstance(problem, StoreError):  # the node's fault, not the piece's
            window.append(flight.piece)
            self._give_up(slot, str(problem), window)
            return
        yield from self._failed(slot, flight.piece, str(problem), window)
        if isinstance(problem, DeviceError):  # what is left of the device's state is not to be trusted
            self._ray.kill(slot.actor, no_restart=False)
            self._restart(slot, key, boxed, window)

    def _failed(self, slot: _Slot, tried: _Tried, reason: str, window: list[_Tried]) -> Iterator[Failed]:
        tried.reasons.append(f"{slot.facts.label()}: {reason}")
        tried.failed_on.add(slot.number)
        if len(tried.reasons) >= MOST_FAILURES:
            yield Failed(tried.name, tuple(tried.reasons))
        else:
            log.warning("%s failed on %s and is tried again: %s", tried.name, slot.facts.label(), reason)
            window.append(tried)

    def _lost(  # noqa: PLR0913, PLR0917 (what there is to know of a loss)
        self,
        slot: _Slot,
        flight: _Flight,
        reason: str,
        key: str,
        boxed: Sequence[Any],
        window: list[_Tried],
        *,
        blamed: bool,
    ) -> Iterator[Failed]:
        """Take a worker's pieces back. A failed attempt is counted where one piece alone was under way."""
        if flight.piece is not None and blamed:
            yield from self._failed(slot, flight.piece, f"the worker ended: {reason}", window)
        else:
            slot.flights.append(flight)
            names = " and ".join(lost.piece.name for lost in slot.flights if lost.piece is not None)
            again = f"; {names} are done again" if names else ""
            log.warning("worker on %s ended and is started again (%s)%s", slot.facts.label(), reason, again)
        for other in slot.flights:
            if other.piece is not None:
                other.piece.alone = True
        slot.deaths += 1
        slot.deaths_in_a_row += 1
        self._clean = False
        if slot.deaths_in_a_row >= MOST_DEATHS:
            self._give_up(slot, f"ended {MOST_DEATHS} times in a row, at last: {reason}", window)
        else:
            self._restart(slot, key, boxed, window)

    def _restart(self, slot: _Slot, key: str, boxed: Sequence[Any], window: list[_Tried]) -> None:
        """Ask a worker that Ray starts again for its step; it gets no piece before it answers."""
        window.extend(flight.piece for flight in slot.flights if flight.piece is not None)
        slot.flights.clear()
        slot.state = "starting again"
        slot.flights.append(_Flight(slot.actor.load.remote(key, boxed), None))

    def _back(self, slot: _Slot, outcome: _Outcome) -> None:
        if outcome.error is not None:
            self._give_up(slot, str(outcome.error), [])
            return
        slot.facts = outcome.value
        _refuse_other_versions(slot.facts)
        slot.state = "idle"

    def _give_up(self, slot: _Slot, reason: str, window: list[_Tried]) -> None:
        window.extend(flight.piece for flight in slot.flights if flight.piece is not None)
        slot.flights.clear()
        slot.state = f"given up: {reason}"
        self._clean = False
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor, no_restart=True)
        if any(not other.given_up for other in self._slots):
            log.warning("worker on %s is given up: %s", slot.facts.label(), reason)

    def _refuse_to_wait_forever(self, waited_s: float) -> None:
        left = [slot for slot in self._slots if not slot.given_up]
        if not left:
            reasons = "; ".join(f"{slot.facts.label()} {slot.state}" for slot in self._slots)
            msg = f"no worker is left ({reasons}); finished shards are kept: the same command does only what is missing"
            raise EngineError(msg)
        if waited_s > PATIENCE_S:
            msg = (
                f"no worker has been ready for {PATIENCE_S:.0f} s ({len(left)} are to be started again, and Ray finds "
                "no room for them); finished shards are kept: the same command does only what is missing"
            )
            raise EngineError(msg)

    def _say(self, outcome: _Outcome) -> None:
        for line in outcome.notes:
            if line not in self._said:
                self._said.add(line)
                log.warning("%s", line)


_pool: Pool | None = None


def pool(resources: Resources) -> Pool:
    """Return the workers that are asked for: those of the last call where the same are wanted, else new ones."""
    global _pool  # noqa: PLW0603 (workers outlive a cell, as Ray's connection does, of which a process has one)
    if _pool is not None and (_pool.resources != resources or any(slot.given_up for slot in _pool._slots)):  # noqa: SLF001
        close()
    if _pool is None:
        _pool = Pool(resources)
    return _pool


def current() -> Pool | None:
    """Return the workers of the last call of `pool`, unless they were closed."""
    return _pool


def close() -> None:
    """End the workers of `pool`, if there are any."""
    global _pool
    if _pool is not None:
        ending, _pool = _pool, None
        ending.close()


def _suits(tried: _Tried, slot: _Slot, *, others: bool) -> bool:
    """Whether a worker may have a piece now: one that failed goes to another, where there is one."""
    if others and slot.number in tried.failed_on:
        return False
    return not (tried.alone and slot.flights)


def _activity(slot: _Slot) -> str:
    pieces = [flight.piece.name for flight in slot.flights if flight.piece is not None]
    return f"at work on {pieces[0]}" if pieces and slot.state == "at work" else slot.state


def _ray(asked: Resources) -> Any:
    """Import Ray, kept from counting its users and from talking over the progress line."""
    if asked.address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Read once, when Ray is imported; without them Ray writes a token into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves a worker behind all else on the machine
    try:
        import ray
    except ImportError as error:
        msg = f"engine=ray: Ray is not installed ({_in_short(error)}); pip install 'evalkit[ray]'"
        raise EngineError(msg) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # Ray would print a page about every death among the results on stdout
        from ray._private import worker as internals

        internals.print_to_stdstream = lambda *_args, **_options: None
    return ray


def _connect(ray: Any, asked: Resources) -> None:
    """Start Ray here or join the cluster. Raises ConfigError where nobody answers."""
    quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if asked.address is None:
        cpus = max(os.cpu_count() or 1, (asked.workers or 1) * (asked.cpus_per_worker or 1))
        pieces = 4 * max(asked.workers or cpus, 1) + 2
        store = min(MARGIN_BYTES + pieces * asked.object_bytes, _half_of_memory())
        ray.init(address="local", num_cpus=cpus, object_store_memory=store, include_dashboard=False, **quiet)
        return
    host, _, port = asked.address.rpartition(":")
    try:
        if asked.address != "auto":
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=asked.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        msg = (
            f"engine.address={asked.address}: no Ray cluster answers there ({_in_short(error)}); wanted auto or "
            "HOST:PORT of a running head node (ray start --head), this machine in its cluster too (ray start --address)"
        )
        raise ConfigError(msg) from error


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _share(ray: Any, asked: Resources) -> tuple[int, float, int]:
    """Return the number of workers, and the GPUs and CPUs of each. Raises ConfigError for more than there are."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    per_gpu = asked.gpus_per_worker
    if per_gpu:
        fitting = int(gpus / per_gpu) if per_gpu < 1 else sum(int(node.get("GPU", 0) // per_gpu) for node in nodes)
        workers = asked.workers or fitting
        if workers > fitting or not workers:
            msg = (
                f"engine.workers={workers or 1} with engine.gpus_per_worker={per_gpu:g}: Ray sees {gpus} GPUs on "
                f"{len(nodes)} nodes; wanted at most {fitting} workers, or engine.device=cpu"
            )
            raise ConfigError(msg)
        shares = [int(node.get("CPU", 1) * per_gpu / node["GPU"]) for node in nodes if node.get("GPU")]
        return workers, per_gpu, asked.cpus_per_worker or max(1, min(shares))
    each = asked.cpus_per_worker or 1
    fitting = sum(int(node.get("CPU", 0) // each) for node in nodes)
    workers = asked.workers or fitting
    if workers > fitting or not workers:
        msg = (
            f"engine.workers={workers or 1} with engine.cpus_per_worker={each}: Ray has {cpus} CPUs on {len(nodes)} "
            f"nodes; wanted at most {fitting} workers"
        )
        raise ConfigError(msg)
    return workers, 0, each


def _refuse_other_versions(facts: Facts) -> None:
    here = versions()
    other = [name for name in here if facts.versions.get(name) != here[name]]
    if other:
        theirs, ours = (", ".join(f"{name} {of.get(name)}" for name in other) for of in (facts.versions, here))
        msg = f"worker on {facts.label()} has {theirs}, this process {ours}; install the same on every node"
        raise ConfigError(msg)


def _cause(error: BaseException) -> str:
    """Return what ended a worker, in a line: Ray's own messages are pages."""
    text = str(error)
    for sign in ("ModuleNotFoundError", "ImportError", "AttributeError"):
        if sign in text:
            return next(line.strip() for line in reversed(text.splitlines()) if sign in line)
    if "memory" in text.lower() and "OutOfMemory" in type(error).__name__ + text:
        return "out of memory"
    if "node" in text.lower() and ("died" in text.lower() or "dead" in text.lower()) and "its node" in text.lower():
        return "its node is gone"
    return "its process is gone" if "Actor" in type(error).__name__ else _in_short(error)


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Let nothing break into the end of the workers: an impatient second Ctrl-C would leave some behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
