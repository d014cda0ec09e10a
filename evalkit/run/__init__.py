"""One evaluation: cells, the shard step, encoding, search and the flow that joins them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores


class _Room(ModuleType):
    """The package that `evalkit.run` is as soon as anybody imports it, and so the function of that name too."""

    def __call__(self, *words: str) -> tuple[CellScores, ...]:
        """Run cells and return them finished (see `evalkit.run.words.run`)."""
        from evalkit.run.words import run

        return run(*words)


sys.modules[__name__].__class__ = _Room
