"""The local engine: one shard after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from evalkit.datasets.survey import ShardRange

Result = TypeVar("Result")


def map_shards(step: Callable[[ShardRange], Result], shards: Iterable[ShardRange]) -> Iterator[Result]:
    """Yield the step's result for each shard, in order. The step skips by itself what is already checkpointed."""
    for shard in shards:
        yield step(shard)
