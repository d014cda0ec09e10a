"""The total needs of a selection, overall and by dataset: tokens, device time, wall time by workers, disk and memory.

A pass is one model on one dataset. Its dims are forecast to share the encoding, as dims with identical backbones do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.operations.device_rates import Device
from evalkit.operations.forecast import COMPONENT_BYTES, Planned
from evalkit.run import auto

WORKERS: Final = (1, 8, 64)
START_S: Final = 8.0
"""Time from the command to the first document, measured on two cores: imports, checkpoint, first use of each kernel."""
BM25_START_S: Final = 4.0
"""The same for BM25, which has no checkpoint and no compiled kernels: imports only."""
PER_PASS_S: Final = 2.0
"""Time per pass to open the dataset, score, and write the result; measured on two cores."""
READ_BYTES_PER_S: Final = 42e6
"""Bytes of JSON lines that a driver reads per second while it does other work (results/bench/engines.json).

Without other work it reads 89 MB/s.
"""
HIT_BYTES: Final = 28
"""Bytes of a stored hit: query, id, end offset of the id, score."""
PROCESS_BYTES: Final = 0.7e9
"""Memory of a process without weights and documents, measured (results/bench/memory.json)."""
SHARDS_IN_MEMORY: Final = {"cpu": 2, "cuda": 3}
"""Shards whose vectors a process holds at once: the current one, and those that are being written."""
SURVEY_BYTES_PER_TOKEN: Final = 2
"""The survey's estimate of a token's length, which decides where shards end."""
ON_CPU: Final = "cpu"


class Outlook(NamedTuple):
    """The needs of one dataset, or of all of them."""

    name: str
    tokens: float | None
    """Tokens that models encode, over all passes; None if no pass has an estimate."""
    device_s: float | None
    """Time of encoding and search on one device, without starting and reading."""
    wall_s: Mapping[int, float]
    """Wall time by number of workers; empty if no time is known."""
    disk_bytes: float | None
    """Bytes of embeddings and top-k still to be written."""
    memory_bytes: float | None
    """Host memory of a worker, the maximum over all passes."""
    device_bytes: float | None
    """GPU memory of a worker, the maximum over all passes; 0 on a CPU."""
    untimed: int
    """Cells whose time is unknown and missing from the sums."""
    unsized: int
    """Cells whose size is unknown and missing from the sums."""


class _Pass(NamedTuple):
    """The cells of one model on one dataset; `device` is the named device, or None for this machine."""

    cells: Sequence[Planned]
    config: RunConfig
    device: Device | None

    @property
    def on_gpu(self) -> bool:
        if isinstance(self.config.model, Bm25Config):
            return False
        if self.device is not None:
            return bool(self.device.matches)
        return self.config.engine.device != ON_CPU and torch.cuda.is_available()


def by_dataset(cells: Iterable[Planned], *, device: Device | None = None) -> list[Outlook]:
    """Return an outlook for each dataset, in the order in which they first occur."""
    passes = _passes(cells, device)
    names = list(dict.fromkeys(one.config.dataset.name for one in passes))
    return [_outlook(name, [one for one in passes if one.config.dataset.name == name]) for name in names]


def total(cells: Iterable[Planned], *, device: Device | None = None) -> Outlook:
    """Return the outlook of all cells together."""
    return _outlook("all", _passes(cells, device))


def _passes(cells: Iterable[Planned], device: Device | None) -> list[_Pass]:
    found: dict[tuple[str, str, str], list[Planned]] = {}
    for cell in cells:
        config = cell.config
        found.setdefault((config.model.name, config.dataset.name, str(config.dataset.path)), []).append(cell)
    return [_Pass(of_pass, of_pass[0].config, device) for of_pass in found.values()]


def _outlook(name: str, passes: Sequence[_Pass]) -> Outlook:
    """Return the outlook of some passes together."""
    timed = [one for one in passes if _device_s(one) is not None and any(cell.seconds.value != 0 for cell in one.cells)]
    works = [_device_s(one) or 0.0 for one in timed]
    read = [one.cells[0].tokens for one in passes if isinstance(one.config.model, EncoderConfig)]
    tokens = [amount.value for amount in read if amount.value is not None]
    sizes = [size for one in passes if (size := _disk(one)) is not None]
    memories = [_memory(one) for one in passes]
    models = {one.config.model.name for one in timed}
    loads = any(isinstance(one.config.model, EncoderConfig) for one in timed)
    start_s = (START_S if loads else BM25_START_S) + 2.0 * max(0, len(models) - 1)
    unknown = [cell for one in passes if _device_s(one) is None for cell in one.cells]
    nothing_left = all(cell.seconds.value == 0 for one in passes for cell in one.cells)
    return Outlook(
        name=name,
        tokens=sum(tokens) if tokens else None,
        device_s=0.0 if nothing_left else sum(works) if timed else None,
        wall_s={
            workers: start_s + sum(_wall_s(one, work, workers) for one, work in zip(timed, works, strict=True))
            for workers in WORKERS
        }
        if timed
        else {},
        disk_bytes=sum(sizes) if sizes else None,
        memory_bytes=max((host for host, _ in memories), default=None),
        device_bytes=max((gpu for _, gpu in memories), default=None),
        untimed=len(unknown),
        unsized=sum(cell.missing_bytes is None for one in passes for cell in one.cells),
    )


def _device_s(one: _Pass) -> float | None:
    """Return the seconds on one device: the encoding once, plus the search of every dim."""
    totals = [cell.seconds.value for cell in one.cells]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return None
    encoding = max(total - cell.search_s for total, cell in zip(known, one.cells, strict=True))
    return encoding + sum(cell.search_s for cell in one.cells)


def _wall_s(one: _Pass, work_s: float, workers: int) -> float:
    """Return the seconds of a pass, of which `work_s` are the work of the remaining shards.

    These are spread over the workers; reading by one driver may take longer.
    """
    read_s = _text_bytes(one) / READ_BYTES_PER_S
    if (probed := one.cells[0].probed) is not None and probed.dataset == one.config.dataset.name:
        read_s = probed.read_s * (one.cells[0].documents or 0) / probed.documents
    surveyed = one.cells[0].shards is not None
    shards = max(1, (one.cells[0].shards or _shards(one)) - min(cell.done for cell in one.cells))
    turns = math.ceil(shards / min(workers, shards)) / shards
    return PER_PASS_S + max(work_s * turns, read_s if workers > 1 else 0.0) + (0.0 if surveyed else read_s)


def _text_bytes(one: _Pass) -> float:
    """Estimate the bytes of a corpus in UTF-8 from its language and mean length; 0 if the config states none."""
    documents, characters = one.cells[0].documents, one.config.dataset.mean_characters
    if not documents or not characters:
        return 0.0
    three_bytes = one.config.dataset.language in ("zh", "ja", "ko", "th", "hi", "bn", "te")
    two_bytes = one.config.dataset.language in ("ar", "fa", "ru")
    return float(documents * characters * (3 if three_bytes else 2 if two_bytes else 1))


def _shards(one: _Pass) -> int:
    """Estimate the number of shards of a corpus without a survey, by the survey's rule."""
    documents = one.cells[0].documents or 0
    budget = _shard_tokens(one)
    longest = one.config.model.document.max_tokens if isinstance(one.config.model, EncoderConfig) else budget
    each = min(_text_bytes(one) / max(1, documents) / SURVEY_BYTES_PER_TOKEN, longest) or longest
    return max(1, round(documents * each / budget))


