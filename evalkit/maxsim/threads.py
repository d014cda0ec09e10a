"""Ranges of work, each on a core of its own: one Python thread each, within which native libraries use one thread.

Libraries that share every product among all cores wait for the slowest of them each time, and leave the elementwise
work between products to few. A core with its own blocks waits for nobody, and finds its products in its own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch


def map_ranges(work: Callable[[int, int], None], edges: Sequence[int]) -> None:
    """Call `work(begin, end)` for each pair of neighbouring edges, side by side; raise what one of them raised.

    torch lets go of Python's lock while it computes, so only what is between its calls takes turns.
    """
    ranges = list(pairwise(edges))
    if len(ranges) == 1:
        work(*ranges[0])
        return
    threads = torch.get_num_threads()

    def alone(begin: int, end: int) -> None:
        torch.set_num_threads(1)  # OpenMP counts threads by caller: what the main thread says does not reach here
        work(begin, end)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(ranges), thread_name_prefix="evalkit-maxsim") as pool:
            for done in [pool.submit(alone, *of) for of in ranges]:
                done.result()
    finally:
        torch.set_num_threads(threads)


def equal_ranges(ends: torch.Tensor, *, threads: int) -> list[int]:
    """Cut items into at most `threads` ranges of about equal size, given where each item ends; return their edges.

    >>> equal_ranges(torch.tensor([10, 20, 21, 30]), threads=2)
    [0, 2, 4]
    """
    whole = int(ends[-1])
    wanted = torch.arange(1, threads) * (whole / threads)
    inner = torch.searchsorted(ends, wanted.to(ends.dtype)) + 1
    return sorted({0, *inner.clamp(max=len(ends)).tolist(), len(ends)})
