"""The speed of a system on a device, and where it is known from. Without a source that fits there is no number.

A source fits if it is of this system, dtype and device: a probe, finished cells of this machine, finished shards of
this cell, or the assumed rates of a named device. Documents differ in length between datasets. So a rate in documents
per second holds only for the dataset with which it was measured; other datasets use tokens per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from evalkit.config import compose
from evalkit.config.settings import DatasetConfig, EncoderConfig, ModelConfig, RunConfig
from evalkit.errors import ConfigError
from evalkit.operations.device_rates import DEVICES, Device, DeviceRates, assumed_rates, measured_rates
from evalkit.operations.probe import Probed
from evalkit.storage.results import CellScores

CHARACTERS_PER_TOKEN: Final[Mapping[str, float]] = {"ja": 1.6, "ko": 2.0, "zh": 1.6}
"""Approximate characters per token of a multilingual subword vocabulary; 4 in alphabetic scripts."""
NO_LIMIT: Final = 1 << 62
"""The maximum length of a document for BM25, in tokens: there is none."""
MACHINE_FACTS: Final = ("processor", "processors", "device", "threads", "instruction_set")
"""The facts of a cell's environment that must be the same here for its times to hold here."""
UNKNOWN: Final = "unknown: run with --probe"
UNKNOWN_SIZE: Final = "unknown, because the size is unknown"


class Amounts(NamedTuple):
    """The size of a cell in each unit of a rate; None if unknown."""

    documents: float | None
    vectors: float | None
    tokens: float | None
    queries: int
    dim: int | None


class Rate(NamedTuple):
    """The speed of a device."""

    unit: Literal["documents", "vectors", "tokens"]
    per_s: float
    """Units encoded per second."""
    products_per_s: float | None
    """Speed of search, as queries × document vectors × dim per second."""
    basis: str
    fixed_s: float = 0.0
    """Seconds that a job takes once: encoding the queries, and preparing the kernels in the first shard."""


class Time(NamedTuple):
    """The seconds that a cell takes if it is computed alone."""

    encode_s: float | None
    search_s: float | None
    basis: str

    @property
    def total_s(self) -> float | None:
        """Encoding plus search, or None if either is unknown."""
        return None if self.encode_s is None or self.search_s is None else self.encode_s + self.search_s


def corpus_tokens(documents: int, mean_characters: int, language: str, *, max_document_tokens: int = 300) -> float:
    """Estimate the tokens of a corpus from the mean length of its documents in characters.

    >>> corpus_tokens(1000, 400, "en")
    100000.0
    """
    return documents * min(mean_characters / CHARACTERS_PER_TOKEN.get(language, 4), max_document_tokens)


def tokens_of(dataset: DatasetConfig, model: ModelConfig, documents: int) -> float | None:
    """Estimate the tokens that a model reads of a number of documents; None if the config states no mean length."""
    if not dataset.mean_characters:
        return None
    most = model.document.max_tokens if isinstance(model, EncoderConfig) else NO_LIMIT
    return corpus_tokens(documents, dataset.mean_characters, dataset.language, max_document_tokens=most)


def time(rate: Rate | str, amounts: Amounts, *, encode_part: float, search_part: float) -> Time:
    """Return the time of a fraction of the encoding and a fraction of the search at a rate.

    `rate` may be a text that says why there is no rate; it becomes the basis of an unknown time.

    >>> time(Rate("vectors", 100.0, 6400.0, "b"), Amounts(1, 1000, None, 2, 64), encode_part=1, search_part=0.5)
    Time(encode_s=10.0, search_s=10.0, basis='at 100 vectors/s, b')
    """
    if isinstance(rate, str):
        return Time(None, None, rate)
    amount = {"documents": amounts.documents, "vectors": amounts.vectors, "tokens": amounts.tokens}[rate.unit]
    if amount is None:
        return Time(None, None, UNKNOWN_SIZE)
    search_s = 0.0
    if rate.products_per_s and amounts.dim is not None and amounts.vectors is not None:
        search_s = amounts.queries * amounts.vectors * amounts.dim * search_part / rate.products_per_s
    basis = f"at {rate.per_s:,.0f} {rate.unit}/s, {rate.basis}"
    fixed_s = rate.fixed_s if search_part else 0.0
    return Time(amount * encode_part / rate.per_s + fixed_s, search_s, basis)


def of_device(device: Device, config: RunConfig) -> Rate | str:
    """Return the rate of a named device: measured (card.json), else assumed. A text says why there is none."""
    model = config.model
    if not isinstance(model, EncoderConfig):
        return UNKNOWN
    known = measured_rates(config.results_dir, gpu=device.title, model=model.name)
    return _rate_of(known or assumed_rates(device, model=model.name), model, measured=known is not None)


def _rate_of(known: DeviceRates | None, model: EncoderConfig, *, measured: bool) -> Rate | str:
    if known is None:
        return UNKNOWN
    basis = f"measured on {known.gpu} ({known.source})" if measured else f"assumed for {known.gpu}: {known.source}"
    unit: Literal["vectors", "tokens"] = "vectors" if measured and model.pooling == "tokens" else "tokens"
    return Rate(unit, known.tokens_per_s, known.search_flop_per_s / (2 * known.query_vectors), basis)


