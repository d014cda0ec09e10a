"""The whole flow on one screen: config → dataset → survey → cells → shards → run → scores.

All heavy work is one idempotent step per shard, and its result is checkpointed. After a fault the same command
continues where it stopped, and the result has the same bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from evalkit import datasets
from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets import learned
from evalkit.datasets.survey import ShardRange, Survey, forget, survey
from evalkit.engines.local import map_shards
from evalkit.errors import ChangedError, ConfigError, ModelError
from evalkit.kernels import compile_cache
from evalkit.maxsim import choice
from evalkit.models import metadata, weights
from evalkit.models.backbones.native import count_parameters
from evalkit.models.encoder import obtainable
from evalkit.ranking import Hits, merge, no_hits, separate_ties
from evalkit.run import auto, cell_files, distributed, environment, loaded, plaid, reuse
from evalkit.run.background import Merger, limit_tokenizer, tokenizer_threads
from evalkit.run.cells import Cell, Task, plan
from evalkit.run.progress import documents_bar, print_line
from evalkit.run.search import to_run
from evalkit.run.shard_step import Costs, bm25_count_step, bm25_score_step, costs, encode_queries, vector_step
from evalkit.storage import keys, results
from evalkit.storage.paths import (
    make_folder,
    remove_left_over,
    run_dir,
    runs_dir,
    store_dir,
    surveys_dir,
    topk_dir,
)
from evalkit.storage.results import CellScores
from evalkit.types import Dataset, Hit


def run(
    config: RunConfig, *, console: Console, force: bool = False, unobtainable: dict[int, str] | None = None
) -> list[CellScores]:
    """Return the scores of every cell of a config, computing only what is not already on disk.

    A finished cell whose judgements, query groups or metrics have changed is scored again from its run file. `force`
    searches every cell again and reuses the checkpointed shards. If `unobtainable` is given, a dim whose checkpoint
    cannot be obtained does not stop the others: it is added there with the reason. If no dim is left, that raises.

    With `search=plaid` the exact cells are computed first, so that the index loss can be stated.

    Raises subclasses of EvalkitError for errors that the user can fix; finished shards and cells are kept.
    """
    refuse_reranker(config)
    compile_cache.set_fallback(config.cache_dir)
    if config.search.name == "plaid":
        plaid.check(config)
        _require_index(config, console=console, force=force)
        exact = run(plaid.exact_config(config), console=console, force=force, unobtainable=unobtainable)
        config = dataclasses.replace(config, dims=tuple(cell.dim for cell in exact))
        return [*exact, *_run(config, console=console, force=force, unobtainable=None)]
    return _run(config, console=console, force=force, unobtainable=unobtainable)


def refuse_reranker(config: RunConfig) -> None:
    """Raise ConfigError for a re-ranker: a cell has the scores of the search alone."""
    if config.reranker is not None:
        name = config.reranker.name
        msg = f"reranker={name}: got a re-ranker, wanted none, because the scores are those of the search alone"
        raise ConfigError(f"{msg}; leave it out here, and re-rank the run file: evalkit rerank RUN reranker={name}")


def _run(config: RunConfig, *, console: Console, force: bool, unobtainable: dict[int, str] | None) -> list[CellScores]:
    """Do what `run` does. With `search=plaid` the exact cells must be finished."""
    task = prepare(config, console=console)
    task, cells = _plan_obtainable(task, unobtainable)
    remove_left_over(_output_folders(config, cells))
    done = {cell.run_id: None if force else reuse.finished(task, cell, config.metrics) for cell in cells}
    for line in reuse.reused_lines([scores for scores in done.values() if scores is not None], config.results_dir):
        print_line(console, line)
    unfinished = [cell for cell in cells if done[cell.run_id] is None]
    if unfinished and config.search.name == "plaid":
        done |= _search_indexes(task, unfinished)
    elif unfinished:
        make_folder(runs_dir(config.results_dir))  # fails now rather than after hours
        started = time.monotonic()
        reproduced: set[int] = set()
        try:
            best = search(task, unfinished, reproduced_dims=reproduced)
        except ChangedError:  # the next job must not use this survey
            _forget_survey(task)
            raise
        wall_s = time.monotonic() - started
        for cell in unfinished:
            done[cell.run_id] = finish(
                task, cell, best[cell.run_id], search_s=wall_s, vectors_reproduced=cell.dim in reproduced
            )
    return [scores for scores in done.values() if scores is not None]


def prepare(config: RunConfig, *, console: Console) -> Task:
    """Open the dataset and survey its corpus: counts, checksum, duplicate ids, shard boundaries.

    Raises ConfigError for a device or kernel that is not available, and DatasetError for unusable data.
    """
    device = auto.choose_device(config.engine.device)
    choice.require(config.engine.maxsim, device, precision=config.engine.nominate)
    config = auto.resolved(config, device)
    shard_tokens = auto.shard_tokens(config, device)

    def survey_of(dataset: Dataset) -> Survey:
        with documents_bar(console, f"survey of {dataset.name}", total=config.dataset.counts.documents) as advance:
            return survey(
                dataset.corpus,
                shard_tokens=shard_tokens,
                max_document_tokens=auto.max_document_tokens(config, device),
                cache_dir=config.cache_dir,
                name=dataset.name,
                judged_ids=datasets.judged_ids(dataset),
                progress=lambda documents: advance(documents, 0),
            )

    dataset, surveyed = datasets.load_read(config.dataset, survey_of)
    known = learned.recall(config.cache_dir, dataset, config.dataset)
    deviations = datasets.deviations(dataset, surveyed, config.dataset, learned=known)
    if known is None and not deviations:
        learned.keep(config.cache_dir, dataset, config.dataset, surveyed)
    verified = learned.verified(config.dataset, known)
    return Task(config, dataset, surveyed, deviations, device, console, verified)


def search(task: Task, cells: Sequence[Cell], *, reproduced_dims: set[int] | None = None) -> dict[str, Hits]:
    """Return each cell's best hits over all shards, by run id.

    Dims whose published vectors the loaded model reproduced are added to `reproduced_dims`.
    """
    if isinstance(task.config.model, Bm25Config):
        (cell,) = cells
        return {cell.run_id: search_bm25(task, cell, task.config.model)}
    assert isinstance(task.config.model, EncoderConfig)  # a system known by its run file only is never searched
    return search_vectors(task, cells, task.config.model, reproduced_dims=reproduced_dims)


def search_vectors(
    task: Task, cells: Sequence[Cell], model: EncoderConfig, *, reproduced_dims: set[int] | None = None
) -> dict[str, Hits]:
    """Encode and search every shard; return each cell's best hits, by run id.

    Dims with identical backbones share one pass over the corpus. Dims whose published vectors the loaded model
    reproduced are added to `reproduced_dims`.
    """
    engine, reproduced = task.config.engine, set() if reproduced_dims is None else reproduced_dims
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    by_dim = {cell.dim: cell for cell in cells if cell.dim is not None}
    found = {dim: cell.checkpoint for dim, cell in by_dim.items() if cell.checkpoint is not None}
    for line in metadata.notes(model, found):
        print_line(task.console, f"{model.name}: {line}")
    if engine.name == "ray":
        return distributed.search_vectors(task, by_dim, model, reproduced_dims=reproduced)
    best = {cell.run_id: no_hits() for cell in cells}
    limit_tokenizer(tokenizer_threads(engine.tokenizer_workers, task.device))
    for encoder, reproduced_by_encoder in loaded.encoders(model, found, device=task.device, engine=engine):
        reproduced |= reproduced_by_encoder
        members = {dim: by_dim[dim] for dim in encoder.heads}
        title = f"{keys.label(model.name, *members)} on {task.dataset.name}"
        with (
            documents_bar(task.console, title, total=task.survey.documents) as advance,
            vector_step(task, encoder, members, best, advance) as step,
            Merger(best, depth=task.depth, threaded=task.device.type != "cpu") as merger,
        ):
            for hits in map_shards(step.run, task.survey.shards, ahead=step.ahead):
                merger.add(hits)
                advance.shard_done()
    return best


def search_bm25(task: Task, cell: Cell, model: Bm25Config) -> Hits:
    """Count the queries' terms in every shard, then score every shard with the statistics of the whole corpus.

    Returns the best hits over all shards.
    """
    lucene.check_settings(model)
    analyzer = ANALYZERS[model.analyzer]()
    language = task.dataset.language
    english = model.analyzer in ("english", "bm25s")
    analyzed = f"{model.name} analyses it as {'English' if english else model.analyzer}"
    if language == "unknown":
        line = f"{task.dataset.name}: its language is not given, so {analyzed}"
        remedy = "dataset.language=CODE (es, zh) says which it is, model.analyzer=NAME how it is analysed"
        print_line(task.console, f"{line}; {remedy}")
    elif english and language not in ("en", "multilingual"):
        line = f"{task.dataset.name}: its language is {language}, and {analyzed}"
        print_line(task.console, f"{line}; model.analyzer=NAME chooses another analyzer (evalkit ls analyzers)")
    terms = lucene.query_terms(task.dataset.queries, analyzer)
    if task.config.engine.name == "ray":
        distributed.count_terms(task, cell, terms)  # checkpoints the counts, which `count` below reads
    count = bm25_count_step(task, cell, terms, analyzer)
    shards = task.survey.shards
    with documents_bar(
        task.console, f"{model.name} counts {task.dataset.name}", total=task.survey.documents
    ) as advance:

        def statistics(shard: ShardRange) -> lucene.Statistics:
            known = count(shard).statistics()
            advance(shard.stop - shard.start, 0)
            advance.shard_done()
            return known

        corpus_statistics = reduce(add, map_shards(statistics, shards))
    with documents_bar(
        task.console, f"{model.name} scores {task.dataset.name}", total=task.survey.documents
    ) as advance:
        best = no_hits()
        for shard, counts in zip(shards, map_shards(count, shards), strict=True):
            hits = bm25_score_step(counts, corpus_statistics, model, terms.queries, depth=task.depth)
            best = merge([best, hits], depth=task.depth, ties=model.ties)
            advance(shard.stop - shard.start, 0)
            advance.shard_done()
    return best if model.ties == "trec_eval" else separate_ties(best)


def finish(
    task: Task,
    cell: Cell,
    hits: Hits,
    *,
    search_s: float,
    vectors_reproduced: bool,
    indexed: plaid.Indexed | None = None,
) -> CellScores:
    """Write a cell's run file and scores; scores.json is written last and marks the cell as finished.

    `search_s` is the wall time of encoding and search, in seconds. `indexed` has the facts of an index, for a cell that
    searched one. Such a cell has the embeddings and weights of its exact cell.
    """
    started = time.monotonic()
    config, dataset = task.config, task.dataset
    written = cell_files.write(task, cell.run_id, to_run(hits, [query.id for query in dataset.queries]))
    exact = None if indexed is None else plaid.exact_cell(task, cell)
    cost = Costs({}, {}) if cell.dim is None else costs(task, exact or cell)
    if indexed is not None:
        cost.seconds["search"] = indexed.search_s
    for line in _cost_remarks(cost.counts, shards=len(task.survey.shards)):
        print_line(task.console, f"{cell.run_id}: {line}")
    scores = CellScores(
        run_id=cell.run_id,
        model=config.model.name,
        dim=cell.dim,
        dataset=dataset.name,
        split=dataset.split,
        language=dataset.language,
        main_metric=dataset.main_metric,
        metrics=written.scores.means,
        groups=cell_files.group_means(task, written.scores),
        counts={
            **cell_files.counts(task, written),
            **_title_only_documents(task),
            "shards": len(task.survey.shards),
            **cost.counts,
        },
        deviations=(*task.deviations, *cell_files.accepted_contradictions(config, cell)),
        protocol=cell.protocol,
        wall_s={
            "encode_and_search": round(search_s, 3),
            "score": round(time.monotonic() - started, 3),
            **{stage: round(seconds, 3) for stage, seconds in cost.seconds.items()},
        },
        environment=_environment(task, cell)
        | (
            {"checkpoint": _weights_facts(config, cell, vectors_reproduced=vectors_reproduced)}
            if indexed is None or exact is None
            else _index_facts(config, exact, written.run, indexed)
        ),
    )
    results.write(scores, config.results_dir)
    return scores


def _plan_obtainable(task: Task, unobtainable: dict[int, str] | None) -> tuple[Task, list[Cell]]:
    """Return the task and cells of the dims whose checkpoints can be obtained; add the other dims to `unobtainable`."""
    try:
        return task, plan(task)
    except ModelError:
        model, dims = task.config.model, [dim for dim in task.config.dims if dim is not None]
        if unobtainable is None or not isinstance(model, EncoderConfig):
            raise
        found, failed = obtainable(model, dims)
        if not found or not failed:
            raise
    unobtainable |= {dim: str(error) for dim, error in failed.items()}
    task = task._replace(config=dataclasses.replace(task.config, dims=tuple(found)))
    return task, plan(task)


def _output_folders(config: RunConfig, cells: Sequence[Cell]) -> Iterator[Path]:
    """Yield the folders that a job writes to; a killed job may have left temporary files there."""
    runs = runs_dir(config.results_dir)
    yield from (runs, *(path for path in runs.glob("*") if path.is_dir()))
    yield surveys_dir(config.cache_dir)
    for cell in cells:
        yield store_dir(config.cache_dir, cell.store_key)
        yield topk_dir(config.cache_dir, cell.search_key)


def _forget_survey(task: Task) -> None:
    """Delete the survey that `prepare` wrote or read."""
    forget(
        task.dataset.corpus,
        shard_tokens=auto.shard_tokens(task.config, task.device),
        max_document_tokens=auto.max_document_tokens(task.config, task.device),
        cache_dir=task.config.cache_dir,
        judged_ids=datasets.judged_ids(task.dataset),
    )


def _require_index(config: RunConfig, *, console: Console, force: bool) -> None:
    """Raise ConfigError if the index's library is missing and a cell needs it. Reading finished cells does not."""
    try:
        plaid.python(config.cache_dir)
    except ConfigError:
        task, cells = _plan_obtainable(prepare(config, console=console), {})
        if force or any(reuse.finished(task, cell, config.metrics) is None for cell in cells):
            raise


