"""Content addresses: hashes of facts, and the run id that names a cell's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from evalkit.texts import in_path


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
    return f"{dataset.replace('/', '-')}.{split}.{in_path(system_label(model, dim))}.{key_of(facts)[:10]}"


def system_label(model: str, dim: int | None) -> str:
    """Return the name of a system at a dim as run ids and file names spell it. For people see `label`.

    >>> system_label("demo", 64), system_label("bm25", None)
    ('demo-64', 'bm25')
    """
    return model if dim is None else f"{model}-{dim}"


def label(model: str, *dims: int | None) -> str:
    """Return the name of a system at its dims for people, which commands accept too: a colon separates the dims.

    >>> label("demo", 64), label("demo", 128, 64), label("bm25", None), label("bm25")
    ('demo:64', 'demo:128,64', 'bm25', 'bm25')
    """
    known = [str(dim) for dim in dims if dim is not None]
    return f"{model}:{','.join(known)}" if known else model
