"""Content addresses: hashes of facts, and the run id that names a cell's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the content address of facts: 16 hexadecimal digits of XXH3, independent of their order.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    return xxhash.xxh3_64_hexdigest(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())


def run_id(dataset: str, split: str, model: str, dim: int | None, facts: Mapping[str, Any]) -> str:
    """Return the name of a cell: a readable part, followed by the hash that identifies it exactly.

    >>> run_id("beir/nfcorpus", "test", "bm25", None, {})[:24]
    'beir-nfcorpus.test.bm25.'
    """
    system = model if dim is None else f"{model}-{dim}"
    return f"{dataset.replace('/', '-')}.{split}.{system}.{key_of(facts)[:10]}"
