"""The errors that a user can cause, each saying what was got, what was wanted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

MOST_NAMED: Final = 20
"""How many valid names a message lists: more than a line can hold help nobody."""


class EvalkitError(ValueError):
    """A user's input cannot be used; the message is one clear line and the command exits with `exit_code`."""

    exit_code = 1


class ConfigError(EvalkitError):
    """A setting, a name or a value on the command line is wrong."""

    exit_code = 2


class DatasetError(EvalkitError):
    """A corpus, query or qrels file is missing or malformed."""


class DeviationError(DatasetError):
    """A dataset can be read and is not the published one."""


class ModelError(EvalkitError):
    """A checkpoint or tokenizer is missing, malformed or not what the config says."""


class DeviceError(EvalkitError):
    """A device has failed, or one text alone does not fit its memory."""


class EngineError(EvalkitError):
    """Workers cannot be started or have gone, or shards failed on every worker that tried them."""


class StoreError(EvalkitError):
    """A checkpointed shard on disk is not what its manifest says."""


class ScoreError(EvalkitError):
    """A run cannot be scored, or a saved result cannot be read."""


def nearest(name: str, valid: Iterable[str], *, count: int = 3) -> str:
    """Return a clause naming the valid names nearest to `name`, or, when none is near, all of them up to MOST_NAMED.

    >>> nearest("scifcat", ["scifact", "scidocs", "fiqa"])
    'did you mean scifact?'
    >>> nearest("zzz", ["fiqa", "nq"])
    'valid: fiqa, nq'
    """
    names = sorted(set(valid))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"valid: {', '.join(names[:MOST_NAMED])}{more}"
