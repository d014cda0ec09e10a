"""The errors that a user can cause. Each message says what was got, what was wanted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final, NamedTuple, Self

from evalkit import texts

MOST_NAMED: Final = 20
"""The maximum number of valid names that a message lists."""


class Tried(NamedTuple):
    """A failure to obtain something: what was tried, why it failed, what to do."""

    what: str
    why: str
    remedy: str


class EvalkitError(ValueError):
    """An error that the user can fix. The command prints its message, one line, and exits with `exit_code`.

    Line breaks, terminal escapes and secrets are removed from the message here, before it is printed or stored.
    """

    exit_code = 1
    tried: Tried | None = None
    """The parts of the message if something could not be fetched; the command prints each on a line of its own."""

    @classmethod
    def unobtainable(cls, tried: Tried) -> Self:
        """Return the error for something that could not be fetched."""
        error = cls(f"{tried.what}: {tried.why}; {tried.remedy}")
        error.tried = tried
        return error

    def __init__(self, message: str = "") -> None:
        """Make the message one printable line without secrets."""
        super().__init__(texts.one_line(message))


class ConfigError(EvalkitError):
    """A setting, a name or a value on the command line is wrong."""

    exit_code = 2


class DatasetError(EvalkitError):
    """A corpus, query or qrels file is missing or malformed."""


class DeviationError(DatasetError):
    """A dataset can be read but is not the published one."""


class ChangedError(DatasetError):
    """A corpus changed between the survey and the reading of a shard."""


class ModelError(EvalkitError):
    """A checkpoint or tokenizer is missing, malformed or not what the config says."""


class DeviceError(EvalkitError):
    """A device has failed, or a single text does not fit its memory."""


class EngineError(EvalkitError):
    """Workers cannot be started or have ended, shards failed on every worker that tried them, or a library failed."""


class StoreError(EvalkitError):
    """A file of the cache or of a bundle is damaged, or a file cannot be written."""


class ScoreError(EvalkitError):
    """A run cannot be scored, or a saved result cannot be read."""


def lines(error: BaseException) -> list[str]:
    """Return an error as printed: three lines if something could not be fetched, otherwise one.

    >>> lines(ModelError.unobtainable(Tried("o/m@main", "no network", "fetch it elsewhere")))
    ['tried: o/m@main', 'failed: no network', 'to do: fetch it elsewhere']
    >>> lines(ModelError("no such dim"))
    ['no such dim']
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # an error that was raised again can be its own cause
        seen.add(id(cause))
        if isinstance(cause, EvalkitError) and cause.tried is not None:
            return [f"tried: {cause.tried.what}", f"failed: {cause.tried.why}", f"to do: {cause.tried.remedy}"]
        cause = cause.__cause__
    return [str(error)]


def nearest(name: str, valid: Iterable[str], *, count: int = 3) -> str:
    """Return a clause with the valid names nearest to `name`; if none is near, all of them up to MOST_NAMED.

    >>> nearest("scifcat", ["scifact", "scidocs", "fiqa"])
    'did you mean scifact?'
    >>> nearest("BM25", ["bm25", "demo"])
    'did you mean bm25?'
    >>> nearest("zzz", ["fiqa", "nq"])
    'valid: fiqa, nq'
    """
    names = sorted(set(valid))
    spelled = {each.casefold(): each for each in names}
    close = [spelled[each] for each in difflib.get_close_matches(name.casefold(), spelled, n=count, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"valid: {', '.join(names[:MOST_NAMED])}{more}"
