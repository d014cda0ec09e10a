"""A temporary cache folder for numba, used where numba finds no writable one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

Loaded = TypeVar("Loaded")


def with_folder(load: Callable[[], Loaded]) -> Loaded:
    """Call `load`, which imports functions that numba compiles; retry with a temporary folder if they cannot be cached.

    numba caches beside the module or in the user's cache folder; where neither is writable, the import fails. The
    temporary folder is removed at exit. Raises what `load` raises, and OSError if no temporary folder can be created.
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
