"""What a run would do, before it does it: cells and their state, shards, bytes and seconds. Writes and fetches nothing.

No weights are loaded. A number that nothing on this machine tells is None, never a guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import huggingface_hub.constants
import torch
from rich.console import Console

from evalkit import datasets
from evalkit.config import compose
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.datasets import learned
from evalkit.datasets.irds import IrdsCorpus
from evalkit.datasets.survey import Survey, survey
from evalkit.errors import ConfigError, EvalkitError
from evalkit.models.checkpoint import on_disk
from evalkit.operations.cards import CardRates, card_rates
from evalkit.run import environment, jobs
from evalkit.run.cells import Cell, Task, plan
from evalkit.run.jobs import Job
from evalkit.storage import keys, results, shard_files
from evalkit.storage.offline import network_off
from evalkit.storage.paths import store_dir, topk_dir
from evalkit.storage.results import CellScores
from evalkit.types import Corpus, Dataset, Document

WIDTHS = {"float16": 2, "float32": 4}
UNSIZED = "unknown, for the size is"
NO_LIMIT = 1 << 62
"""The most tokens that BM25 reads of a document."""


CHARACTERS_PER_TOKEN = {"ja": 1.6, "ko": 2.0, "zh": 1.6}
"""About how many characters a token of a multilingual subword vocabulary covers; 4 in alphabetic scripts."""


def corpus_tokens(documents: int, mean_characters: int, language: str, *, max_document_tokens: int = 300) -> float:
    """Estimate the tokens of a corpus from the mean length of its documents.

    >>> corpus_tokens(1000, 400, "en")
    100000.0
    """
    return documents * min(mean_characters / CHARACTERS_PER_TOKEN.get(language, 4), max_document_tokens)


class Amount(NamedTuple):
    """A number with where it comes from; no number where nothing here tells it."""

    value: float | None
    basis: str


class Planned(NamedTuple):
    """One cell of a selection, as far as it can be known without doing it."""

    config: RunConfig
    dim: int | None
    run_id: str | None
    """None until the corpus was surveyed and the checkpoint is on disk: content decides it."""
    state: str
    """`finished`, `started`, `to do`, `damaged` or `cannot run`."""
    problem: str | None
    """Why it cannot run, or what is damaged."""
    source: str
    checkpoint: str
    documents: int | None
    shards: int | None
    done: int
    """Shards whose top-k (BM25: counts) are on disk."""
    tokens: Amount
    """Of the documents as the model reads them, special tokens aside."""
    vectors: Amount
    stored_bytes: int | None
    """Embeddings of the whole corpus; 0 where none are kept."""
    missing_bytes: int | None
    """Of these, what is not on disk yet."""
    seconds: Amount
    """What is left, for a cell by itself: dims that share a backbone share the encoding."""
    cell: Cell | None = None


def combinations(words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], RunConfig | ConfigError]]:
    """Yield every combination of words that give several values each, with its config or why there is none.

    Raises ConfigError for a name that is wrong in every combination.
    """
    for combination in compose.combinations(words):
        try:
            yield combination, compose.compose(combination)
        except ConfigError as error:
            yield combination, error


def look(config: RunConfig, known: Iterable[CellScores] = ()) -> list[Planned]:
    """Return every cell of a config with its state. `known` are finished runs, whose rates make the forecast."""
    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    with network_off():
        return _look(config, tuple(known), offline=offline)


class _Seen(NamedTuple):
    """What there is of a config's dataset, and the finished runs."""

    config: RunConfig
    device: torch.device | None
    """None where the device that is asked for is not here."""
    task: Task | None
    """With an empty survey where none is cached."""
    source: str
    problem: str | None
    known: Sequence[CellScores]


class _Done(NamedTuple):
    """What the shards of a cell that are on disk hold and took; BM25's count no vectors."""

    shards: int = 0
    documents: int = 0
    vectors: int = 0
    encode_s: float = 0.0
    search_s: float = 0.0


class _Work(NamedTuple):
    """What of a cell is still to be done."""

    documents: int | None
    vectors: Amount
    done: _Done
    left: float
    """The part of the shards that has no top-k yet."""
    unstored: float
    """The part of the shards that has no embeddings yet."""


def _look(config: RunConfig, known: Sequence[CellScores], *, offline: bool) -> list[Planned]:
    try:
        device, absent = environment.choose_device(config.engine.device), None
    except ConfigError as error:
        device, absent = None, str(error)
    task, source, problem = _opened(config, device or torch.device("cpu"), offline=offline)
    seen = _Seen(config, device, task, source, absent or problem, known)
    found = []
    for dim in config.dims:
        checkpoint, missing = _checkpoint(config, dim, offline=offline)
        why, cell = seen.problem or missing, None
        here = dim is None or checkpoint.startswith("on disk")
        if task is not None and device is not None and task.survey.documents and here:
            try:
                (cell,) = plan(task._replace(config=dataclasses.replace(task.config, dims=(dim,))))
            except EvalkitError as error:
                why = why or str(error)
        found.append(_planned(seen, dim, cell, checkpoint=checkpoint, problem=why))
    return found