def of_probe(probed: Probed, config: RunConfig, dim: int | None, *, own: bool) -> Rate | str:
    """Return the rate that a probe measured. `own` says whether it read documents of this dataset."""
    if dim not in probed.encode_s:
        return UNKNOWN
    basis = f"measured on {probed.documents:,} {'of its' if own else f'of the {probed.dataset} dataset’s'} documents"
    encode_s, search_s = probed.encode_s[dim], probed.search_s[dim]
    if dim is None:
        return Rate("documents", probed.documents / (encode_s + search_s), None, basis) if own else UNKNOWN
    per_token = isinstance(config.model, EncoderConfig) and config.model.pooling == "tokens"
    unit: Literal["documents", "vectors", "tokens"] = "vectors" if per_token else "documents" if own else "tokens"
    amount = {"vectors": probed.vectors, "documents": probed.documents, "tokens": probed.tokens}[unit]
    products = probed.queries * probed.vectors * dim / search_s if search_s else None
    return Rate(unit, amount / encode_s, products, basis, probed.queries_s if own else 0.0)


def of_runs(known: Sequence[CellScores], config: RunConfig, dim: int | None, here: Mapping[str, Any]) -> Rate | str:
    """Return the rate of finished cells of this system on this machine: on this dataset if any, else by tokens."""
    runs = [
        run
        for run in known
        if run.model == config.model.name
        and all(run.environment.get(name) == here.get(name) for name in MACHINE_FACTS)
        and (not isinstance(config.model, EncoderConfig) or run.protocol.get("dtype") == config.model.dtype)
    ]
    own = [run for run in runs if run.dataset == config.dataset.name]
    if dim is None:
        return _of_bm25(own, [run for run in runs if run not in own], config.model)
    own = [run for run in own if _encoded(run)]
    others = [run for run in runs if run.dataset != config.dataset.name and _encoded(run)]
    per_token = isinstance(config.model, EncoderConfig) and config.model.pooling == "tokens"
    chosen = own or others
    unit: Literal["documents", "vectors", "tokens"] = "vectors" if per_token else "documents" if own else "tokens"
    rate = _rate([(_amount(run, unit, config.model), run.wall_s["encode"]) for run in chosen])
    if rate is None:
        return _of_this_device(config, str(here.get("device")))
    searches = []
    for run in chosen:
        part, slowest_s = _slowest_search(run)
        searches.append((_products(run) * (1 - part), run.wall_s["search"] - slowest_s))
    return Rate(unit, rate, _rate(searches), _basis(chosen), max(_slowest_search(run)[1] for run in chosen))


def _of_bm25(own: Sequence[CellScores], others: Sequence[CellScores], model: ModelConfig) -> Rate | str:
    """Return BM25's rate: by documents from cells on this dataset (`own`), else by tokens from the others."""
    for unit, runs in (("documents", own), ("tokens", others)):
        amounts = [
            (_amount(run, unit, model), run.wall_s["encode_and_search"])
            for run in runs
            if run.wall_s.get("encode_and_search", 0) > 0
        ]
        if (rate := _rate(amounts)) is not None:
            return Rate("documents" if unit == "documents" else "tokens", rate, None, _basis(runs))
    return UNKNOWN


def _of_this_device(config: RunConfig, device: str) -> Rate | str:
    """Return the rate of this machine's GPU, if rates are known for its name."""
    model = config.model
    assert isinstance(model, EncoderConfig)
    measured = measured_rates(config.results_dir, gpu=device, model=model.name)
    if measured is not None:
        return _rate_of(measured, model, measured=True)
    for known in DEVICES.values():
        if known.matches and known.matches in device:
            return _rate_of(assumed_rates(known, model=model.name), model, measured=False)
    return UNKNOWN


def _encoded(run: CellScores) -> bool:
    """Whether a cell's times give a rate: all of its shards were encoded for it."""
    return run.wall_s.get("encode", 0) > 0 and "search" in run.wall_s and "document_vectors" in run.counts


def _amount(run: CellScores, unit: str, model: ModelConfig) -> float | None:
    """Return the size of a cell in a unit; None if its dataset's config states no mean length."""
    if unit == "vectors":
        return run.counts["document_vectors"]
    if unit == "documents":
        return run.counts["documents"]
    try:
        dataset = compose.compose(["model=bm25", f"dataset={run.dataset}"]).dataset
    except ConfigError:  # a folder of the user's, for which no mean length is stated
        return None
    return tokens_of(dataset, model, run.counts["documents"])


def _slowest_search(run: CellScores) -> tuple[float, float]:
    """Return the fraction of shards and the seconds of a cell's slowest search, which includes preparing the kernels.

    In a cell with few shards it is most of the time, so rates exclude it.
    """
    shards = run.counts.get("shards", 1)
    slowest_s = run.wall_s.get("slowest_search")
    return (0.0, 0.0) if slowest_s is None or shards < 2 else (1 / shards, slowest_s)


def _products(run: CellScores) -> float:
    """Return the work of a cell's search: queries × document vectors × dim."""
    return float(run.counts["queries"] * run.counts["document_vectors"] * (run.dim or 0))


def _rate(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    """Return the amount per second over several cells, or None if no time was measured."""
    known = [(amount, seconds) for amount, seconds in pairs if amount and seconds > 0]
    if not known:
        return None
    return sum(amount for amount, _ in known) / sum(seconds for _, seconds in known)


def _basis(runs: Sequence[CellScores]) -> str:
    return f"as {runs[0].run_id} here" if len(runs) == 1 else f"over {len(runs)} cells here"
