"""Vectors as 16-bit integers, which some vector units multiply twice as fast as fp32 and add without rounding.

Shapes: X vectors, concatenated, D dim.

A vector is multiplied by a scale and rounded; no number then exceeds 32,767. Integer products and sums are exact in any
order, and no sum exceeds 32 bits (Cauchy-Schwarz). The only error is the first rounding, half a unit per number.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 32_767
"""The largest 16-bit number."""
_HALF = 0.51
"""Half a unit, plus the fp32 rounding error of multiplying by the scale: at most 32,767 · 2⁻²⁴."""


def scales(norm_X: Tensor) -> Tensor:
    """Return the factor of each vector [X] in fp32, given upper bounds of the norms.

    >>> scales(torch.tensor([1.0, 0.5, 0.0])).tolist()
    [32767.0, 65534.0, 1.0]
    """
    return torch.where(norm_X > 0, LARGEST / norm_X.double(), 1.0).float()


def rounded(vectors_XD: Tensor, scale: Tensor | float) -> Tensor:
    """Return vectors times their scale, rounded to the nearest integer, as int16 [X, D].

    >>> rounded(torch.tensor([[0.5, -0.25]]), 32767.0).tolist()
    [[16384, -8192]]
    """
    return (vectors_XD.float() * scale).round_().to(torch.int16)


def residual_norm(dim: int, scale: Tensor) -> Tensor:
    """Return an upper bound, in fp64, of the norm of the rounding error of a vector with `dim` numbers."""
    return torch.full_like(scale, _HALF * dim**0.5, dtype=torch.float64) / scale
