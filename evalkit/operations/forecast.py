"""Forecast a job: its cells with their state, shards, bytes and seconds. Writes and fetches nothing.

No weights are loaded. A number without a source on this machine is None, never a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import huggingface_hub.constants
import torch
from rich.console import Console

from evalkit import datasets
from evalkit.config import compose
from evalkit.config.settings import EncoderConfig, ModelConfig, RunConfig
from evalkit.datasets import learned
from evalkit.datasets.irds import IrdsCorpus
from evalkit.datasets.survey import ShardRange, Survey, survey
from evalkit.errors import ConfigError, EvalkitError
from evalkit.models import weights
from evalkit.models.checkpoint import on_disk
from evalkit.operations import rates
from evalkit.operations.device_rates import Device
from evalkit.operations.probe import Probed
from evalkit.operations.rates import Time
from evalkit.run import auto, environment, jobs, pipeline
from evalkit.run.cells import Cell, Task, plan
from evalkit.run.jobs import Job
from evalkit.storage import cell_config, keys, results, shard_files
from evalkit.storage.network import network_off
from evalkit.storage.paths import store_dir, topk_dir
from evalkit.storage.results import CellScores
from evalkit.types import Corpus, Dataset, Document

COMPONENT_BYTES = {"float16": 2, "float32": 4}


class Amount(NamedTuple):
    """A number and its source. The number is None if nothing on this machine gives one."""

    value: float | None
    basis: str


class Planned(NamedTuple):
    """One cell of a selection, with everything that is known before it is computed."""

    config: RunConfig
    dim: int | None
    run_id: str | None
    """None until the corpus is surveyed and the checkpoint is on disk, because the id depends on their content."""
    state: str
    """`finished`, `started`, `to do`, `damaged` or `cannot run`."""
    problem: str | None
    """Why the cell cannot run, or what is damaged."""
    source: str
    """Where the dataset is or would come from, for printing."""
    checkpoint: str
    """Where the weights are or would come from, for printing."""
    documents: int | None
    shards: int | None
    done: int
    """Shards whose top-k (BM25: counts) are on disk."""
    tokens: Amount
    """Tokens of the documents as the model reads them, without special tokens."""
    vectors: Amount
    stored_bytes: int | None
    """Bytes of the whole corpus' embeddings; 0 if they are not kept."""
    missing_bytes: int | None
    """The part of `stored_bytes` that is not on disk yet."""
    seconds: Amount
    """Seconds that are left if this cell is computed alone. Dims that share a backbone share the encoding."""
    cell: Cell | None = None
    search_s: float = 0.0
    """The part of `seconds` that is search, which dims do not share."""
    probed: Probed | None = None


def combinations(words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], RunConfig | ConfigError]]:
    """Yield every combination of the words' values, with its config or the error that it gives.

    Raises ConfigError for a name that is wrong in every combination.
    """
    for combination in compose.combinations(words):
        try:
            config = compose.compose(combination)
            pipeline.refuse_reranker(config)
        except ConfigError as error:
            yield combination, error
        else:
            yield combination, config


def forecast_cells(
    config: RunConfig,
    known: Iterable[CellScores] = (),
    *,
    probed: Probed | None = None,
    named_device: Device | None = None,
) -> list[Planned]:
    """Return every cell of a config with its state and forecast.

    The rates come from `elsewhere`, a named device; else from `probed`, a probe; else from `known`, finished cells.
    """
    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    with network_off():
        return _forecast_cells(
            config,
            tuple(run for run in known if _same_size(run, config.model)),
            offline=offline,
            probed=probed,
            named_device=named_device,
        )


class _Inputs(NamedTuple):
    """The inputs of the forecast of one config's cells."""

    config: RunConfig
    device: torch.device | None
    """None if this machine does not have the requested device."""
    task: Task | None
    """The opened dataset; its survey is empty if none is cached. None if the dataset is not on disk."""
    source: str
    problem: str | None
    known: Sequence[CellScores]
    """The finished cells."""
    probed: Probed | None = None
    named_device: Device | None = None


class _FinishedShards(NamedTuple):
    """Totals over the cell's shards that are on disk. BM25's shards have no vectors."""

    shards: int = 0
    documents: int = 0
    vectors: int = 0
    encode_s: float = 0.0
    search_s: float = 0.0


