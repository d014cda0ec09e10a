"""Measure quality against storage without an index: search stored embeddings in smaller forms.

A form is a pooling factor with a width of the values. The document vectors of a finished cell are read from its store,
pooled, rounded to the width, and searched with exact MaxSim; no document is encoded. The query vectors are unchanged.
Every form is tested against a base cell, as stored, on the same queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from evalkit.analysis.compare import bootstrap_interval, holm, paired_p, values_of
from evalkit.analysis.compressed import FACTORS, WIDTHS, Width, bytes_per_vector, narrowed, pooled
from evalkit.analysis.replay import judgements
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.errors import ConfigError, ScoreError, StoreError, nearest
from evalkit.models.encoder import load_encoders
from evalkit.ragged import Ragged, ragged
from evalkit.ranking import Hits, drop_self, floors, merge, no_hits
from evalkit.run import pipeline
from evalkit.run.cells import Cell, Task, plan
from evalkit.run.progress import documents_bar
from evalkit.run.search import search_shard, to_run
from evalkit.run.shard_step import encode_queries
from evalkit.scoring import metrics
from evalkit.storage import evaluated, shard_files
from evalkit.storage.paths import store_dir
from evalkit.storage.results import CellScores
from evalkit.storage.shard_files import ShardVectors
from evalkit.types import Qrels

SLICE_VECTORS = 131_072
"""Vectors that are converted at a time, to bound the memory used besides the stored shard."""
LARGEST_FACTOR = 16
"""The largest valid pooling factor."""


class Forms(NamedTuple):
    """The forms to measure: every width with every pooling factor."""

    widths: tuple[Width, ...] = WIDTHS
    factors: tuple[int, ...] = FACTORS
    normalized: bool = False
    """Whether pooled vectors are normalised again, as sentence-transformers does; PyLate does not."""


ALL_FORMS = Forms()


class Narrowed(NamedTuple):
    """A cell searched again with its document vectors in one form; NaN until it is scored."""

    width: Width
    bytes_per_vector: int
    value: float = math.nan
    delta: float = math.nan
    """The difference from the base cell."""
    interval: tuple[float, float] = (math.nan, math.nan)
    """The 95 % interval of a paired bootstrap of the difference."""
    p: float = math.nan
    """The p-value of a two-sided paired t-test."""
    factor: int = 1
    """Pooling factor; 1 means no pooling."""
    bytes_per_document: float | None = None
    """The mean over documents, scales included."""
    is_base: bool = False
    """Whether it is the base cell itself, searched again as stored."""
    p_holm: float = 1.0
    """`p` corrected by Holm's method over all forms of one table."""


def chosen_forms(widths: str | None = None, factors: str | None = None, *, normalized: bool = False) -> Forms:
    """Parse comma-separated widths and pooling factors; None means all. Raises ConfigError for an invalid one.

    >>> chosen_forms("int8,binary", "1,2")
    Forms(widths=('int8', 'binary'), factors=(1, 2), normalized=False)
    """
    kinds: list[Width] = []
    for word in (widths or ",".join(WIDTHS)).split(","):
        found = next((width for width in WIDTHS if width == word.strip()), None)
        if found is None:
            msg = f"--stored-as {word.strip()!r} unknown; {nearest(word.strip(), WIDTHS)}"
            raise ConfigError(msg)
        kinds.append(found)
    numbers = []
    for word in (factors or ",".join(map(str, FACTORS))).split(","):
        text = word.strip()
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_FACTOR):
            msg = f"--pool {text!r}: wanted whole numbers from 1 (not pooled) to {LARGEST_FACTOR}, as in --pool 1,2,4"
            raise ConfigError(msg)
        numbers.append(int(text))
    return Forms(tuple(dict.fromkeys(kinds)), tuple(dict.fromkeys(numbers)), normalized)


def measure(
    config: RunConfig,
    cell: CellScores,
    results_dir: Path,
    *,
    console: Console,
    base: CellScores | None = None,
    forms: Forms = ALL_FORMS,
) -> list[Narrowed]:
    """Search and score a cell's stored embeddings in every form; queries are encoded again, documents are not.

    `base` is the cell that each form is tested against, by default the cell itself. The forms are scored with the
    judgements that the cell was scored with, even if the dataset's have changed. float32 is left out if float16 is
    stored.

    Raises ConfigError for a system without vectors, ScoreError if `base` was evaluated on something else or the cell's
    judgements are not available, and StoreError if the embeddings are not stored or the settings no longer give the
    cell's run id.
    """
    model, base = config.model, base or cell
    if not isinstance(model, EncoderConfig) or cell.dim is None:
        msg = f"{cell.run_id}: {cell.model} stores no vectors; wanted a cell of a model with dims (evalkit ls models)"
        raise ConfigError(msg)
    if config.search.name != "exact":
        msg = f"{cell.run_id}: searched with search={config.search.name}; wanted a cell with search=exact"
        raise ConfigError(f"{msg} (evalkit ls runs)")
    evaluated.refuse_differing([base, cell])
    task = pipeline.prepare(config, console=console)
    (planned,) = (planned for planned in plan(task) if planned.dim == cell.dim)
    if planned.run_id != cell.run_id:
        msg = f"{cell.run_id}: its settings now give {planned.run_id}; wanted the same dataset, checkpoint and evalkit"
        raise StoreError(f"{msg}; run the cell again")
    qrels = judgements(results_dir, cell)
    assert planned.checkpoint is not None
    (encoder,) = load_encoders(
        model,
        {cell.dim: planned.checkpoint},
        device=task.device,
        attention=config.engine.attention,
        elementwise=config.engine.elementwise,
    )
    queries = encode_queries(task, encoder)[cell.dim]
    before = values_of(base, results_dir, cell.main_metric)
    best, kept = _searched(task, planned, queries, forms)
    return [
        _judged(
            Narrowed(
                width=width,
                bytes_per_vector=(size := bytes_per_vector(cell.dim, width)),
                factor=factor,
                bytes_per_document=size * kept[factor] / task.survey.documents,
                is_base=cell.run_id == base.run_id and factor == 1 and width == config.store.dtype,
            ),
            before,
            _scored(task, hits, qrels, cell.main_metric),
        )
        for (factor, width), hits in best.items()
    ]


