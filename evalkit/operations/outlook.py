"""What a selection takes in all and by dataset: tokens, device time, wall time by number of workers, disk and memory.

A pass is one model on one dataset: its dims share the encoding, as they do in a run where their backbones are equal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from evalkit.config.settings import Bm25Config, EncoderConfig, RunConfig
from evalkit.operations.cards import Device
from evalkit.operations.forecast import WIDTHS, Planned
from evalkit.run import environment

WORKERS: Final = (1, 8, 64)
START_S: Final = 8.0
"""From the command to the first document, measured on two cores: imports, checkpoint, first use of each kernel."""
BM25_START_S: Final = 4.0
"""The same without a checkpoint and without compiled kernels: imports alone."""
EACH_S: Final = 2.0
"""Of every pass: opening the dataset, scoring, writing the result; measured on two cores."""
READ_BYTES_PER_S: Final = 42e6
"""JSON lines that one driver reads in a second beside other work; alone, 89 MB/s (results/bench/engines.json)."""
HIT_BYTES: Final = 28
"""A stored hit: query, id, where the id ends, score."""
PROCESS_BYTES: Final = 0.7e9
"""A process without weights and documents, measured (results/bench/memory.json)."""
BEHIND: Final = {"cpu": 2, "cuda": 3}
"""Shards whose vectors a process holds at once: the one at work, and those that wait for the disk."""
SURVEY_BYTES_PER_TOKEN: Final = 2
"""How the survey estimates tokens, and so where shards end."""
ON_CPU: Final = "cpu"


class Outlook(NamedTuple):
    """One dataset, or all of them."""

    name: str
    tokens: float | None
    """That models encode, over all passes; None where no pass tells."""
    device_s: float | None
    """Encoding and search of one device, without starting and reading."""
    wall_s: Mapping[int, float]
    """By number of workers; empty where nothing is known."""
    disk_bytes: float | None
    """To write: embeddings and top-k."""
    memory_bytes: float | None
    """Of a worker's host memory, the most of any pass."""
    device_bytes: float | None
    """Of a worker's GPU memory, the most of any pass; 0 on a CPU."""
    untimed: int
    """Cells whose time is not known and not in the sums."""
    unsized: int


class _Pass(NamedTuple):
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
    """Return an outlook for each dataset, in the order in which they come."""
    passes = _passes(cells, device)
    names = list(dict.fromkeys(one.config.dataset.name for one in passes))
    return [_joined(name, [one for one in passes if one.config.dataset.name == name]) for name in names]


def in_all(cells: Iterable[Planned], *, device: Device | None = None) -> Outlook:
    """Return the outlook of everything."""
    return _joined("all", _passes(cells, device))


def _passes(cells: Iterable[Planned], device: Device | None) -> list[_Pass]:
    found: dict[tuple[str, str, str], list[Planned]] = {}
    for cell in cells:
        config = cell.config
        found.setdefault((config.model.name, config.dataset.name, str(config.dataset.path)), []).append(cell)
    return [_Pass(of_pass, of_pass[0].config, device) for of_pass in found.values()]


