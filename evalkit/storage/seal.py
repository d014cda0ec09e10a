"""JSON records that carry a checksum of everything they say, so that a damaged or edited one is told from a whole one.

The checksum is taken over the values, not over the bytes: layout may change, no value, key or type may.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from evalkit.storage import outside

FIELD = "xxh3_128"
"""The record's own checksum; it covers every other field."""


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as JSON will hold it, with its checksum as the last field.

    >>> seal({"a": 1})
    {'a': 1, 'xxh3_128': '8f1c29f50aa952dbd475f930065b4b4f'}
    """
    plain = json.loads(json.dumps(values))  # tuples and numeric keys as they will be read back
    return {**plain, FIELD: _checksum(plain)}


def parse(data: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object in UTF-8. Raises ValueError, in one line, for anything else."""
    return outside.json_object(data)


def unseal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its checksum. Raises ValueError when it carries none or another one."""
    if FIELD not in values:
        msg = f"got no {FIELD}, wanted the checksum of what it says"
        raise ValueError(msg)
    plain = {name: value for name, value in values.items() if name != FIELD}
    if (got := _checksum(plain)) != values[FIELD]:
        msg = f"its content has checksum {got}, its {FIELD} says {str(values[FIELD])[:40]!r}"
        raise ValueError(msg)
    return plain


def read(data: bytes) -> dict[str, Any]:
    """Return the record in a file's bytes. Raises ValueError, in one line, when it is damaged or was edited."""
    return unseal(parse(data))


def _checksum(plain: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())
