"""Engines decide where the shard step runs. Each maps one idempotent step over the shards of a corpus.

`local` is a loop in this process. `ray` sends shards to workers: `ray_cluster` starts or joins Ray, and `ray_worker` is
what runs in a worker's process.
"""
