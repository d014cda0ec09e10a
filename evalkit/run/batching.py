"""Divide texts into batches: sorted by length, and padded to few widths or packed.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

WIDTH_RATIO = 1.05
"""Ratio of neighbouring padded widths: padding is 2.5 % on average, and native libraries cache few shapes."""


class BatchRows(NamedTuple):
    """The texts of one batch, by row, longest first, and the width to pad them to; 0 means that they are packed."""

    rows: np.ndarray
    width: int

    def size(self, lengths_N: np.ndarray) -> int:
        """Return the batch's number of tokens, padding included."""
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


def padded_batches(lengths_N: np.ndarray, *, batch_tokens: int, longest: int) -> Iterator[BatchRows]:
    """Yield padded batches of at most `batch_tokens` tokens, longest texts first.

    A text's padded width depends only on its own length, so its vectors do not depend on the other texts of the batch.
    All batches of one width have the same number of texts, except the last ones, whose sizes are powers of two: a long
    run therefore sees all its shapes early. A text longer than `batch_tokens` is a batch of its own.
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
        yield BatchRows(order_N[begin : begin + texts], width)
        begin += texts


def packed_batches(lengths_N: np.ndarray, *, batch_tokens: int) -> Iterator[BatchRows]:
    """Yield batches without padding, longest texts first, each filled up to `batch_tokens` tokens."""
    order_N = np.argsort(-lengths_N, kind="stable")
    ends_N = np.cumsum(lengths_N[order_N])
    begin = 0
    while begin < len(order_N):
        before = int(ends_N[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends_N, before + batch_tokens, side="right")))
        yield BatchRows(order_N[begin:end], 0)
        begin = end


def batches(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of texts, longest first, in batches of at most `batch_tokens` tokens, padding included.

    >>> list(batches([2, 9, 3, 2], batch_tokens=6))
    [[1], [2], [0, 3]]
    """
    lengths_N = np.array(lengths, dtype=np.int64)
    for batch in padded_batches(lengths_N, batch_tokens=batch_tokens, longest=int(lengths_N.max(initial=1))):
        yield [int(row) for row in batch.rows]


def halves(batch: BatchRows) -> list[BatchRows]:
    """Return a batch as two; the first has one text more if their number is odd."""
    middle = -(-len(batch.rows) // 2)
    return [BatchRows(batch.rows[:middle], batch.width), BatchRows(batch.rows[middle:], batch.width)]
