"""Encode texts: batch them (`batching`), run the model, restore their order.

Shapes: N texts, B texts of a batch, U distinct texts, X token ids or vectors of all texts concatenated, D dim.
On a GPU vectors are copied by index: P texts that receive the vectors of a batch (identical texts share them), V copied
vectors.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import DeviceError, ModelError
from evalkit.kernels.cpu import cores, memory
from evalkit.kernels.trouble import first_line, is_out_of_memory
from evalkit.models.encoder import Encoder
from evalkit.models.tokens import Tokens, TokenTable
from evalkit.ragged import Ragged, offsets
from evalkit.run.batching import BatchRows, halves, packed_batches, padded_batches
from evalkit.storage.keys import label
from evalkit.storage.shard_files import ShardVectors

log = logging.getLogger(__name__)

BATCHES_PER_CORE = 16
"""Batches queued for each core's thread, so that no core waits for the thread that submits them."""


def log_halved(tokens: int, reason: str) -> None:
    """Log that a batch did not fit."""
    log.warning("a batch did not fit memory (%s): batches hold %d tokens at most from here on", reason, tokens)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The settings of one call of `encode`: kind of texts, batch size, dtype and device of vectors, callbacks."""

    documents: bool
    """Whether the texts are documents: their punctuation tokens are dropped where the model has a skiplist."""
    batch_tokens: int
    """The maximum tokens of a batch, padding included."""
    storage: torch.dtype
    """The dtype to which vectors are rounded, once: search uses the same vectors as the store."""
    resident: bool = False
    """Whether vectors stay on the encoder's device; otherwise they are copied to the host."""
    on_batch: Callable[[int, int], None] = lambda _texts, _tokens: None
    """`on_batch(texts, tokens)` is called after each batch. Threads may differ; calls never overlap."""
    on_halved: Callable[[int, str], None] = log_halved
    """`on_halved(tokens, reason)` is called when the limit of batch tokens falls because a batch did not fit memory."""


def encode(
    ids: Sequence[str], texts: Sequence[Tokens], encoder: Encoder, encoding: Encoding
) -> dict[int, ShardVectors]:
    """Encode tokenised texts. Return their vectors for each dim of the encoder, in the order of the texts.

    Texts with identical token ids are encoded once. A batch that does not fit memory is halved, and so are later ones
    of that size. Raises ModelError that names the text if a vector is not finite. Raises DeviceError if a single text
    does not fit memory or the device fails.
    """
    memory.keep_between_batches()
    table = TokenTable.of(texts)
    lengths_N = table.lengths_N
    out = _Output.of(table, encoder, encoding)
    first_U = np.array(list(out.duplicates), dtype=np.int64)
    rules = encoder.config.document if encoding.documents else encoder.config.query
    of_distinct = (
        padded_batches(lengths_N[first_U], batch_tokens=encoding.batch_tokens, longest=rules.max_tokens)
        if encoder.attention == "sdpa"
        else packed_batches(lengths_N[first_U], batch_tokens=encoding.batch_tokens)
    )
    queue = _BatchQueue(
        deque(batch._replace(rows=first_U[batch.rows]) for batch in of_distinct),
        lengths_N,
        fits=max(encoding.batch_tokens, int(lengths_N.max(initial=0))),
        on_halved=encoding.on_halved,
    )
    callback_lock = threading.Lock()

    def launch(batch: BatchRows) -> _InFlight | str:
        return _launch(batch, table, encoder, documents=encoding.documents, send=out.send)

    def finish(flight: _InFlight) -> None:
        flight.wait()
        out.place(flight.batch, flight.copies)
        times_B = np.array([len(out.duplicates[row]) for row in flight.batch.rows.tolist()])
        with callback_lock:
            encoding.on_batch(int(times_B.sum()), int((lengths_N[flight.batch.rows] * times_B).sum()))

    with device_errors(encoder.device), _executor(encoder.device, launch, finish) as executor:
        _encode_all(queue, executor, ids)
    return out.finished(ids)


