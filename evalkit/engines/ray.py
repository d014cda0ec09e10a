"""The Ray engine: each worker is an actor with a step of its own, and the driver sends it one work item after another.

Ray starts the actors, restarts those that die, and transfers the items. Nothing here is durable: the caller of `map`
checkpoints the results. An item that was lost with its worker is tried on another; one that fails twice is reported.
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
"""Packages whose versions must agree, besides evalkit's own: they can change the last bits of a vector."""
MOST_FAILURES = 2
"""Attempts at a work item before it is reported as failed."""
MOST_DEATHS = 5
"""Consecutive deaths of a worker, without a finished item in between, before it is given up."""
MOST_LOADS = 3
"""Deaths of a worker while it loads its step, before the job fails."""
TICK_S = 0.5
"""Longest wait for an answer, after which the driver looks at the clock and handles signals."""
PATIENCE_S = 180.0
"""Longest time without a ready worker while Ray starts workers again."""
CONNECT_S = 5.0
MARGIN_BYTES = 128 << 20
"""Bytes of the object store in addition to the work items; Ray refuses a store below 75 MiB."""

Work = TypeVar("Work")
Work_contra = TypeVar("Work_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Step(Protocol[Work_contra, Result_co]):
    """A worker's step in three parts; `run` is called for one item at a time."""

    def prepare(self, work: Work_contra, latest: Any) -> Any:
        """Prepare an item for `run`; may be called while another item is in `run`."""

    def run(self, prepared: Any) -> Any:
        """Compute the result; no other call uses the device meanwhile."""

    def settle(self, done: Any) -> Result_co:
        """Return the result for the driver; may be called while another item is in `run`."""

    def close(self) -> None:
        """Free the memory for the next step."""


Load = Callable[[], Step[Any, Any]]
"""Builds a step in the worker's process. It is pickled; a key identifies it, so that a worker builds it only once."""


class Facts(NamedTuple):
    """The facts that a worker reports about itself."""

    versions: dict[str, str]
    node: str
    """Ray's name of the node; one machine can run several nodes."""
    host: str
    process_id: int
    device: str

    def label(self) -> str:
        """Name the worker's process for messages."""
        return f"{self.host} (process {self.process_id})"


class WorkerState(NamedTuple):
    """The state of one worker, for `evalkit status`."""

    number: int
    where: str
    device: str
    state: str
    """`loading`, `idle`, `at work on …`, `starting again` or `given up: …`."""
    done: int
    deaths: int


@dataclass(frozen=True, kw_only=True)
class WorkItem(Generic[Work]):
    """One item of work, its name in messages, and its size: larger items are sent first."""

    name: str
    work: Work
    size: int


class Done(NamedTuple, Generic[Result]):
    """A finished item: its name, the step's result, and the worker."""

    name: str
    result: Result
    facts: Facts


class Failed(NamedTuple):
    """An item that failed on every attempt: its name, and the worker and reason of each attempt."""

    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The requested workers."""

    address: str | None
    """The address of a Ray cluster; None starts Ray on this machine and stops it at the end."""
    workers: int | None
    """None means as many as fit on the machine or cluster."""
    gpus_per_worker: float
    """0 means workers without GPU."""
    cpus_per_worker: int | None
    """None means one, or with GPUs an equal share of the node's CPUs."""
    object_bytes: int
    """Approximate size of the largest work item; sizes the object store of a Ray that is started here."""


def versions() -> dict[str, str]:
    """Return the versions that must be the same on the driver and all workers."""
    return {"evalkit": evalkit.__version__, **{name: importlib.metadata.version(name) for name in COMPARED}}


# ---- in a worker's process


class _Outcome(NamedTuple):
    """The outcome of a call: a value or an error, and the warnings that were logged meanwhile."""

    value: Any
    error: EvalkitError | None
    notes: tuple[str, ...]


class _Notes(logging.Handler):
    """Collects warnings for the driver to show, because a worker's own output goes to Ray's log files."""

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
    """The actor: it has one step, and runs an item while the next is prepared and the previous one is settled."""

    def __init__(self) -> None:
        """Start without a step."""
        self._key = ""
        self._step: Step[Any, Any] | None = None
        self._loading, self._running = threading.Lock(), threading.Lock()
        self._notes = _Notes()
        logging.getLogger().addHandler(self._notes)

    def facts(self) -> Facts:
        """Return the worker's versions, place and device."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        return Facts(versions(), node, socket.gethostname(), os.getpid(), _device())

    def load(self, key: str, boxed: Sequence[Any]) -> _Outcome:
        """Build the step of a key unless it exists. `boxed` contains a reference to the pickled loader."""
        return self._outcome(lambda: self._loaded(key, boxed) and self.facts())

    def run(self, key: str, boxed: Sequence[Any], work: Any, latest: Any) -> _Outcome:
        """Run one item through the step of a key. `latest` is the driver's state when it sent the item."""

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
                    self._step = None  # free the memory of the old step before the new one is built
                    load: Load = ray.get(boxed[0])
                    self._step, self._key = load(), key
            return self._step

    def _outcome(self, call: Callable[[], Any]) -> _Outcome:
        try:
            return _Outcome(call(), None, self._notes.taken())
        except EvalkitError as error:
            return _Outcome(None, error, self._notes.taken())
        except Exception as error:  # noqa: BLE001 (the driver reports any error with the item)
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
class _Call:
    """A call that a worker has not answered yet; `item` is None while a step is loaded."""

    reference: Any
    item: _Attempted | None


@dataclass
class _Attempted:
    """A work item in the object store, with the outcomes of its attempts."""

    name: str
    size: int
    work: Any
    reasons: list[str] = field(default_factory=list)
    failed_on: set[int] = field(default_factory=set)
    alone: bool = False
    """Set if it was in flight with another item when their worker ended: sent alone, the next failure is its own."""


@dataclass
class _Slot:
    """The driver's view of a worker."""

    number: int
    actor: Any
    facts: Facts
    state: str = "idle"
    calls: deque[_Call] = field(default_factory=deque)
    done: int = 0
    deaths: int = 0
    deaths_in_a_row: int = 0

    @property
    def ready(self) -> bool:
        return self.state in ("idle", "at work")

    @property
    def given_up(self) -> bool:
        return self.state.startswith("given up")


@dataclass(frozen=True)
class _Round:
    """One `map`: the step that it uses, and the work that waits for a worker."""

    key: str
    boxed: Sequence[Any]
    """A reference to the pickled loader of the step (see `Pool._boxed`)."""
    waiting: list[_Attempted] = field(default_factory=list)


class Pool:
    """Workers that serve one `map` after another. Closing ends them, and Ray if it was started here."""

    def __init__(self, resources: Resources) -> None:
        """Start or join Ray and start the workers.

        Raises ConfigError for an address that does not answer, more GPUs than exist, or workers of other versions;
        EngineError if Ray is not installed or a worker cannot start.
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
        """Ray's name of every worker's node."""
        return [slot.facts.node for slot in self._slots]

    @property
    def lacks_workers(self) -> bool:
        """Whether a worker was given up."""
        return any(slot.given_up for slot in self._slots)

    def states(self) -> list[WorkerState]:
        """Return the state of every worker."""
        return [
            WorkerState(slot.number, slot.facts.label(), slot.facts.device, _activity(slot), slot.done, slot.deaths)
            for slot in self._slots
        ]

    def prepare(self, key: str, load: Load) -> None:
        """Build the step of a key on every worker that lacks it. Raises the first error of a worker."""
        boxed = self._boxed(key, load)
        slots = [slot for slot in self._slots if not slot.given_up]
        for slot in slots:
            slot.state = "loading"
            slot.calls.clear()
            slot.calls.append(_Call(slot.actor.load.remote(key, boxed), None))
        started = time.monotonic()
        while any(slot.state == "loading" for slot in slots):
            for slot, call in self._landed():
                slot.calls.remove(call)
                try:
                    outcome: _Outcome = self._ray.get(call.reference)
                except self._ray.exceptions.RayError as error:
                    if not self._is_starting(error):
                        slot.deaths_in_a_row += 1
                    if slot.deaths_in_a_row >= MOST_LOADS or time.monotonic() - started > PATIENCE_S:
                        msg = f"worker on {slot.facts.label()} ended while it loaded its step: {_cause(error)}"
                        raise EngineError(msg) from error
                    slot.calls.append(_Call(slot.actor.load.remote(key, boxed), None))
                    continue
                self._say(outcome)
                if outcome.error is not None:
                    raise type(outcome.error)(f"worker on {slot.facts.label()}: {outcome.error}") from None
                slot.facts, slot.state, slot.deaths_in_a_row = outcome.value, "idle", 0
                _refuse_other_versions(slot.facts)

    def _is_starting(self, error: Exception) -> bool:
        """Whether a call was refused because Ray is still restarting its worker; if so, wait for a moment."""
        if not isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return False
        time.sleep(TICK_S)
        return True

    def map(
        self,
        key: str,
        load: Load,
        items: Iterable[WorkItem[Work]],
        *,
        latest: Callable[[], Any] = lambda: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> Iterator[Done[Any] | Failed]:
        """Yield each item's result when it arrives, in any order. A bounded number of items is read ahead.

        Call `prepare` with the same key before. `latest()` is called whenever an item is sent, and its value is sent
        too. `on_tick()` is called about once a second. Raises EngineError if no worker is left.
        """
        this = _Round(key, self._boxed(key, load))
        following = iter(items)
        exhausted, ready_at = False, time.monotonic()
        while True:
            ready = [slot for slot in self._slots if slot.ready]
            while not exhausted and len(this.waiting) < len(self._slots) + 2:
                item = next(following, None)
                exhausted = item is None
                if item is not None:
                    this.waiting.append(_Attempted(item.name, item.size, self._ray.put(item.work)))
            self._dispatch(this, ready, plenty=not exhausted, latest=latest)
            if exhausted and not this.waiting and not any(call.item for slot in self._slots for call in slot.calls):
                return
            on_tick()
            ready_at = time.monotonic() if ready else ready_at
            self._refuse_to_wait_forever(time.monotonic() - ready_at)
            for slot, call in self._landed():
                yield from self._answer(slot, call, this)

    def close(self) -> None:
        """End every worker now, and Ray if it was started here."""
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

    # ---- start

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
        """Return a reference to the loader in a list: Ray then passes it on without fetching the loader."""
        if self._sent[0] != key:
            self._sent = (key, self._ray.put(load))
        return [self._sent[1]]

    # ---- dispatch

    def _dispatch(self, this: _Round, ready: Sequence[_Slot], *, plenty: bool, latest: Callable[[], Any]) -> None:
        """Send the largest waiting items to idle workers, and each worker a second one while more items follow."""
        window = this.waiting
        window.sort(key=lambda item: item.size)
        for depth in (1, 2):
            for slot in ready:
                if depth == 2 and not plenty and len(window) <= len(ready):
                    return  # the last items wait for the first worker that becomes idle
                if len(slot.calls) >= depth or any(call.item and call.item.alone for call in slot.calls):
                    continue
                chosen = next((item for item in reversed(window) if _suits(item, slot, others=len(ready) > 1)), None)
                if chosen is None:
                    continue
                window.remove(chosen)
                reference = slot.actor.run.remote(this.key, this.boxed, chosen.work, latest())
                slot.calls.append(_Call(reference, chosen))
                slot.state = "at work"

    def _landed(self) -> list[tuple[_Slot, _Call]]:
        """Wait up to TICK_S for an answer; return all calls that were answered."""
        in_flight = {call.reference: (slot, call) for slot in self._slots for call in slot.calls}
        if not in_flight:
            time.sleep(TICK_S)
            return []
        found, rest = self._ray.wait(list(in_flight), timeout=TICK_S)
        if found and rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            found += more
        return [in_flight[reference] for reference in found]

    def _answer(self, slot: _Slot, call: _Call, this: _Round) -> Iterator[Done[Any] | Failed]:
        if call not in slot.calls:
            return  # another answer of the same moment showed that its worker had ended
        by_itself = len(slot.calls) == 1
        slot.calls.remove(call)
        try:
            outcome: _Outcome = self._ray.get(call.reference)
        except self._ray.exceptions.RayError as error:
            if call.item is None and self._is_starting(error):
                slot.calls.append(_Call(slot.actor.load.remote(this.key, this.boxed), None))
                return
            yield from self._lost(slot, call, _cause(error), this, blamed=by_itself)
            return
        self._say(outcome)
        if call.item is None:
            self._back(slot, outcome)
            return
        slot.state = "at work" if slot.calls else "idle"
        problem = outcome.error
        if problem is None:
            slot.done += 1
            slot.deaths_in_a_row = 0
            yield Done(call.item.name, outcome.value, slot.facts)
            return
        if isinstance(problem, StoreError):  # the node's fault, not the item's
            this.waiting.append(call.item)
            self._give_up(slot, str(problem), this.waiting)
            return
        yield from self._failed(slot, call.item, str(problem), this)
        if isinstance(problem, DeviceError):  # the state of the device is unknown now
            self._ray.kill(slot.actor, no_restart=False)
            self._restart(slot, this)

    def _failed(self, slot: _Slot, item: _Attempted, reason: str, this: _Round) -> Iterator[Failed]:
        item.reasons.append(f"{slot.facts.label()}: {reason}")
        item.failed_on.add(slot.number)
        if len(item.reasons) >= MOST_FAILURES:
            yield Failed(item.name, tuple(item.reasons))
        else:
            log.warning("%s failed on %s and is tried again: %s", item.name, slot.facts.label(), reason)
            this.waiting.append(item)

    def _lost(self, slot: _Slot, call: _Call, reason: str, this: _Round, *, blamed: bool) -> Iterator[Failed]:
        """Put a lost worker's items back. It counts as a failed attempt only if one item alone was in flight."""
        if call.item is not None and blamed:
            yield from self._failed(slot, call.item, f"the worker ended: {reason}", this)
        else:
            slot.calls.append(call)
            names = " and ".join(lost.item.name for lost in slot.calls if lost.item is not None)
            again = f"; {names} are done again" if names else ""
            log.warning("worker on %s ended and is started again (%s)%s", slot.facts.label(), reason, again)
        for other in slot.calls:
            if other.item is not None:
                other.item.alone = True
        slot.deaths += 1
        slot.deaths_in_a_row += 1
        self._clean = False
        if slot.deaths_in_a_row >= MOST_DEATHS:
            self._give_up(slot, f"ended {MOST_DEATHS} times in a row, at last: {reason}", this.waiting)
        else:
            self._restart(slot, this)

    def _restart(self, slot: _Slot, this: _Round) -> None:
        """Let a worker that Ray starts again load the step; it gets no item before it answers."""
        this.waiting.extend(call.item for call in slot.calls if call.item is not None)
        slot.calls.clear()
        slot.state = "starting again"
        slot.calls.append(_Call(slot.actor.load.remote(this.key, this.boxed), None))

    def _back(self, slot: _Slot, outcome: _Outcome) -> None:
        if outcome.error is not None:
            self._give_up(slot, str(outcome.error), [])
            return
        slot.facts = outcome.value
        _refuse_other_versions(slot.facts)
        slot.state = "idle"

    def _give_up(self, slot: _Slot, reason: str, waiting: list[_Attempted]) -> None:
        waiting.extend(call.item for call in slot.calls if call.item is not None)
        slot.calls.clear()
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
    """Return the requested workers: those of the last call if it requested the same and all are left, else new ones."""
    global _pool  # noqa: PLW0603 (a process has one connection to Ray, and its workers outlive a cell)
    if _pool is not None and (_pool.resources != resources or _pool.lacks_workers):
        close()
    if _pool is None:
        _pool = Pool(resources)
    return _pool


def current() -> Pool | None:
    """Return the workers of the last call of `pool`, or None if they were closed."""
    return _pool


def close() -> None:
    """End the workers of `pool` if there are any."""
    global _pool
    if _pool is not None:
        ending, _pool = _pool, None
        ending.close()


def _suits(item: _Attempted, slot: _Slot, *, others: bool) -> bool:
    """Whether an item may be sent to a worker now. After a failure it goes to another worker if there is one."""
    if others and slot.number in item.failed_on:
        return False
    return not (item.alone and slot.calls)


def _activity(slot: _Slot) -> str:
    names = [call.item.name for call in slot.calls if call.item is not None]
    return f"at work on {names[0]}" if names and slot.state == "at work" else slot.state


def _ray(asked: Resources) -> Any:
    """Import Ray with usage statistics and its own output turned off."""
    if asked.address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Ray reads them on import; without them it writes a token into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray gives workers the low priority 15
    try:
        import ray
    except ImportError as error:
        msg = f"engine=ray: Ray is not installed ({_in_short(error)}); pip install 'evalkit[ray]'"
        raise EngineError(msg) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # Ray would print a page about every dead worker on stdout
        from ray._private import worker as internals

        internals.print_to_stdstream = lambda *_args, **_options: None
    return ray


def _connect(ray: Any, asked: Resources) -> None:
    """Start Ray here or join the cluster. Raises ConfigError if no cluster answers."""
    quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if asked.address is None:
        cpus = max(os.cpu_count() or 1, (asked.workers or 1) * (asked.cpus_per_worker or 1))
        items = 4 * max(asked.workers or cpus, 1) + 2
        store = min(MARGIN_BYTES + items * asked.object_bytes, _half_of_memory())
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
    """Return the reason why a worker ended, in one line; Ray's own messages have pages."""
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
    """Ignore signals while workers are ended: a second Ctrl-C would leave some of them running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
