"""The rounding rule of scores: half up in decimal, after floating-point noise is removed.

The mean of ten values can be .1375 on paper and .13749999999999998 as a float: noise is what lies beyond the twelfth
decimal.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

NOISE_DIGITS = 12
"""Decimals of a mean that the rounding errors of its summation cannot reach."""


def rounded(value: float, digits: int) -> float:
    """Round half up in decimal.

    >>> rounded(0.1245, 3), rounded(0.6275, 3), rounded(0.13749999999999998, 3), round(0.1245, 3)
    (0.125, 0.628, 0.138, 0.124)
    """
    return float(as_decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP))


def as_decimal(value: float) -> Decimal:
    """Return a float as a decimal without floating-point noise."""
    return Decimal(repr(round(float(value), NOISE_DIGITS)))  # the repr of numpy's numbers contains their type