class _CellWork(NamedTuple):
    """The work of a cell, done and left."""

    documents: int | None
    vectors: Amount
    done: _FinishedShards
    left: float
    """The fraction of the shards that have no top-k yet."""
    unstored: float
    """The fraction of the shards that have no embeddings yet."""


def _forecast_cells(
    config: RunConfig,
    known: Sequence[CellScores],
    *,
    offline: bool,
    probed: Probed | None,
    named_device: Device | None,
) -> list[Planned]:
    try:
        device, absent = auto.choose_device(config.engine.device), None
    except ConfigError as error:
        device, absent = None, str(error)
    task, source, problem = _open_dataset(config, device or torch.device("cpu"), offline=offline)
    inputs = _Inputs(config, device, task, source, absent or problem, known, probed, named_device)
    found = []
    for dim in config.dims:
        checkpoint, missing = _checkpoint(config, dim, offline=offline)
        why, cell = inputs.problem or missing, None
        here = dim is None or checkpoint.startswith("on disk")
        if task is not None and device is not None and task.survey.documents and here:
            try:
                (cell,) = plan(task._replace(config=dataclasses.replace(task.config, dims=(dim,))))
            except (EvalkitError, OSError) as error:
                why = why or _reason(error)
        found.append(_planned(inputs, dim, cell, checkpoint=checkpoint, problem=why))
    return found


def _reason(error: EvalkitError | OSError) -> str:
    """Return an error's line; a folder that may not be entered and a name that no file system takes are OSErrors."""
    return str(error) if isinstance(error, EvalkitError) else f"{error.filename}: {error.strerror}"


def _open_dataset(config: RunConfig, device: torch.device, *, offline: bool) -> tuple[Task | None, str, str | None]:
    """Return a config's dataset with its cached survey, its source, and the reason if it is not available."""
    name = None
    try:
        name = datasets.on_disk(config.dataset)
        if name is None:
            return None, *_missing_dataset(config, offline=offline)
        dataset = datasets.load(dataclasses.replace(config.dataset, sources=(name,)))
        surveyed = _cached_survey(config, dataset, device)
        deviations = (
            ()
            if surveyed is None
            else datasets.deviations(
                dataset, surveyed, config.dataset, learned=learned.recall(config.cache_dir, dataset, config.dataset)
            )
        )
    except (EvalkitError, OSError) as error:
        return None, name or "–", _reason(error)
    nothing = Survey(0, "", (), 0, ())
    cut = auto.resolved(config, device)
    return Task(cut, dataset, surveyed or nothing, deviations, device, Console(quiet=True)), f"on disk: {name}", None


def _missing_dataset(config: RunConfig, *, offline: bool) -> tuple[str, str | None]:
    """Return where a missing dataset would be fetched from, and the reason if it cannot be fetched."""
    names = [name for name in datasets.source_names(config.dataset) if name in ("ir_datasets", "hub", "mirror")]
    if config.dataset.path is not None:
        return "–", f"dataset.path={config.dataset.path}: got no folder there, wanted one in BEIR's format"
    if names and set(names) <= {"hub", "mirror"} and offline:
        return "–", f"dataset {config.dataset.name}: not on disk, and HF_HUB_OFFLINE is set; evalkit fetch it elsewhere"
    return f"to fetch: {' or '.join(names)}", None


class _NotSurveyedError(Exception):
    """Raised instead of reading the corpus, when `survey` finds no cached survey."""


@dataclasses.dataclass(frozen=True)
class _NeverReadCorpus:
    """A corpus that refuses to be read, so that `survey` can only return a cached survey."""

    corpus: Corpus

    def fingerprint(self) -> str:
        return self.corpus.fingerprint()

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:  # noqa: ARG002 (part of the Corpus protocol)
        raise _NotSurveyedError

    def where(self, index: int) -> str:
        return self.corpus.where(index)


