"""One evaluation: its cells, the shard step, encoding, search, and the pipeline that connects them.

Read `pipeline` first. It opens the dataset (a `cells.Task`), plans its cells (`cells`, `identity`), and applies the
step of `shard_step` to every shard: tokenise and `encode` its documents, `search` them, checkpoint both (`background`
has the threads). `ranked` writes a cell's files, and `scored` reuses finished cells. `canary` and `loaded` guard and
keep the model. `distributed` runs the step on workers, `plaid` adds an index search, `rerank` and `filed` take run
files of other programs. `jobs` records what runs, and `progress` shows it.
"""

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
