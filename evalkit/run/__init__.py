"""One evaluation: its cells, the shard step, encoding, search, and the pipeline that connects them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores


class _Room(ModuleType):
    """Makes this package callable, because importing it replaces the function `evalkit.run` of the same name."""

    def __call__(self, *words: str) -> tuple[CellScores, ...]:
        """Compute cells and return their scores (see `evalkit.run.words.run`)."""
        from evalkit.run.words import run

        return run(*words)


sys.modules[__name__].__class__ = _Room
