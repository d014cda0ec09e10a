"""Parallel work with one Python thread per core; in each of them, torch uses one thread.

Libraries that share every matrix product among all cores wait for the slowest core each time, and run the elementwise
work between products on few cores. A core that works on its own range does not wait, finds its products in its own
cache, and computes the same bits whatever the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import torch

Submit = Callable[..., Future[Any]]
"""`submit(work, *arguments)` starts `work(*arguments)` in a thread and returns its future."""


@contextmanager
def thread_per_core(cores: int) -> Iterator[Submit]:
    """Yield a function that starts work in one of `cores` threads; until the exit, each call of torch uses one thread.

    The exit waits for work in flight and restores torch's number of threads. After an error, work that has not started
    is cancelled. torch releases the GIL while it computes, so only the Python code between its calls is serialised.
    """
    threads = torch.get_num_threads()
    started: list[Future[Any]] = []

    def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = pool.submit(work, *arguments)
        started.append(future)
        return future

    torch.set_num_threads(1)
    pool = _pool(cores)
    try:
        yield submit
    except BaseException:
        for future in started:
            future.cancel()
        raise
    finally:
        wait(started)
        torch.set_num_threads(threads)


@cache
def _pool(cores: int) -> ThreadPoolExecutor:
    """Return a thread pool for the life of the process: starting a thread takes milliseconds."""
    # OpenMP keeps the number of threads per calling thread: the main thread's setting does not apply to the pool's.
    return ThreadPoolExecutor(cores, "evalkit-core", initializer=torch.set_num_threads, initargs=(1,))


def map_ranges(work: Callable[[int, int], None], edges: Sequence[int]) -> None:
    """Call `work(begin, end)` in parallel for each pair of neighbouring edges; an exception of a call is raised."""
    ranges = list(pairwise(edges))
    if len(ranges) == 1:
        work(*ranges[0])
        return
    with thread_per_core(len(ranges)) as submit:
        for future in [submit(work, begin, end) for begin, end in ranges]:
            future.result()


def equal_ranges(ends: torch.Tensor, *, cores: int) -> list[int]:
    """Split items into at most `cores` ranges of about equal total size; return the ranges' edges.

    `ends` are the cumulative sizes of the items.

    >>> equal_ranges(torch.tensor([10, 20, 21, 30]), cores=2)
    [0, 2, 4]
    """
    total = int(ends[-1])
    targets = torch.arange(1, cores) * (total / cores)
    inner = torch.searchsorted(ends, targets.to(ends.dtype)) + 1
    return sorted({0, *inner.clamp(max=len(ends)).tolist(), len(ends)})
