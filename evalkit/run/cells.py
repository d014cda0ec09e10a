"""Cells: one dim of a model on one dataset, identified by everything that decides the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from rich.console import Console

from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.learned import Verified
from evalkit.datasets.survey import Survey
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.elementwise import choose as choose_elementwise
from evalkit.models.encoder import attention_path, checkpoints
from evalkit.run import auto, identity
from evalkit.storage import keys
from evalkit.types import Dataset


class Task(NamedTuple):
    """The config of a job with its dataset and survey, and the console that shows progress."""

    config: RunConfig
    dataset: Dataset
    survey: Survey
    deviations: tuple[str, ...]
    """Accepted differences between the dataset and its published form."""
    device: torch.device
    console: Console
    verified: Verified = "nothing"
    """What the corpus was verified against."""

    @property
    def depth(self) -> int:
        """Hits to search for per query: one more if the query's own document is dropped later."""
        return self.config.search.depth + int(self.dataset.drop_self)

    @property
    def batch_tokens(self) -> int:
        """Most tokens of a batch, padding included."""
        return auto.batch_tokens(self.config.engine.batch_tokens, self.device)


class Cell(NamedTuple):
    """The identity of one cell: the row that it will fill, and the keys of the files that it leaves on disk."""

    dim: int | None
    run_id: str
    protocol: dict[str, Any]
    """Every setting and checksum that decides the scores."""
    checkpoint: Checkpoint | None
    store_key: str
    """The key of its embeddings, shared with other queries and with corpora that contain the same documents."""
    search_key: str
    """The key of its per-shard top-k."""


def plan(task: Task) -> list[Cell]:
    """Return the cells of a job. This needs checksums only: no weights are loaded.

    Raises ModelError for a missing checkpoint.
    """
    config, model = task.config, task.config.model
    corpus = identity.corpus_facts(task.survey, config)
    search = identity.search_facts(task.dataset, config)
    found: Mapping[int, Checkpoint] = {}
    if isinstance(model, EncoderConfig):
        found = checkpoints(model, [dim for dim in config.dims if dim is not None])
    cells = []
    for dim in config.dims:
        if isinstance(model, Bm25Config):
            system = identity.bm25_facts(model)
        else:
            assert isinstance(model, EncoderConfig)
            assert dim is not None  # the config accepts None for BM25 only
            system = identity.vector_facts(
                model,
                config,
                found[dim],
                dim,
                attention=attention_path(model, config.engine.attention, task.device),
                batch_tokens=task.batch_tokens,
                fused=choose_elementwise(config.engine.elementwise, config=model, device=task.device).fused,
            )
        protocol = {**system, **corpus, **search}
        cells.append(
            Cell(
                dim=dim,
                run_id=keys.run_id(task.dataset.name, task.dataset.split, model.name, dim, protocol),
                protocol=protocol,
                checkpoint=None if dim is None else found[dim],
                store_key=identity.store_key(system),
                search_key=keys.key_of(protocol),
            )
        )
    return cells
