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
    """Yield the step's result for each shard, in order. The step skips by itself what is already checkpointed.

    `ahead` hears of each shard while the one before it has its turn.
    """
    following = iter(shards)
    shard = next(following, None)
    while shard is not None:
        coming = next(following, None)
        if coming is not None:
            ahead(coming)
        yield step(shard)
        shard = coming