class _Output(NamedTuple):
    """The vectors of all texts, allocated before the first batch, and the rows of each text in them."""

    encoder: Encoder
    encoding: Encoding
    by_dim: Mapping[int, Tensor]
    """[X, D] for each dim."""
    offsets_N: np.ndarray
    """N + 1 positions: where each text's vectors begin."""
    duplicates: Mapping[int, list[int]]
    """The rows of texts with identical token ids, by the first of them."""
    places: Mapping[int, Sequence[Tensor]]
    """Views of `by_dim`, one for each text."""

    @classmethod
    def of(cls, table: TokenTable, encoder: Encoder, encoding: Encoding) -> _Output:
        """Allocate the vectors of tokenised texts."""
        counts_N = _counts(table, encoder, documents=encoding.documents)
        offsets_N = offsets(counts_N)
        where = encoder.device if encoding.resident else torch.device("cpu")
        shapes = {dim: (int(offsets_N[-1]), _width(encoder, dim)) for dim in encoder.heads}
        by_dim = {dim: torch.empty(shape, dtype=encoding.storage, device=where) for dim, shape in shapes.items()}
        places = {dim: torch.split(vectors_XD, counts_N.tolist()) for dim, vectors_XD in by_dim.items()}
        return cls(encoder, encoding, by_dim, offsets_N, _duplicates(table), places)

    def send(self, vectors: BatchVectors, batch: BatchRows) -> BatchVectors:
        """Start copying a batch's vectors: to the host, or on the device to their place (then return none)."""
        storage = self.encoding.storage
        if not self.encoding.resident:
            return {dim: (_to_host(rows_XD, storage), counts_B) for dim, (rows_XD, counts_B) in vectors.items()}
        from_V, to_V = (
            self.encoder.upload(torch.from_numpy(place_V))
            for place_V in _copy_indices(batch.rows, self.duplicates, offsets_N=self.offsets_N)
        )
        for dim, (rows_XD, _) in vectors.items():
            self.by_dim[dim].index_copy_(0, to_V, rows_XD.to(storage).index_select(0, from_V))
        return {}

    def place(self, batch: BatchRows, copies: BatchVectors) -> None:
        """Copy vectors that reached the host to every text with these token ids."""
        rows = batch.rows.tolist()
        for dim, (vectors_XD, counts_B) in copies.items():
            for row, of_text in zip(rows, torch.split(vectors_XD, counts_B.tolist()), strict=True):
                for place in self.duplicates[row]:
                    self.places[dim][place].copy_(of_text)

    def finished(self, ids: Sequence[str]) -> dict[int, ShardVectors]:
        """Return the vectors once every batch is in place. Raises ModelError when one is not finite."""
        all_offsets = torch.from_numpy(self.offsets_N)
        for dim, vectors_XD in self.by_dim.items():
            _refuse_non_finite(Ragged(vectors_XD, all_offsets), ids, self.encoder, dim)
        return {
            dim: ShardVectors(tuple(ids), Ragged(vectors_XD, all_offsets)) for dim, vectors_XD in self.by_dim.items()
        }


def _duplicates(table: TokenTable) -> dict[int, list[int]]:
    """Return the rows of texts with identical token ids, by the first of them.

    On a GPU the shape of a batch can change the last bits of a vector. If identical texts were encoded apart, these
    bits would decide a tie between them.
    """
    groups: dict[tuple[bytes, int], list[int]] = {}
    for row, (begin, end) in enumerate(pairwise(table.offsets_N.tolist())):
        digest = hashlib.blake2b(table.ids_X[begin:end].tobytes(), digest_size=16).digest()
        groups.setdefault((digest, int(table.attended_N[row])), []).append(row)
    return {rows[0]: rows for rows in groups.values()}