def _cached_survey(config: RunConfig, dataset: Dataset, device: torch.device) -> Survey | None:
    inner = getattr(dataset.corpus, "corpus", dataset.corpus)
    if isinstance(inner, IrdsCorpus) and not _has_fingerprint(inner):
        return None  # taking its fingerprint would build a document store first
    try:
        return survey(
            _NeverReadCorpus(dataset.corpus),
            shard_tokens=auto.shard_tokens(config, device),  # the arguments that `pipeline.prepare` passes
            max_document_tokens=auto.max_document_tokens(config, device),
            cache_dir=config.cache_dir,
            name=dataset.name,
            judged_ids=datasets.judged_ids(dataset),
        )
    except _NotSurveyedError:
        return None


def _has_fingerprint(corpus: IrdsCorpus) -> bool:
    """Whether a collection's fingerprint can be taken without building a document store."""
    import ir_datasets

    collection: Any = ir_datasets.load(corpus.dataset_id)
    return hasattr(collection, "docs_path") or bool(collection.docs_store().built())


def _checkpoint(config: RunConfig, dim: int | None, *, offline: bool) -> tuple[str, str | None]:
    """Return where a dim's weights are or would be fetched from, and the reason if they are not available."""
    if not isinstance(config.model, EncoderConfig) or dim is None:
        return "none needed", None
    origin = config.model.checkpoints[str(dim)]
    name = origin.path or origin.package or f"{origin.repo}@{(origin.revision or 'main')[:8]}"
    try:
        there = on_disk(origin)
    except OSError as error:
        return "–", _reason(error)
    if there:
        return f"on disk: {name}", None
    if origin.path is not None or origin.repo is None:
        return (
            "–",
            f"checkpoint {name} of {keys.label(config.model.name, dim)} is not there; wanted a folder or package",
        )
    if offline:
        return "–", f"checkpoint {name} is not on disk, and HF_HUB_OFFLINE is set; evalkit fetch it elsewhere"
    return f"to fetch: {name}", None


class _Progress(NamedTuple):
    """What exists of a cell already."""

    state: str
    problem: str | None
    topk: _FinishedShards
    """The shards whose top-k are on disk."""
    stored: int
    """The number of shards whose embeddings are on disk; for BM25, whose counts are."""


def _progress(config: RunConfig, dim: int | None, cell: Cell, shards: Sequence[ShardRange]) -> _Progress:
    """Return a cell's state (`finished`, `damaged`, `started` or `to do`) and its shards on disk."""
    names = [shard.checksum for shard in shards]
    topk, embeddings = topk_dir(config.cache_dir, cell.search_key), store_dir(config.cache_dir, cell.store_key)
    done = _finished_shards([facts for name in names if (facts := shard_files.finished(topk, name)) is not None])
    stored = done.shards if dim is None else sum(shard_files.finished(embeddings, name) is not None for name in names)
    try:
        if results.finished(config.results_dir, cell.run_id) is not None:
            return _Progress("finished", None, done, stored)
    except EvalkitError as error:
        return _Progress("damaged", str(error), done, stored)
    return _Progress("started" if done.shards or stored else "to do", None, done, stored)


def _planned(inputs: _Inputs, dim: int | None, cell: Cell | None, *, checkpoint: str, problem: str | None) -> Planned:
    """Return the forecast of one cell; `cell` is None if its run id cannot be known yet."""
    config = inputs.config
    shards = inputs.task.survey.shards if inputs.task is not None and cell is not None else ()
    found = _Progress("to do", None, _FinishedShards(), 0)
    if cell is not None:
        found = _progress(config, dim, cell, shards)
    state = found.state
    if problem and state in ("to do", "started"):
        state = "cannot run"
    elif state in ("finished", "damaged"):
        problem = found.problem
    finished, count = state == "finished", max(1, len(shards))
    documents = _documents(inputs)
    vectors = _vectors(inputs, dim, documents, cell, found.topk)
    work = _CellWork(
        documents,
        vectors,
        found.topk,
        left=0.0 if finished else 1 - found.topk.shards / count,
        unstored=0.0 if finished else 1 - found.stored / count,
    )
    tokens = _tokens(inputs, documents)
    size, time = _stored_bytes(inputs, dim, vectors), _time(inputs, dim, work, tokens)
    return Planned(
        config=config,
        dim=dim,
        run_id=None if cell is None else cell.run_id,
        state=state,
        problem=problem,
        source=inputs.source,
        checkpoint=checkpoint,
        documents=documents,
        shards=len(shards) or None,
        done=len(shards) if finished else found.topk.shards,
        tokens=tokens,
        vectors=vectors,
        stored_bytes=size,
        missing_bytes=None if size is None else round(size * work.unstored),
        seconds=Amount(time.total_s, time.basis),
        cell=cell,
        search_s=time.search_s or 0.0,
        probed=inputs.probed,
    )


