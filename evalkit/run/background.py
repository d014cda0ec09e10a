"""Background threads: one prepares the next shard while the model encodes this one, one writes the previous shard.

Threads are used instead of processes because the tokenizers' Rust code and disk I/O release the GIL, nothing is copied
between processes, and a killed run leaves no orphaned process.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import torch

from evalkit.errors import StoreError
from evalkit.storage.paths import unwritable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
MOST_WORKERS = 8
"""Most tokenizer threads under `auto`: they produce a few million token ids per second, more than a GPU consumes."""


def tokenizer_threads(asked: Literal["auto"] | int, device: torch.device) -> int:
    """Return the number of threads that tokenise ahead of the model; 0 means none.

    On the CPU `auto` is 0: tokenizer and model each use every core, so running both at once gains nothing.
    """
    if asked != "auto":
        return asked
    return 0 if device.type == "cpu" else max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 1))


def limit_tokenizer(threads: int) -> None:
    """Limit the tokenizer's thread pool, unless threads is 0; this works only before the first text is tokenised."""
    if threads:
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))


class Ahead(Generic[Item, Prepared]):
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


class Writer:
    """Writes shard files in a background thread, in the order of submission; after a failure it writes nothing more."""

    def __init__(self) -> None:
        """Create the thread pool; no work starts yet."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="evalkit-writer")
        self._pending: deque[Future[None]] = deque()
        self._failed = False

    def submit(self, path: Path, write: Callable[[], None]) -> None:
        """Queue the writing of a file. Raises StoreError if an earlier write has failed."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._written, path, write))

    def wait(self) -> None:
        """Wait until all queued files are on disk. Raises StoreError that names the first file that failed."""
        while self._pending:
            self._pending.popleft().result()

    def _written(self, path: Path, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except (OSError, StoreError) as error:
            self._failed = True
            raise (error if isinstance(error, StoreError) else unwritable(path, error)) from error

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
            log.warning("%s", failure)  # the error that ended the run is propagating, and this one must not replace it
        finally:
            self._pool.shutdown(wait=True)
