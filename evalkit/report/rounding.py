"""Format numbers. Only here are values rounded for display: half up, in decimal."""

from __future__ import annotations

from evalkit.scoring.decimals import rounded

ABSENT = "–"
"""Printed in place of a missing number."""


def fixed(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals, rounded half up; a dash for None.

    >>> fixed(0.32545, 4), fixed(0.123455, 5), fixed(None, 3)
    ('0.3255', '0.12346', '–')
    """
    return ABSENT if value is None else f"{rounded(value, digits):.{digits}f}"


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign and `digits` decimals, rounded half up; there is no negative zero.

    >>> signed(-0.00001, 4), signed(-0.0012, 4)
    ('+0.0000', '-0.0012')
    """
    return f"{rounded(value, digits) + 0.0:+.{digits}f}"


def p_value(p: float) -> str:
    """Return a p-value with four decimals; a smaller one is not printed as zero.

    >>> p_value(0.03125), p_value(1e-9)
    ('0.0313', '<0.0001')
    """
    return fixed(p, 4) if p >= 0.0001 else "<0.0001"


def count(number: float | None) -> str:
    """Return a whole number in groups of three digits; a dash for None.

    >>> count(57638), count(None)
    ('57,638', '–')
    """
    return ABSENT if number is None else f"{rounded(number, 0):,.0f}"


def grouped(value: float, digits: int) -> str:
    """Return a number with `digits` decimals, rounded half up, in groups of three digits.

    >>> grouped(1234.25, 1)
    '1,234.3'
    """
    return f"{rounded(value, digits):,.{digits}f}"


def dim(value: int | None) -> str:
    """Return a dim; a dash for a system without vectors."""
    return ABSENT if value is None else str(value)


def scaled(value: float, *, narrow: bool = False) -> str:
    """Return a number of a unit with one decimal; for a narrow column with none from 10 on.

    >>> scaled(1234.25), scaled(1234.25, narrow=True), scaled(2.25, narrow=True), scaled(12.46, narrow=True)
    ('1,234.3', '1,234', '2.3', '12')
    """
    return grouped(value, 0 if narrow and rounded(value, 1) >= 10 else 1)


def size(size_bytes: float | None, *, narrow: bool = False) -> str:
    """Return a size in B, kB, MB, GB or TB; a dash for None.

    >>> size(0), size(1_500_000), size(None), size(697_460_000_000, narrow=True)
    ('0 B', '1.5 MB', '–', '697 GB')
    """
    if size_bytes is None:
        return ABSENT
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{scaled(size_bytes / factor, narrow=narrow)} {unit}"
    return f"{count(size_bytes)} B"


def duration(seconds: float | None, *, narrow: bool = False) -> str:
    """Return a duration in seconds, minutes or hours; for a narrow column without decimals of minutes.

    >>> duration(0.2), duration(90), duration(7260), duration(None), duration(1456, narrow=True)
    ('0 s', '1.5 min', '2.0 h', 'unknown', '24 min')
    """
    if seconds is None:
        return "unknown"
    if seconds >= 3600:
        return f"{scaled(seconds / 3600, narrow=narrow)} h"
    if seconds >= 60:
        return f"{grouped(seconds / 60, 0 if narrow else 1)} min"
    return f"{count(seconds)} s"
