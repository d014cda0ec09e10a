"""The Ray engine: each worker is an actor with a step of its own, and the driver sends it one work item after another.

Ray starts the actors, restarts those that die, and transfers the items. Nothing is stored here: the caller of `map`
checkpoints the results. An item that fails is tried once more, on another worker if there is one; an item that fails
twice is reported. If a worker ends, the items that it had are sent again.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

from evalkit.engines.ray_cluster import Resources, connect, fitting_workers, import_ray, worker_shares
from evalkit.engines.ray_worker import Facts, Load, Outcome, Worker, one_line, versions
from evalkit.errors import ConfigError, DeviceError, EngineError, StoreError

log = logging.getLogger(__name__)

MOST_FAILURES = 2
"""Attempts at a work item before it is reported as failed."""
MOST_DEATHS = 5
"""Deaths of a worker in a row, without a finished item in between, before it is given up."""
MOST_LOADS = 3
"""Deaths of a worker while it loads its step, before the job fails."""
POLL_S = 0.5
"""Longest wait for an answer, in seconds; then the driver calls `on_tick` and checks its time limits."""
START_LIMIT_S = 180.0
"""Longest time in which Ray may start workers, or restart them while none is ready, in seconds."""

Work = TypeVar("Work")
Result = TypeVar("Result")


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
    """One item of work, its name in messages, and its size in any unit: larger items are sent first."""

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


@dataclass
class _Call:
    """A call that a worker has not answered yet; `item` is None while a step is loaded."""

    reference: Any
    item: _QueuedItem | None


@dataclass
class _QueuedItem:
    """A work item in the object store, with the outcomes of its attempts."""

    name: str
    size: int
    work: Any
    reasons: list[str] = field(default_factory=list)
    failed_on: set[int] = field(default_factory=set)
    send_alone: bool = False
    """Set when a worker ends with several items in flight: if it ends again, it is clear which item was at fault."""


@dataclass
class _Slot:
    """The driver's view of a worker."""

    number: int
    actor: Any
    facts: Facts
    state: str = "idle"
    """`loading`, `idle`, `at work`, `starting again` or `given up: …`."""
    calls: deque[_Call] = field(default_factory=deque)
    """The calls that it has not answered yet, at most two."""
    done: int = 0
    """Items that it finished."""
    deaths: int = 0
    deaths_in_a_row: int = 0

    @property
    def ready(self) -> bool:
        """Whether it can be sent items."""
        return self.state in ("idle", "at work")

    @property
    def given_up(self) -> bool:
        """Whether it gets no more items in this pool."""
        return self.state.startswith("given up")


@dataclass(frozen=True)
class _MapState:
    """The state of one `map`: the step that it uses, and the items that wait for a worker."""

    key: str
    loader_box: Sequence[Any]
    """A list with a reference to the pickled loader of the step (see `Pool._box_loader`)."""
    waiting: list[_QueuedItem] = field(default_factory=list)


