"""Texts to vectors: tokenise once, sort by length, cut into batches of a token budget, encode, put back in order.

Shapes: N texts, X vectors of all texts packed, D dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from evalkit.errors import ModelError
from evalkit.models.encoder import Encoder
from evalkit.models.tokens import Tokens
from evalkit.store import ShardVectors


def batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of texts, longest first, in batches whose padded size stays within the budget.

    A text longer than the budget is a batch of its own. Sorting by tokens makes padding next to nothing.

    >>> list(batches([2, 9, 3, 2], batch_tokens=6))
    [[1], [2, 0], [3]]
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def encode(  # noqa: PLR0913 (keyword-only behind the first three)
    ids: Sequence[str],
    texts: Sequence[Tokens],
    encoder: Encoder,
    *,
    documents: bool,
    batch_tokens: int,
    storage: torch.dtype,
    on_batch: Callable[[int, int], None] = lambda _texts, _tokens: None,
) -> dict[int, ShardVectors]:
    """Encode tokenised texts at every dim of the encoder; `on_batch` hears of texts and tokens done.

    `documents` drops the model's punctuation tokens. Vectors are rounded to `storage` here, once: whatever is
    searched is what is stored. Raises ModelError that names the text when a vector is not finite.
    """
    lengths_N = _kept(texts, encoder, documents=documents)
    start_N = np.concatenate([[0], np.cumsum(lengths_N)])
    out = {dim: torch.empty((int(start_N[-1]), _width(encoder, dim)), dtype=storage) for dim in encoder.heads}
    for batch in batches([len(text.ids) for text in texts], batch_tokens=batch_tokens):
        rows = torch.from_numpy(np.concatenate([np.arange(start_N[i], start_N[i + 1]) for i in batch]))
        vectors = encoder.vectors(encoder.batch([texts[i] for i in batch], skip_punctuation=documents))
        for dim, (packed_XD, counts_B) in vectors.items():
            rounded_XD = packed_XD.to("cpu").to(storage)
            if not bool(torch.isfinite(rounded_XD).all()):
                _refuse_unfinite(rounded_XD, counts_B, [ids[i] for i in batch], encoder, dim)
            out[dim][rows] = rounded_XD
        on_batch(len(batch), sum(len(texts[i].ids) for i in batch))
    lengths = torch.from_numpy(lengths_N)
    return {dim: ShardVectors(tuple(ids), lengths, vectors_XD) for dim, vectors_XD in out.items()}


def _kept(texts: Sequence[Tokens], encoder: Encoder, *, documents: bool) -> np.ndarray:
    """Return how many vectors each text will have [N], known from the ids alone."""
    if encoder.config.pooling != "tokens":
        return np.ones(len(texts), dtype=np.int64)
    skipped = frozenset(encoder.skipped.tolist()) if documents else frozenset()
    return np.array([sum(token not in skipped for token in text.ids) for text in texts], dtype=np.int64)


def _width(encoder: Encoder, dim: int) -> int:
    head = encoder.heads[dim]
    return dim if head is None else int(head.shape[0])


def _refuse_unfinite(vectors_XD: Tensor, counts_B: Tensor, ids: Sequence[str], encoder: Encoder, dim: int) -> None:
    bad_X = ~torch.isfinite(vectors_XD).all(1)
    owner = torch.repeat_interleave(torch.arange(len(ids)), counts_B)[bad_X][0]
    msg = (
        f"text {ids[int(owner)]!r} has a vector that is not finite (model {encoder.config.name}, dim {dim}, "
        f"{encoder.config.dtype}); rerun with model.dtype=float32"
    )
    raise ModelError(msg)