def _finished_shards(manifests: Sequence[Mapping[str, Any]]) -> _FinishedShards:
    """Return the totals over the manifests of top-k."""
    return _FinishedShards(
        len(manifests),
        sum(facts["stop"] - facts["start"] for facts in manifests),
        sum(facts.get("vectors", 0) for facts in manifests),
        sum(facts.get("encode_s", 0.0) for facts in manifests),
        sum(facts.get("search_s", 0.0) for facts in manifests),
    )


def _documents(inputs: _Inputs) -> int | None:
    """Return the number of documents in a corpus: surveyed, stated in its config, or counted by the probe.

    With `dataset.verify=false` a folder may hold another corpus than the config describes, so its count is not used.
    """
    config, task = inputs.config, inputs.task
    surveyed = task.survey.documents if task is not None else 0
    demo = config.dataset.demo
    stated = None if config.dataset.path is not None and not config.dataset.verify else config.dataset.counts.documents
    known = surveyed or stated or (None if demo is None else demo.documents)
    return known or (
        inputs.probed.corpus_documents if _probed_own_dataset(inputs) and inputs.probed is not None else None
    )


def _probed_own_dataset(inputs: _Inputs) -> bool:
    """Whether the probe read this dataset's own documents."""
    return inputs.probed is not None and inputs.probed.dataset == inputs.config.dataset.name


def _vectors(
    inputs: _Inputs, dim: int | None, documents: int | None, cell: Cell | None, done: _FinishedShards
) -> Amount:
    """Return the number of vectors in the corpus: one per document, or about one per token.

    Of the latter, the best source is used: a finished cell on this corpus, this cell's finished shards, a probe, a
    finished cell on a dataset with this name, the estimate of tokens.
    """
    config, model = inputs.config, inputs.config.model
    if not isinstance(model, EncoderConfig) or dim is None:
        return Amount(None, "none")
    if model.pooling != "tokens":
        return Amount(documents, "one a document")
    same_lengths = [
        run
        for run in inputs.known
        if (run.model, run.dataset) == (model.name, config.dataset.name)
        and run.counts.get("document_vectors")
        and run.counts.get("documents")
        and _same_lengths(run, model)
    ]
    corpus = None if cell is None else cell.protocol["corpus"]
    same_corpus = [] if corpus is None else [run for run in same_lengths if run.protocol.get("corpus") == corpus]
    if same_corpus:
        return Amount(same_corpus[0].counts["document_vectors"], f"counted by {same_corpus[0].run_id}")
    tokens = _tokens(inputs, documents)
    found = tokens._replace(basis="estimated as the tokens") if tokens.value is not None else tokens
    if documents and done.vectors:
        found = Amount(done.vectors * documents / done.documents, "estimated from the shards that are done")
    elif documents and _probed_own_dataset(inputs) and (probed := inputs.probed) is not None:
        found = Amount(probed.vectors * documents / probed.documents, _measured(probed))
    elif documents and same_lengths and (config.dataset.counts.documents or config.dataset.demo is not None):
        # Two folders with the same name may have nothing in common. A named corpus has texts of one kind.
        each = same_lengths[0].counts["document_vectors"] / same_lengths[0].counts["documents"]
        found = Amount(each * documents, f"estimated from {each:,.0f} a document in {same_lengths[0].run_id}")
    return found


def _measured(probed: Probed) -> str:
    """Return the basis of a number that a probe of this dataset gives."""
    return f"estimated from {probed.documents:,} of its documents, measured"


def _tokens(inputs: _Inputs, documents: int | None) -> Amount:
    """Estimate the tokens of a corpus from a probe or the dataset's config, because a survey does not count them."""
    if not documents:
        return Amount(None, "unknown until a job has surveyed the corpus")
    if _probed_own_dataset(inputs) and (probed := inputs.probed) is not None and probed.tokens:
        return Amount(probed.tokens * documents / probed.documents, _measured(probed))
    tokens = rates.tokens_of(inputs.config.dataset, inputs.config.model, documents)
    if tokens is None:
        return Amount(None, "unknown, because the dataset's config states no mean length")
    return Amount(tokens, "estimated from the mean length in the dataset's config")


