"""One evaluation: its cells, the shard step, encoding, search, and the pipeline that connects them.

Read `pipeline` first. It opens the dataset (a `cells.Task`), plans its cells (`cells`, `identity`), and applies the
step of `shard_step` to every shard: tokenise and `encode` its documents (in the batches of `batching`), `search` them,
checkpoint both (`background` has the threads). `cell_files` writes a cell's files, and `reuse` returns finished cells.

`canary` checks the loaded model, and `loaded` keeps it. `auto` chooses the device and the sizes that a config leaves
open, and `environment` describes the machine. `distributed` runs `worker_steps` on workers, `plaid` adds an index
search, `rerank` and `external_run` read run files of other programs. `jobs` records jobs, `progress` shows their
progress, and `from_python` is `evalkit.run` of the Python API.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalkit.storage.results import CellScores


class _CallablePackage(ModuleType):
    """Makes this package callable, because importing it replaces the function `evalkit.run` of the same name."""

    def __call__(self, *words: str) -> tuple[CellScores, ...]:
        """Compute cells and return their scores (see `evalkit.run.from_python.run`)."""
        from evalkit.run.from_python import run

        return run(*words)


sys.modules[__name__].__class__ = _CallablePackage
