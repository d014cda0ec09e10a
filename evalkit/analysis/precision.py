"""The effect of a smaller storage type on quality, measured by searching stored shards; no document is encoded.

Shapes: X vectors of a shard, concatenated; D dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from evalkit.analysis.compare import bootstrap_interval, paired_p, values_of
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.errors import ConfigError, StoreError
from evalkit.models.encoder import load_encoders
from evalkit.ranking import drop_self, floors, merge, no_hits
from evalkit.run import pipeline
from evalkit.run.cells import plan
from evalkit.run.search import search_shard, to_run
from evalkit.run.shard_step import encode_queries
from evalkit.scoring import metrics
from evalkit.storage import shard_files
from evalkit.storage.paths import store_dir
from evalkit.storage.results import CellScores

Width = Literal["float16", "int8"]
WIDTHS: tuple[Width, ...] = ("float16", "int8")
SCALE_BYTES = 2
"""Each int8 vector has its own scale, one fp16 number."""


class Narrowed(NamedTuple):
    """A run searched again with its document vectors rounded to a smaller type."""

    width: Width
    bytes_per_vector: int
    value: float
    delta: float
    """The difference from the stored run."""
    interval: tuple[float, float]
    """The 95 % interval of a paired bootstrap of the difference."""
    p: float
    """The p-value of a two-sided paired t-test."""


def narrowed(vectors_XD: Tensor, width: Width) -> Tensor:
    """Return vectors [X, D] as they would be read back from storage of a width; int8 has one scale per vector.

    >>> [round(value, 2) for value in narrowed(torch.tensor([[1.0, -0.5, 0.0]]), "int8")[0].tolist()]
    [1.0, -0.5, 0.0]
    """
    if width == "float16":
        return vectors_XD.half()
    scale_X1 = (vectors_XD.float().abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float16).tiny)
    rounded_XD = (vectors_XD.float() / scale_X1).round().clamp(-127, 127).to(torch.int8)
    return rounded_XD.float() * scale_X1.half().float()


def measure(config: RunConfig, cell: CellScores, results_dir: Path, *, console: Console) -> list[Narrowed]:
    """Search and score a run's stored embeddings at every width; the queries are encoded again, the documents are not.

    Raises ConfigError for a system without vectors, and StoreError if the embeddings are not stored or the settings no
    longer give the run's id.
    """
    model = config.model
    if not isinstance(model, EncoderConfig) or cell.dim is None:
        msg = f"{cell.run_id}: {cell.model} stores no vectors; wanted a run of a model with dims (evalkit ls models)"
        raise ConfigError(msg)
    task = pipeline.prepare(config, console=console)
    (planned,) = (planned for planned in plan(task) if planned.dim == cell.dim)
    if planned.run_id != cell.run_id:
        msg = f"{cell.run_id}: its settings now give {planned.run_id}; wanted the same dataset, checkpoint and evalkit"
        raise StoreError(f"{msg}; run the cell again")
    assert planned.checkpoint is not None
    (encoder,) = load_encoders(
        model,
        {cell.dim: planned.checkpoint},
        device=task.device,
        attention=config.engine.attention,
        elementwise=config.engine.elementwise,
    )
    queries = encode_queries(task, encoder)[cell.dim]
    best = {width: no_hits() for width in WIDTHS}
    folder = store_dir(config.cache_dir, planned.store_key)
    for shard in task.survey.shards:
        arrays = shard_files.load(folder, shard.checksum)
        if arrays is None:
            msg = f"{folder / shard.checksum}: the embeddings of this shard are not stored"
            raise StoreError(f"{msg}; run the cell again with store.keep=embeddings and an empty results folder")
        stored = shard_files.vectors_from_arrays(arrays)
        for width in WIDTHS:
            vectors = stored._replace(vectors=stored.vectors._replace(rows_XD=narrowed(stored.vectors.rows_XD, width)))
            floor_Q = floors(best[width], queries=len(queries.ids), depth=task.depth)
            found = search_shard(queries, vectors, depth=task.depth, floor_Q=floor_Q, device=task.device)
            best[width] = merge([best[width], found], depth=task.depth)
    before = values_of(cell, results_dir, cell.main_metric)
    measured = []
    for width in WIDTHS:
        run = to_run(best[width], [query.id for query in task.dataset.queries])
        if task.dataset.drop_self:
            run, _ = drop_self(run, depth=config.search.depth)
        scored = metrics.score(run, task.dataset.qrels, [cell.main_metric])
        after = {query: values[cell.main_metric] for query, values in scored.per_query.items()}
        differences = [after[query] - value for query, value in before.items()]
        measured.append(
            Narrowed(
                width=width,
                bytes_per_vector=cell.dim * 2 if width == "float16" else cell.dim + SCALE_BYTES,
                value=scored.means[cell.main_metric],
                delta=sum(differences) / len(differences),
                interval=bootstrap_interval(differences),
                p=paired_p(list(before.values()), [after[query] for query in before]),
            )
        )
    return measured