class Pool:
    """Workers that serve one `map` after another. Closing it ends the workers, and Ray if it was started here."""

    def __init__(self, resources: Resources) -> None:
        """Start or join Ray and start the workers.

        Raises ConfigError for an address that does not answer, more GPUs than exist, or workers of other versions;
        EngineError if Ray is not installed or a worker cannot start.
        """
        self.resources = resources
        self.cpus_per_worker = 1
        self._workers = 0  # that were asked for
        self._ray = import_ray(resources)
        self._slots: list[_Slot] = []
        self._joined = resources.address is not None
        self._session_folder: str | None = None  # with Ray's logs, if Ray was started here
        self._delete_logs = True  # unless a worker died or was given up: its logs may tell why
        self._previous_handler: Any = None  # of SIGTERM
        self._loader_sent: tuple[str, Any] = ("", None)  # the key of the last step, and a reference to its loader
        self._logged: set[str] = set()  # warnings of workers; each is logged once
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
        """Whether a worker was given up, or never started because its node had left."""
        return len(self._slots) < self._workers or any(slot.given_up for slot in self._slots)

    def states(self) -> list[WorkerState]:
        """Return the state of every worker."""
        return [
            WorkerState(slot.number, slot.facts.label(), slot.facts.device, _state_text(slot), slot.done, slot.deaths)
            for slot in self._slots
        ]

    def prepare(self, key: str, load: Load) -> None:
        """Build the step of a key on every worker that lacks it.

        Raises the first error of a worker; EngineError if a worker ends MOST_LOADS times or does not start again in
        START_LIMIT_S; ConfigError if a worker has other versions.
        """
        loader_box = self._box_loader(key, load)
        slots = [slot for slot in self._slots if not slot.given_up]
        for slot in slots:
            slot.state = "loading"
            slot.calls.clear()
            slot.calls.append(_Call(slot.actor.load.remote(key, loader_box), None))
        started = time.monotonic()
        while any(slot.state == "loading" for slot in slots):
            for slot, call in self._answered():
                slot.calls.remove(call)
                try:
                    outcome: Outcome = self._ray.get(call.reference)
                except self._ray.exceptions.RayError as error:
                    if fitting_workers(self._ray, self.resources) < sum(not one.given_up for one in self._slots):
                        self._give_up(slot, _cause(error), [])
                        self._check_workers_left(0.0)
                        continue
                    if not self._is_starting(error):
                        slot.deaths_in_a_row += 1
                    if slot.deaths_in_a_row >= MOST_LOADS or time.monotonic() - started > START_LIMIT_S:
                        msg = f"worker on {slot.facts.label()} ended while it loaded its step: {_cause(error)}"
                        raise EngineError(msg) from error
                    slot.calls.append(_Call(slot.actor.load.remote(key, loader_box), None))
                    continue
                self._log_warnings(outcome)
                if outcome.error is not None:
                    raise type(outcome.error)(f"worker on {slot.facts.label()}: {outcome.error}") from None
                slot.facts, slot.state, slot.deaths_in_a_row = outcome.value, "idle", 0
                _refuse_other_versions(slot.facts)

    def _is_starting(self, error: Exception) -> bool:
        """Whether a call was refused because Ray is still restarting its worker; if so, wait for POLL_S first."""
        if not isinstance(error, self._ray.exceptions.ActorUnavailableError):
            return False
        time.sleep(POLL_S)
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

        Call `prepare` with the same key first. `latest()` is called whenever an item is sent, and its value is sent
        too. `on_tick()` is called between answers, and about every POLL_S while the driver waits for one. Raises
        EngineError if no worker is left, or none becomes ready in START_LIMIT_S.
        """
        map_state = _MapState(key, self._box_loader(key, load))
        following = iter(items)
        exhausted, ready_at = False, time.monotonic()
        while True:
            ready = [slot for slot in self._slots if slot.ready]
            while not exhausted and len(map_state.waiting) < len(self._slots) + 2:
                item = next(following, None)
                exhausted = item is None
                if item is not None:
                    map_state.waiting.append(_QueuedItem(item.name, item.size, self._ray.put(item.work)))
            self._dispatch(map_state, ready, more_follow=not exhausted, latest=latest)
            if (
                exhausted
                and not map_state.waiting
                and not any(call.item for slot in self._slots for call in slot.calls)
            ):
                return
            on_tick()
            ready_at = time.monotonic() if ready else ready_at
            self._check_workers_left(time.monotonic() - ready_at)
            for slot, call in self._answered():
                yield from self._handle_answer(slot, call, map_state)

    def close(self) -> None:
        """End every worker now, and Ray if it was started here."""
        ray = self._ray
        if not ray.is_initialized():
            return
        with _ignored_signals():  # a second Ctrl-C would leave some workers running
            for slot in self._slots:
                with contextlib.suppress(Exception):
                    ray.kill(slot.actor, no_restart=True)
            self._slots = []
            ray.shutdown()
            if self._session_folder is not None and self._delete_logs:
                shutil.rmtree(self._session_folder, ignore_errors=True)
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    # ---- start

    def _start(self) -> None:
        ray, resources = self._ray, self.resources
        connect(ray, resources)
        if not self._joined:
            session = ray.get_runtime_context().get_session_name()
            self._session_folder = f"/tmp/ray/{session}"  # noqa: S108 (where Ray keeps its logs)
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, _exit_on_sigterm)
        count, gpus, cpus = worker_shares(ray, resources)
        self.cpus_per_worker, self._workers = cpus, count
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
        while waiting and count - len(waiting) < fitting_workers(ray, resources):  # fewer fit if a node leaves
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            if time.monotonic() - started > START_LIMIT_S:
                msg = (
                    f"{len(waiting)} of {count} workers did not start within {START_LIMIT_S:.0f} s: the cluster is "
                    f"busy, or no node has {cpus} CPUs and {gpus:g} GPUs free; ask for fewer with engine.workers"
                )
                raise EngineError(msg)
        self._add_started(actors, answers, waiting)
        if not self._slots:
            msg = "every node with room for a worker left the cluster while the workers started; repeat the command"
            raise EngineError(msg)
        if len(self._slots) < count:
            left = len(self._slots)
            log.warning("a node left the cluster while the workers started: %d of %d workers are left", left, count)

    def _add_started(self, actors: Sequence[Any], answers: Sequence[Any], waiting: Sequence[Any]) -> None:
        """Add a slot for each worker that answered; end those whose node left the cluster.

        Raises EngineError for a worker that could not start, and ConfigError for one with other versions.
        """
        ray = self._ray
        for number, (actor, answer) in enumerate(zip(actors, answers, strict=True)):
            if answer in waiting:
                ray.kill(actor, no_restart=True)
                continue
            try:
                facts: Facts = ray.get(answer)
            except ray.exceptions.RayError as error:
                if fitting_workers(ray, self.resources) < len(actors):
                    ray.kill(actor, no_restart=True)
                    continue
                msg = f"a worker could not start: {_cause(error)}; install the same evalkit[ray] on every node"
                raise EngineError(msg) from error
            self._slots.append(_Slot(number, actor, facts))
            _refuse_other_versions(facts)

    def _box_loader(self, key: str, load: Load) -> list[Any]:
        """Return a list with a reference to the loader: Ray fetches an argument that is itself a reference.

        A worker then fetches the loader only when it builds the step.
        """
        if self._loader_sent[0] != key:
            self._loader_sent = (key, self._ray.put(load))
        return [self._loader_sent[1]]

    # ---- dispatch

    def _dispatch(
        self, map_state: _MapState, ready: Sequence[_Slot], *, more_follow: bool, latest: Callable[[], Any]
    ) -> None:
        """Send the largest waiting items to idle workers, and each worker a second one while more items follow."""
        waiting = map_state.waiting
        waiting.sort(key=lambda item: item.size)
        for depth in (1, 2):
            for slot in ready:
                if depth == 2 and not more_follow and len(waiting) <= len(ready):
                    return  # the last items wait for the first worker that becomes idle
                if len(slot.calls) >= depth or any(call.item and call.item.send_alone for call in slot.calls):
                    continue
                suitable = (item for item in reversed(waiting) if _may_send(item, slot, others=len(ready) > 1))
                chosen = next(suitable, None)
                if chosen is None:
                    continue
                waiting.remove(chosen)
                reference = slot.actor.run.remote(map_state.key, map_state.loader_box, chosen.work, latest())
                slot.calls.append(_Call(reference, chosen))
                slot.state = "at work"

    def _answered(self) -> list[tuple[_Slot, _Call]]:
        """Wait up to POLL_S for an answer; return all calls that were answered."""
        in_flight = {call.reference: (slot, call) for slot in self._slots for call in slot.calls}
        if not in_flight:
            time.sleep(POLL_S)
            return []
        found, rest = self._ray.wait(list(in_flight), timeout=POLL_S)
        if found and rest:
            more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0)
            found += more
        return [in_flight[reference] for reference in found]

    def _handle_answer(self, slot: _Slot, call: _Call, map_state: _MapState) -> Iterator[Done[Any] | Failed]:
        """Update the state for the answer to a call; yield an item that is finished or has finally failed."""
        if call not in slot.calls:
            return  # an answer handled just before showed that the worker had ended
        only_call = len(slot.calls) == 1
        slot.calls.remove(call)
        try:
            outcome: Outcome = self._ray.get(call.reference)
        except self._ray.exceptions.RayError as error:
            if call.item is None and self._is_starting(error):
                slot.calls.append(_Call(slot.actor.load.remote(map_state.key, map_state.loader_box), None))
                return
            yield from self._worker_lost(slot, call, _cause(error), map_state, at_fault=only_call)
            return
        self._log_warnings(outcome)
        if call.item is None:
            self._loaded_again(slot, outcome)
            return
        slot.state = "at work" if slot.calls else "idle"
        problem = outcome.error
        if problem is None:
            slot.done += 1
            slot.deaths_in_a_row = 0
            yield Done(call.item.name, outcome.value, slot.facts)
            return
        if isinstance(problem, StoreError):  # the fault is the node's, not the item's
            map_state.waiting.append(call.item)
            self._give_up(slot, str(problem), map_state.waiting)
            return
        yield from self._item_failed(slot, call.item, str(problem), map_state)
        if isinstance(problem, DeviceError):  # the device is in an unknown state, so the process is replaced
            self._ray.kill(slot.actor, no_restart=False)
            self._restart(slot, map_state)

    def _item_failed(self, slot: _Slot, item: _QueuedItem, reason: str, map_state: _MapState) -> Iterator[Failed]:
        """Count a failed attempt: put the item back, or yield it after MOST_FAILURES."""
        item.reasons.append(f"{slot.facts.label()}: {reason}")
        item.failed_on.add(slot.number)
        if len(item.reasons) >= MOST_FAILURES:
            yield Failed(item.name, tuple(item.reasons))
        else:
            log.warning("%s failed on %s and is tried again: %s", item.name, slot.facts.label(), reason)
            map_state.waiting.append(item)

    def _worker_lost(
        self, slot: _Slot, call: _Call, reason: str, map_state: _MapState, *, at_fault: bool
    ) -> Iterator[Failed]:
        """Put a lost worker's items back, and restart the worker or give it up.

        `at_fault` is true if this call alone was in flight: only then it counts as a failed attempt of its item.
        """
        if call.item is not None and at_fault:
            yield from self._item_failed(slot, call.item, f"the worker ended: {reason}", map_state)
        else:
            slot.calls.append(call)
            names = " and ".join(lost.item.name for lost in slot.calls if lost.item is not None)
            repeated = f"; {names} are done again" if names else ""
            log.warning("worker on %s ended and is started again (%s)%s", slot.facts.label(), reason, repeated)
        for other in slot.calls:
            if other.item is not None:
                other.item.send_alone = True
        slot.deaths += 1
        slot.deaths_in_a_row += 1
        self._delete_logs = False
        if slot.deaths_in_a_row >= MOST_DEATHS:
            self._give_up(slot, f"ended {MOST_DEATHS} times in a row, last time: {reason}", map_state.waiting)
        else:
            self._restart(slot, map_state)

    def _restart(self, slot: _Slot, map_state: _MapState) -> None:
        """Tell a worker that Ray restarts to load the step; it gets no item before it has answered."""
        map_state.waiting.extend(call.item for call in slot.calls if call.item is not None)
        slot.calls.clear()
        slot.state = "starting again"
        slot.calls.append(_Call(slot.actor.load.remote(map_state.key, map_state.loader_box), None))

    def _loaded_again(self, slot: _Slot, outcome: Outcome) -> None:
        """Mark a restarted worker as idle, or give it up if it could not load its step.

        Raises ConfigError if it has other versions.
        """
        if outcome.error is not None:
            self._give_up(slot, str(outcome.error), [])
            return
        slot.facts = outcome.value
        _refuse_other_versions(slot.facts)
        slot.state = "idle"

    def _give_up(self, slot: _Slot, reason: str, waiting: list[_QueuedItem]) -> None:
        """End a worker for good, and put its items back into `waiting`."""
        waiting.extend(call.item for call in slot.calls if call.item is not None)
        slot.calls.clear()
        slot.state = f"given up: {reason}"
        self._delete_logs = False
        with contextlib.suppress(Exception):
            self._ray.kill(slot.actor, no_restart=True)
        if any(not other.given_up for other in self._slots):
            log.warning("worker on %s is given up: %s", slot.facts.label(), reason)

    def _check_workers_left(self, waited_s: float) -> None:
        """Raise EngineError if every worker was given up, or none has been ready for too long."""
        left = [slot for slot in self._slots if not slot.given_up]
        if not left:
            reasons = "; ".join(f"{slot.facts.label()} {slot.state}" for slot in self._slots)
            msg = f"no worker is left ({reasons}); finished shards are kept: the same command does only what is missing"
            raise EngineError(msg)
        if waited_s > START_LIMIT_S:
            msg = (
                f"no worker has been ready for {START_LIMIT_S:.0f} s (Ray could not start {len(left)} of them again); "
                "finished shards are kept: the same command does only what is missing"
            )
            raise EngineError(msg)

    def _log_warnings(self, outcome: Outcome) -> None:
        for line in outcome.warnings:
            if line not in self._logged:
                self._logged.add(line)
                log.warning("%s", line)


_pool: Pool | None = None


def pool(resources: Resources) -> Pool:
    """Return the requested workers: those of the last call if it requested the same and none was given up, else new.

    Raises what `Pool` raises.
    """
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


def _may_send(item: _QueuedItem, slot: _Slot, *, others: bool) -> bool:
    """Whether an item may be sent to a worker now. After a failure it goes to another worker if there are `others`."""
    if others and slot.number in item.failed_on:
        return False
    return not (item.send_alone and slot.calls)


def _state_text(slot: _Slot) -> str:
    """Return a worker's state as `evalkit status` shows it (see `WorkerState.state`)."""
    names = [call.item.name for call in slot.calls if call.item is not None]
    return f"at work on {names[0]}" if names and slot.state == "at work" else slot.state


def _refuse_other_versions(facts: Facts) -> None:
    """Raise ConfigError if a worker has other versions than this process."""
    here = versions()
    other = [name for name in here if facts.versions.get(name) != here[name]]
    if other:
        theirs, ours = (", ".join(f"{name} {of.get(name)}" for name in other) for of in (facts.versions, here))
        msg = f"worker on {facts.label()} has {theirs}, this process {ours}; install the same on every node"
        raise ConfigError(msg)


def _cause(error: BaseException) -> str:
    """Return the reason why a worker ended in one line; Ray's own messages are pages long."""
    text = str(error)
    for name in ("ModuleNotFoundError", "ImportError", "AttributeError"):
        if name in text:
            return next(line.strip() for line in reversed(text.splitlines()) if name in line)
    if "memory" in text.lower() and "OutOfMemory" in type(error).__name__ + text:
        return "out of memory"
    if "node" in text.lower() and ("died" in text.lower() or "dead" in text.lower()) and "its node" in text.lower():
        return "its node is gone"
    return "its process is gone" if "Actor" in type(error).__name__ else one_line(error)


def _exit_on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    """Exit with an exception, so that the pool is closed."""
    sys.exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _ignored_signals() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM; does nothing outside the main thread, which cannot change handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
