"""The C library's free memory: keep it from one batch to the next, and return it to the system when it grows large."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

SLACK_BYTES = 24 << 20
"""Free memory that may stay resident before it is returned to the system."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
"""Parameters of glibc's `mallopt`, by their names in malloc.h."""
_KEPT_BYTES = 1 << 30
"""Allocations below this size are kept by the allocator when they are freed."""
_CACHED_SHAPES = 32
"""Twice the shapes of one padded width: its number of texts, the powers of two below it, and a model's four sizes."""


@cache
def keep_between_batches() -> None:
    """Make the allocator keep the memory that a batch frees; do nothing where the C library lacks `mallopt`.

    By default glibc maps every large tensor anew, and each of its pages faults at the first access: 100 MB per batch,
    which takes a tenth of MiniLM's time on a CPU.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_ARENA_MAX, 1)  # threads that encode batches share one arena and reuse each other's memory


@cache
def bound_native_caches() -> None:
    """Limit oneDNN's caches unless the user has set their sizes; call it before oneDNN's first use in the process.

    Each shape of a matrix product takes 0.6 MB there, in two caches that hold 1,024 shapes each by default.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_CACHED_SHAPES))


def return_free_pages(*, above_bytes: int = 0) -> None:
    """Return the allocator's free pages to the system.

    With `above_bytes`, do so only if resident memory has grown by more than that since the last return. Batches of one
    width reuse each other's memory, but batches of another width cannot use all of it. Does nothing where the C library
    lacks `malloc_trim`.
    """
    library = _glibc()
    if library is None or (above_bytes and _resident_bytes() <= _resident_at_last_return[0] + above_bytes):
        return
    library.malloc_trim(0)
    _resident_at_last_return[0] = _resident_bytes()


_resident_at_last_return = [0]


def _resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where /proc does not exist."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library, or None if it lacks glibc's `mallopt` and `malloc_trim`."""
    try:
        library = ctypes.CDLL(None)
        library.mallopt, library.malloc_trim  # noqa: B018 (ctypes looks the functions up by name here)
    except (AttributeError, OSError, TypeError):
        return None
    return library
