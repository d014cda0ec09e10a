"""A folder for what numba compiles, where it finds none that can be written."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

Loaded = TypeVar("Loaded")


def with_folder(load: Callable[[], Loaded]) -> Loaded:
    """Call what imports functions that numba compiles and caches, a second time with a temporary folder if need be.

    numba caches beside a module or in the user's cache folder, and refuses the import where it can write to neither.
    The temporary folder goes with the process. Raises what `load` raises, and OSError where there is no room for it.
    """
    try:
        return load()
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
    from numba.core import config

    folder = tempfile.mkdtemp(prefix="evalkit-numba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
    config.reload_config()  # type: ignore[no-untyped-call]
    return load()
