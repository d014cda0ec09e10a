"""Start Ray on this machine or join a cluster, and find how many workers fit."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import Any

from evalkit.engines.ray_worker import one_line
from evalkit.errors import ConfigError, EngineError

CONNECT_S = 5.0
"""Longest wait for a cluster's address to answer, in seconds."""
MARGIN_BYTES = 128 << 20
"""Bytes of the object store in addition to the work items; Ray refuses a store below 75 MiB."""


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


def import_ray(resources: Resources) -> Any:
    """Import Ray with usage statistics and its own output turned off. Raises EngineError if it is not installed."""
    if resources.address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Ray reads these variables on import; without them it writes a token into the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray gives workers the low priority 15
    try:
        import ray
    except ImportError as error:
        msg = f"engine=ray: Ray is not installed ({one_line(error)}); pip install 'evalkit[ray]'"
        raise EngineError(msg) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # otherwise Ray prints a page about each dead worker to stdout
        from ray._private import worker as internals

        internals.print_to_stdstream = lambda *_args, **_options: None
    return ray


def connect(ray: Any, resources: Resources) -> None:
    """Start Ray here or join the cluster. Raises ConfigError if no cluster answers."""
    quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address is None:
        cpus = max(os.cpu_count() or 1, (resources.workers or 1) * (resources.cpus_per_worker or 1))
        items = 4 * max(resources.workers or cpus, 1) + 2
        store = min(MARGIN_BYTES + items * resources.object_bytes, _half_of_memory())
        ray.init(address="local", num_cpus=cpus, object_store_memory=store, include_dashboard=False, **quiet)
        return
    host, _, port = resources.address.rpartition(":")
    try:
        if resources.address != "auto":
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=resources.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        msg = (
            f"engine.address={resources.address}: no Ray cluster answers there ({one_line(error)}); wanted auto or "
            "HOST:PORT of a running head node (ray start --head), this machine in its cluster too (ray start --address)"
        )
        raise ConfigError(msg) from error


def _half_of_memory() -> int:
    """Return half of this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def fitting_workers(ray: Any, resources: Resources) -> int:
    """Return the number of workers for which the cluster's live nodes have processors, busy or not."""
    nodes = _live_nodes(ray)
    if per_gpu := resources.gpus_per_worker:
        return sum(int(node.get("GPU", 0) / per_gpu) for node in nodes)
    return sum(int(node.get("CPU", 0) // (resources.cpus_per_worker or 1)) for node in nodes)


def _live_nodes(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_shares(ray: Any, resources: Resources) -> tuple[int, float, int]:
    """Return the number of workers, and the GPUs and CPUs of each. Raises ConfigError if they do not fit."""
    nodes = _live_nodes(ray)
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    per_gpu, fitting = resources.gpus_per_worker, fitting_workers(ray, resources)
    workers = resources.workers or fitting
    if per_gpu:
        if workers > fitting or not workers:
            msg = (
                f"engine.workers={workers or 1} with engine.gpus_per_worker={per_gpu:g}: Ray sees {gpus} GPUs on "
                f"{len(nodes)} nodes; wanted at most {fitting} workers, or engine.device=cpu"
            )
            raise ConfigError(msg)
        shares = [int(node.get("CPU", 1) * per_gpu / node["GPU"]) for node in nodes if node.get("GPU")]
        return workers, per_gpu, resources.cpus_per_worker or max(1, min(shares))
    each = resources.cpus_per_worker or 1
    if workers > fitting or not workers:
        msg = (
            f"engine.workers={workers or 1} with engine.cpus_per_worker={each}: Ray has {cpus} CPUs on {len(nodes)} "
            f"nodes; wanted at most {fitting} workers"
        )
        raise ConfigError(msg)
    return workers, 0, each
