"""The local engine: one shard after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from evalkit.datasets.survey import ShardRange

Result = TypeVar("Result")


def map_shards(
    step: Callable[[ShardRange], Result],
    shards: Iterable[ShardRange],
    *,
    ahead: Callable[[ShardRange], None] = lambda _shard: None,
) -> Iterator[Result]:
    """Yield the step's result for each shard, in order. The step itself skips work that is already checkpointed.

    `ahead(shard)` is called with the next shard before the step runs on the current one.
    """
    remaining = iter(shards)
    shard = next(remaining, None)
    while shard is not None:
        next_shard = next(remaining, None)
        if next_shard is not None:
            ahead(next_shard)
        yield step(shard)
        shard = next_shard
