"""The whole flow on one screen: config → dataset → survey → cells → shards → run → scores.

Everything heavy is one idempotent step per shard whose result is checkpointed, so the same command after any fault
goes on where it stopped and ends in the same bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
import yaml
from rich.console import Console

from evalkit import datasets
from evalkit.bm25 import lucene
from evalkit.bm25.analyzers import ANALYZERS
from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.datasets.survey import ShardRange, Survey, survey
from evalkit.engines.local import map_shards
from evalkit.maxsim import choice
from evalkit.models import metadata
from evalkit.run import distributed, environment, loaded
from evalkit.run.background import limit_tokenizer, tokenizer_threads
from evalkit.run.cells import Cell, Task, plan
from evalkit.run.progress import documents_bar
from evalkit.run.search import Hits, drop_self, merge, no_hits, self_hits, separate_ties, to_run
from evalkit.run.shard_step import bm25_count_step, bm25_score_step, costs, vector_step
from evalkit.scoring import metrics
from evalkit.storage import results, trec
from evalkit.storage.paths import make_folder, run_dir, write_whole
from evalkit.storage.results import CellScores
from evalkit.types import Dataset

METRICS = ("ndcg@10", "mrr@10", "recall@100")


def run(config: RunConfig, *, console: Console) -> list[CellScores]:
    """Return the scores of every cell of a config, computing only what is not already on disk.

    Raises EvalkitError subclasses for whatever the user can mend; nothing finished is lost.
    """
    task = prepare(config, console=console)
    cells = plan(task)
    done = {cell.run_id: results.finished(config.results_dir, cell.run_id) for cell in cells}
    unfinished = [cell for cell in cells if done[cell.run_id] is None]
    if unfinished:
        make_folder(run_dir(config.results_dir, unfinished[0].run_id).parent)  # fails now rather than after hours
        started = time.monotonic()
        best = search(task, unfinished)
        wall_s = time.monotonic() - started
        for cell in unfinished:
            done[cell.run_id] = finish(task, cell, best[cell.run_id], search_s=wall_s)
    return [scores for scores in done.values() if scores is not None]


def prepare(config: RunConfig, *, console: Console) -> Task:
    """Open the dataset and survey its corpus: counts, checksum, duplicate ids, shard cuts."""
    device = environment.choose_device(config.engine.device)
    choice.require(config.engine.maxsim, device, precision=config.engine.nominate)

    def survey_of(dataset: Dataset) -> Survey:
        with documents_bar(console, f"survey of {dataset.name}", total=config.dataset.counts.documents) as advance:
            return survey(
                dataset.corpus,
                shard_tokens=config.store.shard_tokens,
                max_document_tokens=_max_document_tokens(config),
                cache_dir=config.cache_dir,
                name=dataset.name,
                judged_ids=datasets.judged_ids(dataset),
                progress=lambda documents: advance(documents, 0),
            )

    dataset, surveyed = datasets.load_read(config.dataset, survey_of)
    deviations = datasets.check(dataset, surveyed, config.dataset)
    return Task(config, dataset, surveyed, deviations, device, console)


def search(task: Task, cells: Sequence[Cell]) -> dict[str, Hits]:
    """Return each cell's best hits over all shards, by run id."""
    if isinstance(task.config.model, Bm25Config):
        (cell,) = cells
        return {cell.run_id: search_bm25(task, cell, task.config.model)}
    return search_vectors(task, cells, task.config.model)


def search_vectors(task: Task, cells: Sequence[Cell], model: EncoderConfig) -> dict[str, Hits]:
    """Encode and search every shard; dims whose backbones are equal share one pass over the corpus."""
    engine = task.config.engine
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    if engine.name == "ray":
        return distributed.search_vectors(task, cells, model)
    by_dim = {cell.dim: cell for cell in cells if cell.dim is not None}
    found = {dim: cell.checkpoint for dim, cell in by_dim.items() if cell.checkpoint is not None}
    best = {cell.run_id: no_hits() for cell in cells}
    for line in metadata.notes(model, found):
        task.console.print(f"{model.name}: {line}", highlight=False, markup=False, soft_wrap=True)
    limit_tokenizer(tokenizer_threads(engine.tokenizer_workers, task.device))
    for encoder in loaded.encoders(
        model, found, device=task.device, attention=engine.attention, elementwise=engine.elementwise
    ):
        members = {dim: by_dim[dim] for dim in encoder.heads}
        title = f"{model.name} at dim {', '.join(map(str, members))} on {task.dataset.name}"
        with (
            documents_bar(task.console, title, total=task.survey.documents) as advance,
            vector_step(task, encoder, members, best, advance) as step,
        ):
            for hits in map_shards(step.run, task.survey.shards, ahead=step.ahead):
                for run_id, shard_hits in hits.items():
                    best[run_id] = merge([best[run_id], shard_hits], depth=task.depth)
    return best


