"""A cache folder for numba's compiled functions, used where numba finds no writable folder itself."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

_fallback: list[Path] = []
"""The folder set by `set_fallback`, if any."""


def set_fallback(folder: Path) -> None:
    """Set the folder to use if numba finds none itself, so that the next process finds the compiled kernels."""
    _fallback[:] = [folder]


def with_cache_folder(load: Callable[[], Loaded]) -> Loaded:
    """Call `load`, which imports functions that numba compiles; retry with another folder if they cannot be cached.

    numba caches next to the module or in the user's cache folder; if neither is writable, the import fails. Then the
    folder of `set_fallback` is used, else a temporary one, which is removed at exit. Raises what `load` raises, and
    OSError if no folder can be created.
    """
    try:
        return load()
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
    from numba.core import config

    os.environ["NUMBA_CACHE_DIR"] = _folder()
    config.reload_config()  # type: ignore[no-untyped-call]  # numba has no annotations
    return load()


def _folder() -> str:
    """Return the fallback folder if it is writable, else a new temporary one."""
    for folder in _fallback:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return str(folder.absolute())
    temporary = tempfile.mkdtemp(prefix="evalkit-numba-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
