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
    """Yield the step's result for each shard, in order. The step itself reuses what is already checkpointed.

    `ahead(shard)` is called for the next shard before the step runs on the current one.
    """
    following = iter(shards)
    shard = next(following, None)
    while shard is not None:
        coming = next(following, None)
        if coming is not None:
            ahead(coming)
        yield step(shard)
        shard = coming