def search_bm25(task: Task, cell: Cell, model: Bm25Config) -> Hits:
    """Count the queries' terms in every shard, then score every shard with the whole corpus' statistics."""
    lucene.check_settings(model)
    analyzer = ANALYZERS[model.analyzer]()
    terms = lucene.query_terms(task.dataset.queries, analyzer)
    if task.config.engine.name == "ray":
        distributed.count_terms(task, cell, terms)
    count = bm25_count_step(task, cell, terms, analyzer)
    shards = task.survey.shards
    with documents_bar(
        task.console, f"{model.name} counts {task.dataset.name}", total=task.survey.documents
    ) as advance:

        def statistics(shard: ShardRange) -> lucene.Statistics:
            known = count(shard).statistics()
            advance(shard.stop - shard.start, 0)
            return known

        whole = reduce(add, map_shards(statistics, shards))
    with documents_bar(
        task.console, f"{model.name} scores {task.dataset.name}", total=task.survey.documents
    ) as advance:
        best = no_hits()
        for shard, counts in zip(shards, map_shards(count, shards), strict=True):
            hits = bm25_score_step(counts, whole, model, terms.queries, depth=task.depth)
            best = merge([best, hits], depth=task.depth, ties=model.ties)
            advance(shard.stop - shard.start, 0)
    return best if model.ties == "trec_eval" else separate_ties(best)


def finish(task: Task, cell: Cell, hits: Hits, *, search_s: float) -> CellScores:
    """Write a cell's run file and scores; scores.json comes last and means that the cell is done."""
    started = time.monotonic()
    config, dataset = task.config, task.dataset
    folder = run_dir(config.results_dir, cell.run_id)
    ranked = to_run(hits, [query.id for query in dataset.queries])
    kept, dropped = drop_self(ranked, depth=config.search.depth) if dataset.drop_self else (ranked, 0)
    trec.write_run(kept, folder / results.RUN, tag=cell.run_id)
    trec.write_qrels(dataset.qrels, folder / results.QRELS)
    if dropped:  # what `evalkit replay` needs to put them back
        own = {query: [hit for hit in hits if hit.document_id == query] for query, hits in ranked.items()}
        trec.write_run(own, folder / results.DROPPED, tag=cell.run_id)
    scored = metrics.score(kept, dataset.qrels, METRICS)
    write_whole(folder / results.PER_QUERY, results.per_query_table(scored.per_query, METRICS).encode())
    write_whole(folder / results.CONFIG, yaml.safe_dump(results.plain(config), sort_keys=False).encode())
    cost = {} if cell.dim is None else costs(task, cell)
    vectors = {} if "vectors" not in cost else {"document_vectors": int(cost.pop("vectors"))}
    counted: dict[str, int] = {
        name: int(cost.pop(name)) for name in ("fitted_batch_tokens", "reused_shards") if name in cost
    }
    if reused := counted.get("reused_shards"):
        line = f"{reused:,} of {len(task.survey.shards):,} shards had been encoded before, for another run"
        task.console.print(f"{cell.run_id}: {line}", highlight=False, soft_wrap=True)
    scores = CellScores(
        run_id=cell.run_id,
        model=config.model.name,
        dim=cell.dim,
        dataset=dataset.name,
        split=dataset.split,
        language=dataset.language,
        main_metric=dataset.main_metric,
        metrics=scored.means,
        groups={name: results.group_means(scored.per_query, ids) for name, ids in dataset.query_groups.items()},
        counts={
            "documents": task.survey.documents,
            "empty_documents": task.survey.empty_documents,
            "queries": len(dataset.queries),
            "judgements": sum(len(judged) for judged in dataset.qrels.values()),
            **({"missing_documents": len(task.survey.missing)} if task.survey.missing else {}),
            "dropped_self": dropped,
            **({} if dataset.drop_self else {"kept_self": self_hits(kept)}),
            "shards": len(task.survey.shards),
            **vectors,
            **counted,
        },
        deviations=(*task.deviations, *_accepted(config, cell)),
        protocol=cell.protocol,
        wall_s={
            "encode_and_search": round(search_s, 3),
            "score": round(time.monotonic() - started, 3),
            **{name.removesuffix("_s"): round(seconds, 3) for name, seconds in cost.items()},
        },
        environment={
            **environment.environment(None if cell.dim is None else task.device),
            **environment.given_up(config, task.device),
            **distributed.provenance(config),
            "dataset_source": dataset.source,
            "checkpoint": None if cell.checkpoint is None else dataclasses.asdict(cell.checkpoint) | {"folder": None},
        },
    )
    results.write(scores, config.results_dir)
    return scores


def _accepted(config: RunConfig, cell: Cell) -> tuple[str, ...]:
    """Return what of the config contradicts the checkpoint's own account, as model.verify=false allows."""
    if not isinstance(config.model, EncoderConfig) or cell.checkpoint is None or cell.dim is None:
        return ()
    found = metadata.differences(config.model, cell.checkpoint, cell.dim).contradictions
    return tuple(f"artifact.metadata has {clause}" for clause in found)


def _max_document_tokens(config: RunConfig) -> int:
    """Return the length at which the model cuts a document; BM25 cuts none."""
    return config.model.document.max_tokens if isinstance(config.model, EncoderConfig) else config.store.shard_tokens