def _opened(config: RunConfig, device: torch.device, *, offline: bool) -> tuple[Task | None, str, str | None]:
    """Return a config's dataset with its cached survey, where it is from, and why it cannot be had."""
    name = datasets.on_disk(config.dataset)
    try:
        if name is None:
            return None, *_absent(config, offline=offline)
        dataset = datasets.load(dataclasses.replace(config.dataset, sources=(name,)))
        surveyed = _cached_survey(config, dataset, device)
        deviations = (
            ()
            if surveyed is None
            else datasets.deviations(
                dataset, surveyed, config.dataset, learned=learned.recall(config.cache_dir, dataset, config.dataset)
            )
        )
    except EvalkitError as error:
        return None, name or "–", str(error)
    nothing = Survey(0, "", (), 0, ())
    cut = environment.resolved(config, device)
    return Task(cut, dataset, surveyed or nothing, deviations, device, Console(quiet=True)), f"on disk: {name}", None


def _absent(config: RunConfig, *, offline: bool) -> tuple[str, str | None]:
    """Say where a dataset that is not on disk would come from, or why it cannot."""
    names = [name for name in datasets.source_names(config.dataset) if name in ("ir_datasets", "hub", "mirror")]
    if config.dataset.path is not None:
        return "–", f"dataset.path={config.dataset.path}: got no folder there, wanted one in BEIR's format"
    if names and set(names) <= {"hub", "mirror"} and offline:
        return "–", f"dataset {config.dataset.name}: not on disk, and HF_HUB_OFFLINE is set; evalkit fetch it elsewhere"
    return f"to fetch: {' or '.join(names)}", None


class _NotSurveyedError(Exception):
    """Raised in place of the pass over a corpus that `survey` starts where it has none cached."""


@dataclasses.dataclass(frozen=True)
class _Unread:
    """A corpus that is not read: only a survey that is already cached can be had of it."""

    corpus: Corpus

    def fingerprint(self) -> str:
        return self.corpus.fingerprint()

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:  # noqa: ARG002 (a Corpus')
        raise _NotSurveyedError

    def where(self, index: int) -> str:
        return self.corpus.where(index)


def _cached_survey(config: RunConfig, dataset: Dataset, device: torch.device) -> Survey | None:
    inner = getattr(dataset.corpus, "corpus", dataset.corpus)
    if isinstance(inner, IrdsCorpus) and not _built(inner):
        return None  # its fingerprint would build a document store first
    try:
        return survey(
            _Unread(dataset.corpus),
            shard_tokens=environment.shard_tokens(config, device),  # as `pipeline.prepare` asks for it
            max_document_tokens=environment.max_document_tokens(config, device),
            cache_dir=config.cache_dir,
            name=dataset.name,
            judged_ids=datasets.judged_ids(dataset),
        )
    except _NotSurveyedError:
        return None


def _built(corpus: IrdsCorpus) -> bool:
    """Whether a collection's fingerprint can be taken without building anything."""
    import ir_datasets

    collection: Any = ir_datasets.load(corpus.dataset_id)
    return hasattr(collection, "docs_path") or bool(collection.docs_store().built())


def _checkpoint(config: RunConfig, dim: int | None, *, offline: bool) -> tuple[str, str | None]:
    """Say where a dim's weights are or would come from, and why they cannot be had."""
    if not isinstance(config.model, EncoderConfig) or dim is None:
        return "none needed", None
    origin = config.model.checkpoints[str(dim)]
    name = origin.path or origin.package or f"{origin.repo}@{(origin.revision or 'main')[:8]}"
    if on_disk(origin):
        return f"on disk: {name}", None
    if origin.path is not None or origin.repo is None:
        return "–", f"checkpoint {name} of {config.model.name} at dim {dim} is not there; wanted a folder or package"
    if offline:
        return "–", f"checkpoint {name} is not on disk, and HF_HUB_OFFLINE is set; evalkit fetch it elsewhere"
    return f"to fetch: {name}", None


