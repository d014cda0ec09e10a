"""Work for each core: a Python thread each, within which native libraries use one thread.

Libraries that share every product among all cores wait for the slowest of them each time, and leave the elementwise
work between products to few. A core with work of its own waits for nobody, finds its products in its own cache, and
gives the same bits however many other cores there are.
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
"""Starts `work(*arguments)` in a thread."""


@contextmanager
def a_core_each(cores: int) -> Iterator[Submit]:
    """Yield what starts work in threads that take one core each; torch's own number of threads comes back on leaving.

    Leaving waits for what has begun. On an error what waits in line is dropped. torch lets go of Python's lock while it
    computes, so only what is between its calls takes turns.
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
    """Return threads that stay: starting one takes milliseconds."""
    # OpenMP counts threads by caller: what the main thread says does not reach the pool's.
    return ThreadPoolExecutor(cores, "evalkit-core", initializer=torch.set_num_threads, initargs=(1,))


def map_ranges(work: Callable[[int, int], None], edges: Sequence[int]) -> None:
    """Call `work(begin, end)` for each pair of neighbouring edges, side by side; raise what one of them raised."""
    ranges = list(pairwise(edges))
    if len(ranges) == 1:
        work(*ranges[0])
        return
    with a_core_each(len(ranges)) as submit:
        for done in [submit(work, *of) for of in ranges]:
            done.result()


def equal_ranges(ends: torch.Tensor, *, cores: int) -> list[int]:
    """Cut items into at most `cores` ranges of about equal size, given where each item ends; return their edges.

    >>> equal_ranges(torch.tensor([10, 20, 21, 30]), cores=2)
    [0, 2, 4]
    """
    whole = int(ends[-1])
    wanted = torch.arange(1, cores) * (whole / cores)
    inner = torch.searchsorted(ends, wanted.to(ends.dtype)) + 1
    return sorted({0, *inner.clamp(max=len(ends)).tolist(), len(ends)})
