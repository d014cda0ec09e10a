"""Texts to vectors: sort by length, cut into batches of few shapes, encode, put back in order.

Shapes: N texts, X vectors of all texts packed, D dim, T padded width.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
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
from evalkit.storage.keys import label
from evalkit.storage.shard_files import ShardVectors

log = logging.getLogger(__name__)

WIDTH_RATIO = 1.05
"""Padded widths are this far apart: 2.5 % of padding on average, and few enough shapes for native libraries' caches."""


IN_LINE = 16
"""Batches handed to each core's thread ahead: no core waits for the thread that hands them out."""


class Cut(NamedTuple):
    """Some texts to encode together, longest first, and the width that they are padded to; 0 where they are packed."""

    rows: np.ndarray
    width: int

    def size(self, lengths_N: np.ndarray) -> int:
        """Return the tokens of the batch, padded ones among them."""
        return self.width * len(self.rows) if self.width else int(lengths_N[self.rows].sum())


@cache
def widths(longest: int) -> np.ndarray:
    """Return the widths that texts of at most `longest` tokens are padded to, ascending.

    >>> widths(300)[-3:].tolist()
    [273, 286, 300]
    """
    steps = [longest]
    while steps[-1] > 1:
        steps.append(min(steps[-1] - 1, int(-(-steps[-1] // WIDTH_RATIO))))
    return np.array(steps[::-1])


def cuts(lengths_N: np.ndarray, *, batch_tokens: int, longest: int) -> Iterator[Cut]:
    """Yield padded batches, longest texts first, whose size stays within the budget.

    A text's own length decides the width that it is padded to, in whatever company: on a core of its own a batch then
    gives it the same bits always. A width has one number of texts, and what is left of it is cut by powers of two, so
    that a long run meets all its shapes early. A text longer than the budget is a batch of its own.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    fine = widths(max(longest, int(lengths_N.max(initial=1))))
    width_N = fine[np.searchsorted(fine, lengths_N[order_N])]
    begin = 0
    while begin < len(order_N):
        width = int(width_N[begin])
        left = int(np.searchsorted(-width_N, -width, side="right")) - begin
        texts = max(1, batch_tokens // width)
        if left < texts:
            texts = 1 << (left.bit_length() - 1)
        yield Cut(order_N[begin : begin + texts], width)
        begin += texts


def packed_cuts(lengths_N: np.ndarray, *, batch_tokens: int) -> Iterator[Cut]:
    """Yield batches of texts that need no padding, longest first, of as many tokens as the budget has."""
    order_N = np.argsort(-lengths_N, kind="stable")
    ends_N = np.cumsum(lengths_N[order_N])
    begin = 0
    while begin < len(order_N):
        before = int(ends_N[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends_N, before + batch_tokens, side="right")))
        yield Cut(order_N[begin:end], 0)
        begin = end


def batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of texts, longest first, in batches whose padded size stays within the budget.

    >>> list(batches([2, 9, 3, 2], batch_tokens=6))
    [[1], [2], [0, 3]]
    """
    lengths_N = np.array(lengths, dtype=np.int64)
    for cut in cuts(lengths_N, batch_tokens=batch_tokens, longest=int(lengths_N.max(initial=1))):
        yield [int(row) for row in cut.rows]


def say_halved(tokens: int, reason: str) -> None:
    """Report a batch that did not fit."""
    log.warning("a batch did not fit memory (%s): batches hold %d tokens at most from here on", reason, tokens)


def encode(  # noqa: PLR0913 (keyword-only behind the first three)
    ids: Sequence[str],
    texts: Sequence[Tokens],
    encoder: Encoder,
    *,
    documents: bool,
    batch_tokens: int,
    storage: torch.dtype,
    resident: bool = False,
    on_batch: Callable[[int, int], None] = lambda _texts, _tokens: None,
    on_halved: Callable[[int, str], None] = say_halved,
) -> dict[int, ShardVectors]:
    """Encode tokenised texts at every dim of the encoder.

    `on_batch` hears of texts and tokens done, from any of the threads that encode but from one at a time.
    `documents` drops the model's punctuation tokens. Texts of equal ids are encoded once. Vectors are rounded to
    `storage` here, once: whatever is searched is what is stored. They come to the host, or stay on the encoder's device
    where `resident` is true. A batch that does not fit memory is halved, and so are those behind it; `on_halved` hears
    of the tokens that batches have from there on, and why. Raises ModelError that names the text when a vector is not
    finite, DeviceError when one text alone does not fit or the device fails.
    """
    memory.keep_between_batches()
    table = TokenTable.of(texts)
    lengths_N = table.lengths_N
    counts_N = _counts(table, encoder, documents=documents)
    offsets_N = offsets(counts_N)
    where = encoder.device if resident else torch.device("cpu")
    shapes = {dim: (int(offsets_N[-1]), _width(encoder, dim)) for dim in encoder.heads}
    out = {dim: torch.empty(shape, dtype=storage, device=where) for dim, shape in shapes.items()}
    places = {dim: torch.split(vectors_XD, counts_N.tolist()) for dim, vectors_XD in out.items()}

    alike = _alike(table)
    first_U = np.array(list(alike), dtype=np.int64)
    rules = encoder.config.document if documents else encoder.config.query
    of_distinct = (
        cuts(lengths_N[first_U], batch_tokens=batch_tokens, longest=rules.max_tokens)
        if encoder.attention == "sdpa"
        else packed_cuts(lengths_N[first_U], batch_tokens=batch_tokens)
    )
    todo = (cut._replace(rows=first_U[cut.rows]) for cut in of_distinct)

    def send(vectors: Vectors, cut: Cut) -> Vectors:
        if not resident:
            return {dim: (_to_host(packed_XD, storage), counts_B) for dim, (packed_XD, counts_B) in vectors.items()}
        from_V, to_V = (
            encoder.upload(torch.from_numpy(place_V)) for place_V in _moves(cut.rows, alike, offsets_N=offsets_N)
        )
        for dim, (packed_XD, _) in vectors.items():
            out[dim].index_copy_(0, to_V, packed_XD.to(storage).index_select(0, from_V))
        return {}

    def launch(cut: Cut) -> _Flight | str:
        return _launch(cut, table, encoder, documents=documents, send=send)

    one_at_a_time = threading.Lock()

    def land(flight: _Flight) -> None:
        flight.wait()
        rows = flight.cut.rows.tolist()
        for dim, (vectors_XD, counts_B) in flight.copies.items():
            for row, of_text in zip(rows, torch.split(vectors_XD, counts_B.tolist()), strict=True):
                for place in alike[row]:
                    places[dim][place].copy_(of_text)
        times_B = np.array([len(alike[row]) for row in rows])
        with one_at_a_time:
            on_batch(int(times_B.sum()), int((lengths_N[flight.cut.rows] * times_B).sum()))

    with device_errors(encoder.device), _lanes(encoder.device, launch, land) as lanes:
        _land_all(todo, lanes, ids, lengths_N, batch_tokens=batch_tokens, on_halved=on_halved)
    whole = torch.from_numpy(offsets_N)
    for dim, vectors_XD in out.items():
        _refuse_unfinite(Ragged(vectors_XD, whole), ids, encoder, dim)
    return {dim: ShardVectors(tuple(ids), Ragged(vectors_XD, whole)) for dim, vectors_XD in out.items()}


def _alike(table: TokenTable) -> dict[int, list[int]]:
    """Return the places of texts of equal ids, by the first of them.

    On a GPU batches of another shape can move the last bits of a vector: were equal texts encoded apart, a tie between
    them would be decided by chance.
    """
    groups: dict[tuple[bytes, int], list[int]] = {}
    for row, (begin, end) in enumerate(pairwise(table.offsets_N.tolist())):
        digest = hashlib.blake2b(table.ids_X[begin:end].tobytes(), digest_size=16).digest()
        groups.setdefault((digest, int(table.attended_N[row])), []).append(row)
    return {rows[0]: rows for rows in groups.values()}


def _moves(rows: np.ndarray, alike: Mapping[int, list[int]], *, offsets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a batch's vectors go where [V]: those of a text to each place of one of equal ids.

    >>> _moves(np.array([2, 0]), {0: [0], 2: [1, 2]}, offsets_N=np.array([0, 1, 3, 5]))
    (array([0, 1, 0, 1, 2]), array([1, 2, 3, 4, 0]))
    """
    places = [alike[row] for row in rows.tolist()]
    place_P, counts_N = np.concatenate(places), np.diff(offsets_N)
    begin_B = np.cumsum(counts_N[rows]) - counts_N[rows]
    begin_P = np.repeat(begin_B, [len(of_text) for of_text in places])
    return _ranges(begin_P, counts_N[place_P]), _ranges(offsets_N[place_P], counts_N[place_P])


def _ranges(begin_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """Return ranges one behind the other.

    >>> _ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    behind_P = np.cumsum(count_P)
    ranges: np.ndarray = np.repeat(begin_P - behind_P + count_P, count_P) + np.arange(count_P.sum())
    return ranges


def _land_all(  # noqa: PLR0913 (keyword-only behind the first four)
    cuts_to_do: Iterable[Cut],
    lanes: _Lanes,
    ids: Sequence[str],
    lengths_N: np.ndarray,
    *,
    batch_tokens: int,
    on_halved: Callable[[int, str], None],
) -> None:
    """See that the vectors of every batch come to their places.

    A batch that does not fit is halved, and whatever behind it is as large. A text that does not fit beside others is
    tried alone, and so is all behind it. Raises DeviceError for one that does not fit alone.
    """
    todo = deque(cuts_to_do)
    fits = max(batch_tokens, int(lengths_N.max(initial=0)))
    flying: deque[tuple[Cut, Callable[[], str]]] = deque()
    width, at_once = -1, lanes.at_once
    while todo or flying:
        while todo and len(flying) < at_once:
            cut = _next(todo, lengths_N, fits=fits)
            if cut.width != width:
                memory.give_back(above_bytes=memory.SLACK_BYTES)
                width = cut.width
            flying.append((cut, lanes.start(cut)))
        oldest = [flying.popleft() for _ in range(min(len(flying), max(1, at_once // 2)))]
        failed = _failed(oldest)
        if failed and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if at_once > 1 and any(len(cut.rows) == 1 for cut, _ in failed):
            at_once = 1
            todo.extendleft(cut for cut, _ in reversed([*failed, *_failed(flying)]))
            flying.clear()
            continue
        for cut, problem in reversed(failed):
            if len(cut.rows) == 1:
                msg = (
                    f"text {ids[int(cut.rows[0])]!r} of {int(lengths_N[cut.rows[0]])} tokens does not fit memory on "
                    f"its own ({problem}); wanted a larger device, or a lower max_tokens of the model"
                )
                raise DeviceError(msg)
            halves = _halves(cut)
            if (half := max(half.size(lengths_N) for half in halves)) < fits:
                fits = half
                on_halved(fits, problem)
            todo.extendleft(reversed(halves))


def _failed(flying: Iterable[tuple[Cut, Callable[[], str]]]) -> list[tuple[Cut, str]]:
    """Wait for some batches; return those that do not fit, and why.

    The last is waited for first: this thread then sleeps once, and the others keep Python's lock among themselves.
    """
    return [(cut, problem) for cut, outcome in reversed(list(flying)) if (problem := outcome())][::-1]


def _next(todo: deque[Cut], lengths_N: np.ndarray, *, fits: int) -> Cut:
    """Take the next batch, halved until it has no more tokens than fit."""
    while todo[0].size(lengths_N) > fits and len(todo[0].rows) > 1:
        todo.extendleft(reversed(_halves(todo.popleft())))
    return todo.popleft()


class _Lanes(NamedTuple):
    """How batches go side by side."""

    at_once: int
    """How many are begun before the first of them must have come to something."""
    start: Callable[[Cut], Callable[[], str]]
    """Starts a batch; what it returns waits for the batch and says why it does not fit, empty where it does."""


@contextmanager
def _lanes(
    device: torch.device, launch: Callable[[Cut], _Flight | str], land: Callable[[_Flight], None]
) -> Iterator[_Lanes]:
    """Yield a lane for each core, or two for a device that works on one batch while the other is on its way."""

    def landed(started: _Flight | str) -> str:
        if isinstance(started, str):
            return started
        land(started)
        return ""

    if device.type != "cpu":

        def begun(cut: Cut) -> Callable[[], str]:
            started = launch(cut)
            return lambda: landed(started)

        yield _Lanes(2, begun)
        return
    count = torch.get_num_threads()
    with cores.a_core_each(count) as submit:
        yield _Lanes(IN_LINE * count, lambda cut: submit(lambda: landed(launch(cut))).result)


def _halves(cut: Cut) -> list[Cut]:
    middle = -(-len(cut.rows) // 2)
    first, second = cut.rows[:middle], cut.rows[middle:]
    return [Cut(first, cut.width), Cut(second, cut.width)]


Vectors: TypeAlias = Mapping[int, tuple[Tensor, Tensor]]
"""By dim the vectors of a batch, packed, and how many each text has."""


class _Flight(NamedTuple):
    """A batch whose vectors are on their way; there once `landed` is (None: they are there)."""

    cut: Cut
    copies: Vectors
    """Those that go to the host; none where they stay on the device."""
    landed: torch.cuda.Event | None

    def wait(self) -> None:
        """Return once the vectors are there: the one point at which the host waits for the device."""
        if self.landed is not None:
            self.landed.synchronize()


def _launch(
    cut: Cut, texts: TokenTable, encoder: Encoder, *, documents: bool, send: Callable[[Vectors, Cut], Vectors]
) -> _Flight | str:
    """Start a batch and send its vectors on their way. Return why it does not fit where it does not."""
    try:
        batch = encoder.batch(texts, skip_punctuation=documents, rows=cut.rows, width=cut.width or None)
        copies = send(encoder.vectors(batch), cut)
        landed = None
        if encoder.device.type == "cuda":
            landed = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
            landed.record(torch.cuda.current_stream(encoder.device))
        return _Flight(cut, copies, landed)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Only its text: the error itself holds the batch's tensors, whose memory the next attempt needs.
        return first_line(error)


def _to_host(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round and start a copy into pinned memory, which torch keeps for the next batch.

    On the CPU there is nothing to copy: numbers are rounded on their way to their place.
    """
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=dtype, pin_memory=True)
    return host.copy_(tensor.to(dtype), non_blocking=True)


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Turn the failure of a device into one clear line. Raises DeviceError."""
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
    """Return how many vectors each text will have [N], known from the ids alone."""
    if encoder.config.pooling != "tokens":
        return np.ones(len(table), dtype=np.int64)
    kept_X = encoder.kept(table, skip_punctuation=documents)
    counts_N: np.ndarray = np.diff(offsets(kept_X)[table.offsets_N])
    return counts_N


def _width(encoder: Encoder, dim: int) -> int:
    head = encoder.heads[dim]
    return int(head.shape[0]) if isinstance(head, Tensor) else dim


def _refuse_unfinite(vectors: Ragged, ids: Sequence[str], encoder: Encoder, dim: int) -> None:
    """Raise ModelError that names the first text with a vector that is not finite, if there is one.

    A vector that was brought to unit length is finite throughout or NaN throughout, so its first number tells. Others
    by their extremes, which are NaN or infinite where any number is: `isfinite` takes many times longer over fp16.
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