def _planned(seen: _Seen, dim: int | None, cell: Cell | None, *, checkpoint: str, problem: str | None) -> Planned:
    config = seen.config
    shards = seen.task.survey.shards if seen.task is not None and cell is not None else ()
    done, stored, made = 0, 0, _Done()
    state = "cannot run" if problem else "to do"
    if cell is not None:
        names = [shard.checksum for shard in shards]
        topk, embeddings = topk_dir(config.cache_dir, cell.search_key), store_dir(config.cache_dir, cell.store_key)
        manifests = [facts for name in names if (facts := shard_files.finished(topk, name)) is not None]
        done, made = len(manifests), _done(manifests)
        stored = done if dim is None else sum(shard_files.finished(embeddings, name) is not None for name in names)
        if state == "to do" and (done or stored):
            state = "started"
        try:
            if results.finished(config.results_dir, cell.run_id) is not None:
                state, problem = "finished", None
        except EvalkitError as error:
            state, problem = "damaged", str(error)
    parts = max(1, len(shards))
    over = state == "finished"
    documents = _documents(config, seen.task)
    vectors = _vectors(seen, dim, documents, cell, made)
    work = _Work(documents, vectors, made, 0.0 if over else 1 - done / parts, 0.0 if over else 1 - stored / parts)
    size = _bytes(config, dim, vectors)
    return Planned(
        config=config,
        dim=dim,
        run_id=None if cell is None else cell.run_id,
        state=state,
        problem=problem,
        source=seen.source,
        checkpoint=checkpoint,
        documents=documents,
        shards=len(shards) or None,
        done=len(shards) if over else done,
        tokens=_tokens(config, documents),
        vectors=vectors,
        stored_bytes=size,
        missing_bytes=None if size is None else round(size * work.unstored),
        seconds=_seconds(seen, dim, work),
        cell=cell,
    )


def _done(manifests: Sequence[Mapping[str, Any]]) -> _Done:
    return _Done(
        len(manifests),
        sum(facts["stop"] - facts["start"] for facts in manifests),
        sum(facts.get("vectors", 0) for facts in manifests),
        sum(facts.get("encode_s", 0.0) for facts in manifests),
        sum(facts.get("search_s", 0.0) for facts in manifests),
    )


def _documents(config: RunConfig, task: Task | None) -> int | None:
    """Return how many documents a corpus has: surveyed, else as its config says, unless it need not be that corpus."""
    surveyed = task.survey.documents if task is not None else 0
    demo = config.dataset.demo
    stated = None if config.dataset.path is not None and not config.dataset.verify else config.dataset.counts.documents
    return surveyed or stated or (None if demo is None else demo.documents)


def _vectors(seen: _Seen, dim: int | None, documents: int | None, cell: Cell | None, done: _Done) -> Amount:
    """Return how many vectors the corpus has: one a document, or about one a token."""
    config, model = seen.config, seen.config.model
    if not isinstance(model, EncoderConfig) or dim is None:
        return Amount(None, "none")
    if model.pooling != "tokens":
        return Amount(documents, "one a document")
    alike = [
        run
        for run in seen.known
        if (run.model, run.dataset) == (model.name, config.dataset.name)
        and run.counts.get("document_vectors")
        and run.counts.get("documents")
        and _same_lengths(run, model)
    ]
    same = [] if cell is None else [run for run in alike if run.protocol.get("corpus") == cell.protocol["corpus"]]
    if same:
        return Amount(same[0].counts["document_vectors"], f"counted by {same[0].run_id}")
    if done.vectors and documents:
        return Amount(done.vectors * documents / done.documents, "estimated from the shards that are done")
    if alike and documents and (config.dataset.counts.documents or config.dataset.demo is not None):
        # Of two folders with one name nothing is known to be alike; a named corpus has texts of one kind.
        each = alike[0].counts["document_vectors"] / alike[0].counts["documents"]
        return Amount(each * documents, f"estimated from {each:,.0f} a document in {alike[0].run_id}")
    tokens = _tokens(config, documents)
    return tokens._replace(basis="estimated as the tokens") if tokens.value is not None else tokens


def _tokens(config: RunConfig, documents: int | None) -> Amount:
    """Return about how many tokens a corpus has; a survey counts none, so the dataset's config tells."""
    model, language = config.model, config.dataset.language
    if not documents:
        return Amount(None, "unknown until a run has surveyed the corpus")
    if not config.dataset.mean_characters:
        return Amount(None, "unknown, for the dataset's config states no mean length")
    most = model.document.max_tokens if isinstance(model, EncoderConfig) else NO_LIMIT
    tokens = corpus_tokens(documents, config.dataset.mean_characters, language, max_document_tokens=most)
    return Amount(tokens, "estimated from the mean length in the dataset's config")


def _bytes(config: RunConfig, dim: int | None, vectors: Amount) -> int | None:
    if dim is None or config.store.keep == "topk":
        return 0
    return None if vectors.value is None else round(vectors.value * dim * WIDTHS[config.store.dtype])


