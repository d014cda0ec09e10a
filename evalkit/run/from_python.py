"""`evalkit.run` of the Python API, whose arguments are the words of the command line (`model=demo`)."""

from __future__ import annotations

import threading

from rich.console import Console

from evalkit.config import compose
from evalkit.engines import ray as workers
from evalkit.run import jobs, pipeline
from evalkit.storage.results import CellScores

one_at_a_time = threading.RLock()
"""Held by whatever computes: torch's threads, the loaded model and the workers are one per process."""


def run(*words: str) -> tuple[CellScores, ...]:
    """Compute every cell that the words name, as `evalkit run` does; return the finished cells in the words' order.

    Words with several values are a sweep, as with `-m`. Finished cells are read and not computed again. Raises
    EvalkitError for the first cell that fails; the cells before it are finished. Calls in several threads run one after
    the other: torch's threads, the loaded model and the workers are one per process.
    """
    cells: list[CellScores] = []
    with one_at_a_time:
        try:
            for combination in compose.combinations(words):
                config = compose.compose(combination)
                with jobs.recorded(config):
                    cells += pipeline.run(config, console=Console(quiet=True))
        finally:
            workers.close()
    return tuple(cells)
