"""Folders for what numba and Triton compile, used where they have no writable folder themselves."""

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
"""The folder for numba set by `set_fallback`, if any."""


def set_fallback(cache_dir: Path) -> None:
    """Keep compiled kernels below `cache_dir` if numba or Triton cannot write to its own folder.

    The next process then finds them there. Must be called before Triton compiles. A folder that the user has set in the
    environment is left as it is.
    """
    _fallback[:] = [cache_dir / "numba"]
    if "TRITON_CACHE_DIR" not in os.environ and not _can_create(triton_folder()):
        os.environ["TRITON_CACHE_DIR"] = str((cache_dir / "triton").absolute())


def triton_folder() -> Path:
    """Return the folder in which Triton keeps what it compiles if TRITON_CACHE_DIR is not set (triton/knobs.py)."""
    return Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~")) / ".triton" / "cache"  # noqa: PTH111 (Path.expanduser raises where there is no home)


def _can_create(folder: Path) -> bool:
    """Return whether files can be written in a folder, which need not exist yet."""
    if not folder.is_absolute():  # without a home, `~` stays as it is and names a folder in the working folder
        return False
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


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
