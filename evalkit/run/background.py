"""Background threads: while the model encodes a shard, one prepares the next shard and one writes the previous one.

Threads are used instead of processes because the tokenizers' Rust code and disk I/O release the GIL, nothing is copied
between processes, and a killed job leaves no orphaned process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import torch

from evalkit.errors import StoreError
from evalkit.ranking import Hits, merge_new
from evalkit.storage.paths import write_error

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
MAX_AUTO_WORKERS = 8
"""Upper limit of `auto`: this many threads produce a few million token ids per second, more than a GPU consumes."""


def tokenizer_threads(asked: Literal["auto"] | int, device: torch.device) -> int:
    """Return the number of threads that tokenise ahead of the model; 0 means none.

    On the CPU `auto` is 0: tokenizer and model each use every core, so running both at once gains nothing.
    """
    if asked != "auto":
        return asked
    return 0 if device.type == "cpu" else max(1, min(MAX_AUTO_WORKERS, (os.cpu_count() or 1) - 1))


def limit_tokenizer(threads: int) -> None:
    """Limit the tokenizer's thread pool, unless threads is 0; this works only before the first text is tokenised."""
    if threads:
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))


class Prefetcher(Generic[Item, Prepared]):
    """Prefetches items in a background thread, or prepares each on use if `threaded` is false."""

    def __init__(self, prepare: Callable[[Item], Prepared], *, threaded: bool) -> None:
        """Set the function that prepares an item; no work starts yet."""
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evalkit-ahead") if threaded else None
        self._started: dict[Item, Future[Prepared]] = {}

    def start(self, item: Item) -> None:
        """Start preparing the next item; cancel older prefetches that were not taken, except the latest."""
        if self._pool is None:
            return
        while len(self._started) > 1:
            self._started.pop(next(iter(self._started))).cancel()
        self._started[item] = self._pool.submit(self._prepare, item)

    def started(self, item: Item) -> bool:
        """Whether an item is being prepared, or is prepared and not yet taken."""
        return item in self._started

    def take(self, item: Item) -> Prepared:
        """Return a prepared item: wait for its prefetch, or prepare it now. Raises what the preparation raised."""
        started = self._started.pop(item, None)
        return self._prepare(item) if started is None else started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class Merger:
    """Merges each shard's hits into the best so far; if `threaded`, in a thread while the next shard is searched."""

    def __init__(self, best: dict[str, Hits], *, depth: int, threaded: bool) -> None:
        """Set the best hits by run id; merging replaces them in place."""
        self._best, self._depth = best, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evalkit-merging") if threaded else None
        self._pending: deque[Future[None]] = deque()

    def add(self, hits: Mapping[str, Hits]) -> None:
        """Merge a shard's hits by run id: now, or in the thread after the shards before it."""
        if self._pool is None:
            self._merge(hits)
            return
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._merge, hits))

    def _merge(self, hits: Mapping[str, Hits]) -> None:
        for run_id, found in hits.items():
            self._best[run_id] = merge_new(self._best[run_id], found, depth=self._depth)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        if error is None:
            while self._pending:
                self._pending.popleft().result()


LOGGED_WAIT_SHARE = 0.1
"""Waiting for the disk is logged if it took more than this share of the time since the first checkpoint."""


class Writer:
    """Writes shard files in a background thread, in the order of submission; after a failure it writes nothing more."""

    def __init__(self) -> None:
        """Create the thread pool; no work starts yet."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evalkit-writer")
        self._pending: deque[Future[None]] = deque()
        self._lock = threading.Lock()
        self._failed = False
        self._began: float | None = None
        self._waited_s = 0.0
        self._logged = False

    def submit(self, path: Path, write: Callable[[], None]) -> None:
        """Queue the writing of a checkpoint. Raises StoreError if an earlier one failed."""
        with self._lock:  # called by the thread that encodes and by the one that searches
            done = [self._pending.popleft() for _ in range(self._leading_done())]
            self._began = self._began or time.monotonic()
            self._pending.append(self._pool.submit(self._write, path, write))
        for write_done in done:
            write_done.result()

    def _leading_done(self) -> int:
        """Return how many of the oldest pending writes are done."""
        return len(list(takewhile(Future.done, self._pending)))

    def _take_oldest(self, pending: int) -> Future[None] | None:
        """Remove and return the oldest write if more than `pending` are queued; else return None."""
        with self._lock:
            return self._pending.popleft() if len(self._pending) > pending else None

    def wait_for_all_but(self, pending: int) -> None:
        """Wait until at most `pending` checkpoints are unwritten. Log once if the disk slows the model down.

        Raises StoreError that names the first file that could not be written.
        """
        started = time.monotonic()
        while (oldest := self._take_oldest(pending)) is not None:
            oldest.result()
        self._waited_s += time.monotonic() - started
        elapsed_s = time.monotonic() - (self._began or started)
        if not self._logged and self._waited_s > max(10.0, LOGGED_WAIT_SHARE * elapsed_s):
            self._logged = True
            log.warning(
                "the disk is the limit: %.0f s of %.0f s were spent waiting for embeddings to be written; use a faster "
                "cache_dir=DIR, or store.keep=topk, which stores no embeddings",
                self._waited_s,
                elapsed_s,
            )

    def wait(self) -> None:
        """Wait until all queued checkpoints are on disk. Raises StoreError that names the first failed file."""
        while (oldest := self._take_oldest(0)) is not None:
            oldest.result()

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except (OSError, StoreError) as error:
            self._failed = True
            if isinstance(error, StoreError):
                raise
            raise write_error(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except StoreError as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # the error that ended the job is propagating, and this one must not replace it
        finally:
            self._pool.shutdown(wait=True)