def _searched(
    task: Task, planned: Cell, queries: ShardVectors, forms: Forms
) -> tuple[dict[tuple[int, Width], Hits], dict[int, int]]:
    """Search all shards in every form. Return the best hits by form, and the number of vectors by factor.

    Raises StoreError if a shard's embeddings are not stored.
    """
    widths = [width for width in forms.widths if width != "float32" or task.config.store.dtype == "float32"]
    best = {(factor, width): no_hits() for factor in forms.factors for width in widths}
    kept = dict.fromkeys(forms.factors, 0)
    folder = store_dir(task.config.cache_dir, planned.store_key)
    with documents_bar(task.console, f"{planned.run_id}: smaller forms", total=task.survey.documents) as advance:
        for shard in task.survey.shards:
            arrays = shard_files.load(folder, shard.checksum)
            if arrays is None:
                msg = f"{folder / shard.checksum}: the embeddings of this shard are not stored"
                raise StoreError(f"{msg}; run the cell again with store.keep=embeddings and an empty results folder")
            for some in _slices(shard_files.vectors_from_arrays(arrays)):
                for factor, form in _pooled(some, forms):
                    kept[factor] += len(form.vectors.rows_XD)
                    for width in widths:
                        read_back = form.vectors._replace(rows_XD=narrowed(form.vectors.rows_XD, width))
                        found = search_shard(
                            queries,
                            form._replace(vectors=read_back),
                            depth=task.depth,
                            floor_Q=floors(best[factor, width], queries=len(queries.ids), depth=task.depth),
                            device=task.device,
                        )
                        best[factor, width] = merge([best[factor, width], found], depth=task.depth)
                advance(len(some.ids), 0)
            advance.shard_done()
    return best, kept


def _scored(task: Task, hits: Hits, qrels: Qrels, metric: str) -> dict[str, float]:
    """Return a metric's value of every query, from a form's hits under the dataset's rules."""
    run = to_run(hits, [query.id for query in task.dataset.queries])
    if task.dataset.drop_self:
        run, _ = drop_self(run, depth=task.config.search.depth)
    scored = metrics.score(run, qrels, [metric])
    return {query: values[metric] for query, values in scored.per_query.items()}


def _judged(form: Narrowed, before: Mapping[str, float], after: Mapping[str, float]) -> Narrowed:
    """Return a form with its value and its tests against the base values. Raises ScoreError if the queries differ."""
    if after.keys() != before.keys():
        differing = len(after.keys() ^ before.keys())
        msg = f"{differing} queries are judged in the base cell or here only, wanted the same judged queries"
        raise ScoreError(f"{msg}; run both on the same copy of the dataset")
    differences = [after[query] - value for query, value in before.items()]
    return form._replace(
        value=math.fsum(after.values()) / len(after),
        delta=math.fsum(differences) / len(differences),
        interval=bootstrap_interval(differences),
        p=paired_p(list(before.values()), [after[query] for query in before]),
    )


def corrected(tables: Sequence[Sequence[Narrowed]]) -> list[list[Narrowed]]:
    """Return each cell's forms with `p_holm`, corrected over the forms of all cells; the base cell is not tested."""
    tested = [one.p for table in tables for one in table if not one.is_base]
    found = iter(holm(tested))
    return [[one if one.is_base else one._replace(p_holm=next(found)) for one in table] for table in tables]


def _slices(stored: ShardVectors) -> Iterator[ShardVectors]:
    """Yield a shard's documents in order, in slices of at most SLICE_VECTORS vectors, or of one longer document."""
    offsets = stored.vectors.offsets_N.tolist()
    begin = 0
    while begin < len(stored.ids):
        end = begin + 1
        while end < len(stored.ids) and offsets[end + 1] - offsets[begin] <= SLICE_VECTORS:
            end += 1
        rows_XD = stored.vectors.rows_XD[offsets[begin] : offsets[end]]
        offsets_N = stored.vectors.offsets_N[begin : end + 1] - offsets[begin]
        yield ShardVectors(stored.ids[begin:end], Ragged(rows_XD, offsets_N))
        begin = end


def _pooled(some: ShardVectors, forms: Forms) -> Iterator[tuple[int, ShardVectors]]:
    """Yield documents at every pooling factor; with factor 1 they keep their stored dtype."""
    factors = [factor for factor in forms.factors if factor > 1]
    if 1 in forms.factors:
        yield 1, some
    if not factors:
        return
    offsets = some.vectors.offsets_N.tolist()
    documents = [
        pooled(some.vectors.rows_XD[begin:end], factors, normalized=forms.normalized)
        for begin, end in pairwise(offsets)
    ]
    for place, factor in enumerate(factors):
        rows = [document[place] for document in documents]
        lengths_N = torch.tensor([len(one) for one in rows], dtype=torch.int32)
        yield factor, some._replace(vectors=ragged(torch.cat(rows), lengths_N))