def _shard_tokens(one: _Pass) -> int:
    return auto.shard_tokens(one.config, torch.device("cuda" if one.on_gpu else "cpu"))


def _disk(one: _Pass) -> float | None:
    """Return the bytes to write: embeddings, and the hits that enter a top-k if the shards are in random order."""
    if all(cell.state == "finished" for cell in one.cells):
        return 0.0
    known = [cell.missing_bytes for cell in one.cells if cell.missing_bytes is not None]
    if not known:
        return None
    queries = one.config.dataset.counts.queries or (one.cells[0].probed.queries if one.cells[0].probed else 0)
    hits = queries * one.config.search.depth * (1 + math.log(one.cells[0].shards or _shards(one)))
    return sum(known) + (0.0 if isinstance(one.config.model, Bm25Config) else HIT_BYTES * hits * len(known))


def _memory(one: _Pass) -> tuple[float, float]:
    """Estimate the most bytes that a worker needs on the host and on a GPU."""
    model = one.config.model
    if not isinstance(model, EncoderConfig):
        return PROCESS_BYTES, 0.0
    weights = (model.parameters or 0) * (4 if model.dtype == "float32" else 2)
    dims = [cell.dim for cell in one.cells if cell.dim is not None]
    vectors = one.cells[0].vectors.value or 0.0
    if model.pooling == "tokens":
        vectors = min(vectors, _shard_tokens(one))
    shard = vectors * sum(dims) * COMPONENT_BYTES[one.config.store.dtype]
    if not one.on_gpu:
        return PROCESS_BYTES + weights + SHARDS_IN_MEMORY["cpu"] * shard, 0.0
    kept = one.config.store.keep == "embeddings"
    return PROCESS_BYTES + weights + (SHARDS_IN_MEMORY["cuda"] * shard if kept else 0.0), weights + 2 * shard


def host_bytes() -> float:
    """Return the memory of this machine in bytes."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def gpu_bytes(device: Device | None) -> float | None:
    """Return the memory in bytes of the named device, or of this machine's GPU. None if there is no GPU."""
    if device is not None:
        return device.memory_bytes if device.matches else None
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
