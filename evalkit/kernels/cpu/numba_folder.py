"""A folder for what numba compiles, where it finds none that can be written."""

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


_kept: list[Path] = []
"""The folder that a run has named, if any."""


def keep_in(folder: Path) -> None:
    """Name the folder that is used where numba finds none of its own, so that the next process finds its work there."""
    _kept[:] = [folder]


def with_folder(load: Callable[[], Loaded]) -> Loaded:
    """Call what imports functions that numba compiles and caches, a second time with another folder if need be.

    numba caches beside a module or in the user's cache folder, and refuses the import where it can write to neither.
    Then it caches in the folder that `keep_in` named, else in a temporary one that goes with the process. Raises what
    `load` raises, and OSError where there is no room for a folder.
    """
    try:
        return load()
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
    from numba.core import config

    os.environ["NUMBA_CACHE_DIR"] = _folder()
    config.reload_config()  # type: ignore[no-untyped-call]
    return load()


def _folder() -> str:
    for folder in _kept:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return str(folder.absolute())
    temporary = tempfile.mkdtemp(prefix="evalkit-numba-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary
