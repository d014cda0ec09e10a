"""Memory between batches: kept for the next one, and handed back before it adds up to more than a run holds."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

SLACK_BYTES = 24 << 20
"""What may lie about, free but resident, before it is handed back."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
"""glibc's names for `mallopt`'s parameters (malloc.h)."""
_KEPT_BYTES = 1 << 30
_CACHED_SHAPES = 32
"""Twice those of one padded width: its number of texts, powers of two below, and a model's four sizes."""


@cache
def keep_between_batches() -> None:
    """Let the allocator keep what a batch frees; does nothing where the C library has no such call.

    Without it glibc maps every large tensor anew, and the kernel hands over each page at its first touch: 100 MB of
    faults a batch, a tenth of MiniLM's time on a CPU.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_ARENA_MAX, 1)  # threads with batches of their own reuse each other's memory


@cache
def bound_native_caches() -> None:
    """Keep oneDNN's caches small, unless the user has set their sizes; before its first use in the process.

    Each shape of a product costs .6 MB there, in two caches of 1,024 shapes each.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(_CACHED_SHAPES))


def give_back(*, above_bytes: int = 0) -> None:
    """Return the allocator's free pages, if more memory is resident than after the last time and these bytes.

    Batches of one width reuse each other's memory, those of the next width leave holes. Where the C library has no such
    call nothing happens.
    """
    library = _glibc()
    if library is None or (above_bytes and _resident_bytes() <= _resident_then[0] + above_bytes):
        return
    library.malloc_trim(0)
    _resident_then[0] = _resident_bytes()


_resident_then = [0]


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.mallopt, library.malloc_trim  # noqa: B018 (looked up by name)
    except (AttributeError, OSError, TypeError):
        return None
    return library