def _search_indexes(task: Task, cells: Sequence[Cell]) -> dict[str, CellScores]:
    """Search the stored embeddings of cells with an index, one cell after another; return their scores by run id."""
    engine, model = task.config.engine, task.config.model
    assert isinstance(model, EncoderConfig)
    by_dim = {cell.dim: cell for cell in cells if cell.dim is not None}
    found = {dim: cell.checkpoint for dim, cell in by_dim.items() if cell.checkpoint is not None}
    done = {}
    for encoder, _ in loaded.encoders(model, found, device=task.device, engine=engine):
        for dim, queries in encode_queries(task, encoder).items():
            cell = by_dim[dim]
            started = time.monotonic()
            line = f"{model.name} at dim {dim} on {task.dataset.name}: its stored embeddings are searched by fast-plaid"
            print_line(task.console, line)
            indexed = plaid.search(task, cell, queries)
            search_s = time.monotonic() - started
            done[cell.run_id] = finish(
                task, cell, indexed.hits, search_s=search_s, vectors_reproduced=False, indexed=indexed
            )
    return done


def _environment(task: Task, cell: Cell) -> dict[str, Any]:
    """Return what a result records about machine, engine, dataset and time."""
    return {
        **environment.environment(None if cell.dim is None else task.device),
        **environment.given_up(task.config, task.device),
        **distributed.provenance(task.config),
        **cell_files.scoring_facts(task),
        cell_files.FINISHED: datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cost_remarks(counts: Mapping[str, int], *, shards: int) -> Iterator[str]:
    """Yield a line if the costs of some shards are unknown, and one if some were encoded for another cell."""
    if lacking := counts.get("shards_without_costs"):
        yield (
            f"the manifests of {lacking:,} of {shards:,} shards no longer state their costs, so the result lacks "
            "document_vectors or times; the scores are complete"
        )
    if reused := counts.get("reused_shards"):
        yield f"{reused:,} of {shards:,} shards had been encoded before, for another cell"


def _title_only_documents(task: Task) -> dict[str, int]:
    """Return the number of documents that BM25 does not index because they have only a title; empty if there are none.

    Anserini does not index them either.
    """
    model, count = task.config.model, task.survey.title_only
    leaves_out = isinstance(model, Bm25Config) and "contents" not in model.fields and "text" in model.fields
    return {"title_only_documents": count} if leaves_out and count else {}


def _index_facts(
    config: RunConfig, exact: Cell, run: Mapping[str, list[Hit]], indexed: plaid.Indexed
) -> dict[str, Any]:
    """Return the facts of an index search: its cost, the overlap with the exact cell's run, and the weights."""
    path = run_dir(config.results_dir, exact.run_id)
    known = results.read(path / results.SCORES)
    results.require_unedited(config.results_dir, known, results.RUN)
    shared = plaid.overlap(run, results.read_run(path / results.RUN))
    return {
        "checkpoint": known.environment["checkpoint"],
        results.INDEX: {**indexed.facts, "exact_run": exact.run_id, **shared},
    }


def _weights_facts(config: RunConfig, cell: Cell, *, vectors_reproduced: bool) -> dict[str, Any] | None:
    """Return what a result records about the weights: origin, checksums, number, and what proves them."""
    if cell.checkpoint is None or cell.dim is None or not isinstance(config.model, EncoderConfig):
        return None
    count = count_parameters(cell.checkpoint, adapter=config.model.adapter)
    return weights.record(
        config.model.name, cell.dim, cell.checkpoint, parameters=count, vectors_reproduced=vectors_reproduced
    )
