"""JSON records with a checksum of their content, which detects damaged and edited records.

The checksum covers the values and not the bytes: the layout of the file may change, but no key, value or type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from evalkit.storage import untrusted

FIELD = "xxh3_128"
"""The field with the record's own checksum, which covers every other field."""


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as JSON stores it, with its checksum as the last field.

    >>> seal({"a": 1})
    {'a': 1, 'xxh3_128': '8f1c29f50aa952dbd475f930065b4b4f'}
    """
    plain = json.loads(json.dumps(values))  # converts tuples and numeric keys to what is read back
    return {**plain, FIELD: _checksum(plain)}


def unseal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its checksum. Raises ValueError if the checksum is missing or does not match."""
    if FIELD not in values:
        msg = f"got no {FIELD}, wanted the checksum of its content"
        raise ValueError(msg)
    plain = {name: value for name, value in values.items() if name != FIELD}
    if (got := _checksum(plain)) != values[FIELD]:
        msg = f"its content has checksum {got}, its {FIELD} is {str(values[FIELD])[:40]!r}"
        raise ValueError(msg)
    return plain


def read(data: bytes) -> dict[str, Any]:
    """Return the record in a file's bytes. Raises ValueError with a one-line message if it is damaged or edited."""
    return unseal(untrusted.json_object(data))


def _checksum(plain: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())
