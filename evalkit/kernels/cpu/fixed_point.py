"""Vectors as 16-bit whole numbers, which some vector units multiply twice as fast as fp32 and add without rounding.

Shapes: X vectors, packed, D dim.

A vector is multiplied by a scale and rounded; its largest number could be 32,767. Products and sums of whole numbers
are exact, in any order, and by Cauchy and Schwarz no sum leaves 32 bits. So what rounding takes away at the start is
all that is lost: half a unit a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 32_767
"""The largest 16-bit number."""
_HALF = 0.51
"""Half a unit, and what the multiplication by the scale rounds in fp32: at most 32,767 · 2⁻²⁴."""


def scales(norm_X: Tensor) -> Tensor:
    """Return what vectors, given upper bounds of their norms, are multiplied by [X], in fp32.

    >>> scales(torch.tensor([1.0, 0.5, 0.0])).tolist()
    [32767.0, 65534.0, 1.0]
    """
    return torch.where(norm_X > 0, LARGEST / norm_X.double(), 1.0).float()


def rounded(vectors_XD: Tensor, scale: Tensor | float) -> Tensor:
    """Return vectors times their scale, to the nearest whole number, as int16 [X, D].

    >>> rounded(torch.tensor([[0.5, -0.25]]), 32767.0).tolist()
    [[16384, -8192]]
    """
    return (vectors_XD.float() * scale).round_().to(torch.int16)


def residual_norm(dim: int, scale: Tensor) -> Tensor:
    """Return the largest norm of what rounding can take away from a vector, in fp64."""
    return torch.full_like(scale, _HALF * dim**0.5, dtype=torch.float64) / scale
