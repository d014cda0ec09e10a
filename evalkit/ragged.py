"""Concatenated rows of several texts with their offsets: the layout of token ids, vectors and kernel inputs.

Shapes: N texts, X rows of all texts, D dim. Text i owns the rows from `offsets_N[i]` to `offsets_N[i + 1]`.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor


class Ragged(NamedTuple):
    """Vectors of several texts: one row per vector, and N + 1 int64 offsets on the CPU."""

    rows_XD: Tensor
    offsets_N: Tensor

    @property
    def lengths_N(self) -> Tensor:
        """Rows per text [N]."""
        return self.offsets_N.diff()


def ragged(rows_XD: Tensor, lengths_N: Tensor) -> Ragged:
    """Return concatenated rows with their offsets, given the number of rows per text [N].

    >>> ragged(torch.zeros(3, 2), torch.tensor([2, 1])).offsets_N.tolist()
    [0, 2, 3]
    """
    return Ragged(rows_XD, offsets(lengths_N))


@overload
def offsets(lengths_N: Tensor) -> Tensor: ...
@overload
def offsets(lengths_N: np.ndarray) -> np.ndarray: ...
def offsets(lengths_N: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Return the N + 1 int64 offsets of N texts: where each text begins and where the last one ends.

    >>> offsets(np.array([2, 0, 1])).tolist()
    [0, 2, 2, 3]
    """
    if isinstance(lengths_N, Tensor):
        return torch.cat([lengths_N.new_zeros(1, dtype=torch.int64), lengths_N.to(torch.int64).cumsum(0)])
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths_N, dtype=np.int64)])