def _stored_bytes(inputs: _Inputs, dim: int | None, vectors: Amount) -> int | None:
    """Return the bytes of the whole corpus' embeddings; 0 if none are stored, None if their number is unknown."""
    if dim is None or inputs.config.store.keep == "topk":
        return 0
    if vectors.value is None:
        return None
    if (
        _probed_own_dataset(inputs)
        and (probed := inputs.probed) is not None
        and probed.vectors
        and dim in probed.stored_bytes
    ):
        return round(vectors.value * probed.stored_bytes[dim] / probed.vectors)
    return round(vectors.value * dim * COMPONENT_BYTES[inputs.config.store.dtype])


def _time(inputs: _Inputs, dim: int | None, work: _CellWork, tokens: Amount) -> Time:
    """Return the time that is left, from the best source of a rate."""
    if not work.left:
        return Time(0.0, 0.0, "nothing left")
    config, task = inputs.config, inputs.task
    queries = len(task.dataset.queries) if task is not None else config.dataset.counts.queries or 0
    amounts = rates.Amounts(work.documents, work.vectors.value, tokens.value, queries, dim)
    if inputs.named_device is not None:
        found = rates.of_device(inputs.named_device, config)
    elif inputs.probed is not None:
        found = rates.of_probe(inputs.probed, config, dim, own=_probed_own_dataset(inputs))
    elif work.done.encode_s > 0 and work.vectors.value is not None:  # the cell's own shards are the best source
        done = work.done
        found = rates.Rate(
            "vectors",
            done.vectors / done.encode_s,
            queries * done.vectors * (dim or 0) / done.search_s if done.search_s else None,
            f"as the {done.shards} shards that are done",
        )
    else:
        found = rates.of_runs(
            inputs.known, config, dim, environment.environment(None if dim is None else inputs.device)
        )
    return rates.time(found, amounts, encode_part=min(work.left, work.unstored), search_part=work.left)


OTHER_SIZE_RTOL: Final = 0.1
"""Relative difference of parameter counts above which weights are of another size: the head of a small model, which
depends on the dim, is a few percent of it."""


def _same_size(run: CellScores, model: ModelConfig) -> bool:
    """Whether a run's weights, where they are recorded, are as large as those that this system's config names."""
    recorded = run.environment.get("checkpoint")
    count = recorded.get("parameters") if isinstance(recorded, Mapping) else None
    if run.model != model.name or not isinstance(model, EncoderConfig) or not (model.parameters and count):
        return True
    if weights.declared_otherwise(model.name, run.dim, model.checkpoints.get(str(run.dim))):
        return True
    return bool(abs(count - model.parameters) <= OTHER_SIZE_RTOL * model.parameters)


def _same_lengths(run: CellScores, model: EncoderConfig) -> bool:
    """Whether a cell's documents had as many vectors as they would have now: same maximum length, same skiplist."""
    rules = run.protocol.get("document")
    lengths = rules.get("max_tokens") if isinstance(rules, Mapping) else None
    return lengths == model.document.max_tokens and run.protocol.get("skiplist") == model.skiplist


def with_jobs(cells: Iterable[Planned], records: Sequence[Job]) -> list[tuple[Planned, Job | None]]:
    """Return each cell once, with the record of the job that computes it now, or did before it stopped."""
    owners: dict[tuple[object, ...], Job] = {}
    for job in records:
        if job.config is not None:
            for dim in job.config.dims:
                key = _cell_key(job.config, dim)
                if key not in owners or job.running:
                    owners[key] = job
    found = {key: cell for cell in cells if (key := _cell_key(cell.config, cell.dim))}
    return [(cell, owners.get(key)) for key, cell in found.items()]


def _cell_key(config: RunConfig, dim: int | None) -> tuple[object, ...]:
    """Return a key that identifies a cell before its run id is known."""
    absolute = jobs.absolute(config)
    one = dataclasses.replace(absolute, dims=(dim,))
    return dim, config.model.name, config.dataset.name, keys.key_of({"config": cell_config.plain(one)})
