"""Engines decide where the shard step runs. Each maps one idempotent step over the shards of a corpus."""