def _copy_indices(
    rows: np.ndarray, duplicates: Mapping[int, list[int]], *, offsets_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each copied vector its row in the batch and its row in the output, [V] each.

    A text's vectors go to every text with identical token ids.

    >>> _copy_indices(np.array([2, 0]), {0: [0], 2: [1, 2]}, offsets_N=np.array([0, 1, 3, 5]))
    (array([0, 1, 0, 1, 2]), array([1, 2, 3, 4, 0]))
    """
    places = [duplicates[row] for row in rows.tolist()]
    place_P, counts_N = np.concatenate(places), np.diff(offsets_N)
    begin_B = np.cumsum(counts_N[rows]) - counts_N[rows]
    begin_P = np.repeat(begin_B, [len(of_text) for of_text in places])
    return _ranges(begin_P, counts_N[place_P]), _ranges(offsets_N[place_P], counts_N[place_P])


def _ranges(begin_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """Return the concatenated ranges `begin, …, begin + count - 1`.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    end_P = np.cumsum(count_P)
    ranges: np.ndarray = np.repeat(begin_P - end_P + count_P, count_P) + np.arange(count_P.sum())
    return ranges


class _BatchQueue:
    """The batches still to encode, and the largest batch that is known to fit memory."""

    def __init__(
        self, batches: deque[BatchRows], lengths_N: np.ndarray, *, fits: int, on_halved: Callable[[int, str], None]
    ) -> None:
        self._batches, self._fits, self._on_halved = batches, fits, on_halved
        self.lengths_N = lengths_N

    def __bool__(self) -> bool:
        return bool(self._batches)

    def next(self) -> BatchRows:
        """Take the next batch, halved until it has no more tokens than fit."""
        waiting = self._batches
        while waiting[0].size(self.lengths_N) > self._fits and len(waiting[0].rows) > 1:
            waiting.extendleft(reversed(halves(waiting.popleft())))
        return waiting.popleft()

    def put_back(self, batches: Sequence[BatchRows]) -> None:
        """Put batches back in front, in their order."""
        self._batches.extendleft(reversed(batches))

    def halve(self, batch: BatchRows, problem: str) -> None:
        """Put a batch back as two halves, and lower the limit to the larger half."""
        both = halves(batch)
        if (half := max(half.size(self.lengths_N) for half in both)) < self._fits:
            self._fits = half
            self._on_halved(half, problem)
        self.put_back(both)


def _encode_all(queue: _BatchQueue, executor: _Executor, ids: Sequence[str]) -> None:
    """Encode every batch, with up to `executor.max_in_flight` of them in flight.

    A batch that does not fit memory is halved. A single text that does not fit with others in flight is tried alone,
    and so are all batches after it. Raises DeviceError for a text that does not fit alone.
    """
    in_flight: deque[tuple[BatchRows, Callable[[], str]]] = deque()
    width, max_in_flight = -1, executor.max_in_flight
    while queue or in_flight:
        while queue and len(in_flight) < max_in_flight:
            batch = queue.next()
            if batch.width != width:
                memory.return_free_pages(above_bytes=memory.SLACK_BYTES)
                width = batch.width
            in_flight.append((batch, executor.start(batch)))
        oldest = [in_flight.popleft() for _ in range(min(len(in_flight), max(1, max_in_flight // 2)))]
        failed = _failed(oldest)
        if failed and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if max_in_flight > 1 and any(len(batch.rows) == 1 for batch, _ in failed):
            max_in_flight = 1
            queue.put_back([batch for batch, _ in [*failed, *_failed(in_flight)]])
            in_flight.clear()
            continue
        for batch, problem in reversed(failed):
            if len(batch.rows) == 1:
                msg = (
                    f"text {ids[int(batch.rows[0])]!r} of {int(queue.lengths_N[batch.rows[0]])} tokens does not fit "
                    f"memory on its own ({problem}); wanted a larger device, or a lower max_tokens of the model"
                )
                raise DeviceError(msg)
            queue.halve(batch, problem)


def _failed(in_flight: Iterable[tuple[BatchRows, Callable[[], str]]]) -> list[tuple[BatchRows, str]]:
    """Wait for some batches; return those that do not fit memory, each with the reason.

    The last one is waited for first: this thread then wakes up once and competes less for the GIL.
    """
    return [(batch, problem) for batch, outcome in reversed(list(in_flight)) if (problem := outcome())][::-1]


class _Executor(NamedTuple):
    """Runs batches concurrently."""

    max_in_flight: int
    """Most batches in flight."""
    start: Callable[[BatchRows], Callable[[], str]]
    """Starts a batch. The function that it returns waits for the batch and returns why it does not fit, or ""."""


@contextmanager
def _executor(
    device: torch.device, launch: Callable[[BatchRows], _InFlight | str], finish: Callable[[_InFlight], None]
) -> Iterator[_Executor]:
    """Yield an executor: on a CPU with a thread per core, else with two batches in flight.

    On a GPU one batch is prepared while the other is computed.
    """

    def outcome(started: _InFlight | str) -> str:
        if isinstance(started, str):
            return started
        finish(started)
        return ""

    if device.type != "cpu":

        def begun(batch: BatchRows) -> Callable[[], str]:
            started = launch(batch)
            return lambda: outcome(started)

        yield _Executor(2, begun)
        return
    count = torch.get_num_threads()
    with cores.thread_per_core(count) as submit:
        yield _Executor(BATCHES_PER_CORE * count, lambda batch: submit(lambda: outcome(launch(batch))).result)


BatchVectors: TypeAlias = Mapping[int, tuple[Tensor, Tensor]]
"""For each dim the vectors of a batch, concatenated [X, D], and the number of vectors of each text [B]."""


class _InFlight(NamedTuple):
    """A batch whose vectors are being computed or copied."""

    batch: BatchRows
    copies: BatchVectors
    """The vectors that are being copied to the host; empty if they stay on the device."""
    copied: torch.cuda.Event | None
    """Recorded after the copy; None on a CPU, where copies are synchronous."""

    def wait(self) -> None:
        """Wait until the vectors are computed and copied. Nowhere else does the host wait for the device."""
        if self.copied is not None:
            self.copied.synchronize()


def _launch(
    batch: BatchRows,
    texts: TokenTable,
    encoder: Encoder,
    *,
    documents: bool,
    send: Callable[[BatchVectors, BatchRows], BatchVectors],
) -> _InFlight | str:
    """Start a batch and the copy of its vectors. Return the reason if it does not fit memory."""
    try:
        model_input = encoder.batch(texts, skip_punctuation=documents, rows=batch.rows, width=batch.width or None)
        copies = send(encoder.vectors(model_input), batch)
        copied = None
        if encoder.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
            copied.record(torch.cuda.current_stream(encoder.device))
        return _InFlight(batch, copies, copied)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Only its text: the error itself holds the batch's tensors, whose memory the next attempt needs.
        return first_line(error)


def _to_host(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round and start a copy into pinned memory, which torch reuses for the next batch.

    On the CPU nothing is copied here: the vectors are rounded when they are copied to their place.
    """
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=dtype, pin_memory=True)
    return host.copy_(tensor.to(dtype), non_blocking=True)


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Raise the failure of a device as a DeviceError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)):
            raise
        reason = str(error).strip().partition("\n")[0]
        msg = (
            f"device {device} failed ({reason}); finished shards are kept: run the same command again when it is back, "
            "or elsewhere with engine.device"
        )
        raise DeviceError(msg) from error


def _counts(table: TokenTable, encoder: Encoder, *, documents: bool) -> np.ndarray:
    """Return the number of vectors of each text [N], which depends on its token ids only."""
    if encoder.config.pooling != "tokens":
        return np.ones(len(table), dtype=np.int64)
    kept_X = encoder.kept(table, skip_punctuation=documents)
    counts_N: np.ndarray = np.diff(offsets(kept_X)[table.offsets_N])
    return counts_N


def _width(encoder: Encoder, dim: int) -> int:
    head = encoder.heads[dim]
    return int(head.shape[0]) if isinstance(head, Tensor) else dim


def _refuse_non_finite(vectors: Ragged, ids: Sequence[str], encoder: Encoder, dim: int) -> None:
    """Raise ModelError that names the first text with a vector that is not finite, if there is one.

    A normalised vector is either finite or NaN in every component, so its first component is enough. Otherwise the
    minimum and maximum decide: they are NaN or infinite if any number is, and `isfinite` is many times slower on fp16.
    """
    first_XD = vectors.rows_XD[:, :1] if encoder.config.normalize else vectors.rows_XD
    if not first_XD.numel() or all(bool(torch.isfinite(extreme)) for extreme in first_XD.aminmax()):
        return
    bad_X = ~torch.isfinite(first_XD).all(1).cpu()
    owner = torch.repeat_interleave(torch.arange(len(ids)), vectors.lengths_N)[bad_X][0]
    msg = (
        f"text {ids[int(owner)]!r} has a vector that is not finite (model {label(encoder.config.name, dim)}, "
        f"{encoder.config.dtype}); rerun with model.dtype=float32"
    )
    raise ModelError(msg)