def _seconds(seen: _Seen, dim: int | None, work: _Work) -> Amount:
    """Return the time that is left at the rates of this system's earlier runs on this machine and device."""
    if not work.left:
        return Amount(0.0, "nothing left")
    config, task = seen.config, seen.task
    here = environment.environment(None if dim is None else seen.device)
    runs = [
        run
        for run in seen.known
        if run.model == config.model.name
        and all(run.environment.get(name) == here.get(name) for name in ("processor", "device"))
        and (not isinstance(config.model, EncoderConfig) or run.protocol.get("dtype") == config.model.dtype)
    ]
    if dim is None:
        rated = [run for run in runs if run.wall_s.get("encode_and_search", 0) > 0]
        rate = _rate((run.counts["documents"], run.wall_s["encode_and_search"]) for run in rated)
        if rate is None or work.documents is None:
            return Amount(None, UNSIZED if rate is not None else _unrated(config, dim))
        return Amount(work.documents * work.left / rate, f"at {rate:,.0f} documents/s, {_named(rated)}")
    queries = len(task.dataset.queries) if task is not None else config.dataset.counts.queries or 0
    if work.done.encode_s > 0 and work.vectors.value is not None:  # the cell's own shards tell best
        rate = work.done.vectors / work.done.encode_s
        encode_s = work.vectors.value * min(work.left, work.unstored) / rate
        search_s = work.vectors.value * work.left * work.done.search_s / work.done.vectors
        return Amount(encode_s + search_s, f"at {rate:,.0f} vectors/s, as the {work.done.shards} shards that are done")
    rated = [run for run in runs if run.wall_s.get("encode", 0) > 0 and "document_vectors" in run.counts]
    rate = _rate((run.counts["document_vectors"], run.wall_s["encode"]) for run in rated) or 0.0
    if not rate or work.vectors.value is None:
        card = None if rate else card_rates(config.results_dir, gpu=str(here.get("device")), model=config.model.name)
        unknown = Amount(None, UNSIZED if rate else _unrated(config, dim))
        return unknown if card is None else _at_card_rates(card, dim, work, queries=queries)
    encode_s = work.vectors.value * min(work.left, work.unstored) / rate
    products = _rate((_products(run), run.wall_s.get("search", 0.0)) for run in rated)
    search_s = queries * work.vectors.value * dim * work.left / products if products else 0.0
    return Amount(encode_s + search_s, f"at {rate:,.0f} vectors/s, {_named(rated)}")


def _at_card_rates(card: CardRates, dim: int, work: _Work, *, queries: int) -> Amount:
    """Return the time that is left at the rates that were measured on this card, for want of a run of this system."""
    if work.vectors.value is None:
        return Amount(None, UNSIZED)
    encode_s = work.vectors.value * min(work.left, work.unstored) / card.tokens_per_s
    flop = 2.0 * queries * card.query_vectors * work.vectors.value * dim * work.left
    basis = f"at {card.tokens_per_s:,.0f} tokens/s, measured on {card.gpu} ({card.source})"
    return Amount(encode_s + flop / card.search_flop_per_s, basis)


def _unrated(config: RunConfig, dim: int | None) -> str:
    """Say why there is no rate, and what would give one: a run on the demo's small collection."""
    words = f"model={config.model.name}" + ("" if dim is None else f" dim={dim}")
    return f"unknown, for no run of this system was made on this machine; evalkit run {words} dataset=demo gives a rate"


def _same_lengths(run: CellScores, model: EncoderConfig) -> bool:
    """Whether a run's documents gave as many vectors as they would now: cut at the same length, by one skiplist."""
    rules = run.protocol.get("document")
    lengths = rules.get("max_tokens") if isinstance(rules, Mapping) else None
    return lengths == model.document.max_tokens and run.protocol.get("skiplist") == model.skiplist


def _products(run: CellScores) -> float:
    return float(run.counts["queries"] * run.counts["document_vectors"] * (run.dim or 0))


def _rate(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Return amount per second over several runs, or None where nothing took time."""
    amounts, seconds = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    return sum(amounts) / sum(seconds) if sum(seconds) > 0 else None


def _named(runs: Sequence[CellScores]) -> str:
    return f"as {runs[0].run_id} here" if len(runs) == 1 else f"over {len(runs)} runs here"


def with_jobs(cells: Iterable[Planned], records: Sequence[Job]) -> list[tuple[Planned, Job | None]]:
    """Return each cell once, with the record of the run that is at work on it, or was before it stopped."""
    owners: dict[tuple[object, ...], Job] = {}
    for job in records:
        if job.config is not None:
            for dim in job.config.dims:
                key = _settings(job.config, dim)
                if key not in owners or job.running:
                    owners[key] = job
    found = {key: cell for cell in cells if (key := _settings(cell.config, cell.dim))}
    return [(cell, owners.get(key)) for key, cell in found.items()]


def _settings(config: RunConfig, dim: int | None) -> tuple[object, ...]:
    """Return what tells a cell from others before its run id is known."""
    absolute = jobs.absolute(config)
    one = dataclasses.replace(absolute, dims=(dim,))
    return dim, config.model.name, config.dataset.name, keys.key_of({"config": results.plain(one)})