def _joined(name: str, passes: Sequence[_Pass]) -> Outlook:
    timed = [one for one in passes if _work(one) is not None and any(cell.seconds.value != 0 for cell in one.cells)]
    works = [_work(one) or 0.0 for one in timed]
    read = [one.cells[0].tokens for one in passes if isinstance(one.config.model, EncoderConfig)]
    tokens = [amount.value for amount in read if amount.value is not None]
    sizes = [size for one in passes if (size := _disk(one)) is not None]
    memories = [_memory(one) for one in passes]
    models = {one.config.model.name for one in timed}
    loads = any(isinstance(one.config.model, EncoderConfig) for one in timed)
    start_s = (START_S if loads else BM25_START_S) + 2.0 * max(0, len(models) - 1)
    unknown = [cell for one in passes if _work(one) is None for cell in one.cells]
    nothing_left = all(cell.seconds.value == 0 for one in passes for cell in one.cells)
    return Outlook(
        name=name,
        tokens=sum(tokens) if tokens else None,
        device_s=0.0 if nothing_left else sum(works) if timed else None,
        wall_s={
            workers: start_s + sum(_wall(one, work, workers) for one, work in zip(timed, works, strict=True))
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


def _work(one: _Pass) -> float | None:
    """Return the seconds of one device: the encoding once, the search of every dim."""
    totals = [cell.seconds.value for cell in one.cells]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return None
    encoding = max(total - cell.search_s for total, cell in zip(known, one.cells, strict=True))
    return encoding + sum(cell.search_s for cell in one.cells)


def _wall(one: _Pass, work_s: float, workers: int) -> float:
    """Return the seconds of a pass: the work in as many turns as its shards need, but no faster than it is read."""
    read_s = _text_bytes(one) / READ_BYTES_PER_S
    if (probed := one.cells[0].probed) is not None and probed.dataset == one.config.dataset.name:
        read_s = probed.read_s * (one.cells[0].documents or 0) / probed.documents
    surveyed = one.cells[0].shards is not None
    shards = one.cells[0].shards or _shards(one)
    turns = math.ceil(shards / min(workers, shards)) / shards
    return EACH_S + max(work_s * turns, read_s if workers > 1 else 0.0) + (0.0 if surveyed else read_s)


def _text_bytes(one: _Pass) -> float:
    documents, characters = one.cells[0].documents, one.config.dataset.mean_characters
    if not documents or not characters:
        return 0.0
    wide = one.config.dataset.language in ("zh", "ja", "ko", "th", "hi", "bn", "te")
    half = one.config.dataset.language in ("ar", "fa", "ru")
    return float(documents * characters * (3 if wide else 2 if half else 1))


def _shards(one: _Pass) -> int:
    """Estimate the shards of a corpus that is not surveyed, as a survey would cut them."""
    documents = one.cells[0].documents or 0
    budget = _shard_tokens(one)
    longest = one.config.model.document.max_tokens if isinstance(one.config.model, EncoderConfig) else budget
    each = min(_text_bytes(one) / max(1, documents) / SURVEY_BYTES_PER_TOKEN, longest) or longest
    return max(1, round(documents * each / budget))


def _shard_tokens(one: _Pass) -> int:
    return environment.shard_tokens(one.config, torch.device("cuda" if one.on_gpu else "cpu"))


def _disk(one: _Pass) -> float | None:
    """Return the bytes to write: embeddings, and of the top-k what reaches it in a random order of shards."""
    if all(cell.state == "finished" for cell in one.cells):
        return 0.0
    known = [cell.missing_bytes for cell in one.cells if cell.missing_bytes is not None]
    if not known:
        return None
    queries = one.config.dataset.counts.queries or (one.cells[0].probed.queries if one.cells[0].probed else 0)
    hits = queries * one.config.search.depth * (1 + math.log(one.cells[0].shards or _shards(one)))
    return sum(known) + (0.0 if isinstance(one.config.model, Bm25Config) else HIT_BYTES * hits * len(known))


def _memory(one: _Pass) -> tuple[float, float]:
    """Return about how many bytes of the host and of a GPU a worker needs at most."""
    model = one.config.model
    if not isinstance(model, EncoderConfig):
        return PROCESS_BYTES, 0.0
    weights = (model.parameters or 0) * (4 if model.dtype == "float32" else 2)
    dims = [cell.dim for cell in one.cells if cell.dim is not None]
    vectors = one.cells[0].vectors.value or 0.0
    if model.pooling == "tokens":
        vectors = min(vectors, _shard_tokens(one))
    shard = vectors * sum(dims) * WIDTHS[one.config.store.dtype]
    if not one.on_gpu:
        return PROCESS_BYTES + weights + BEHIND["cpu"] * shard, 0.0
    kept = one.config.store.keep == "embeddings"
    return PROCESS_BYTES + weights + (BEHIND["cuda"] * shard if kept else 0.0), weights + 2 * shard


def host_bytes() -> float:
    """Return the memory of this machine."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def gpu_bytes(device: Device | None) -> float | None:
    """Return the memory of the GPU that is named or here, or None where there is none."""
    if device is not None:
        return device.memory_bytes if device.matches else None
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
