"""Config files as they are on disk, before Hydra: the user's own may hold anything, and are refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from evalkit.errors import ConfigError, EvalkitError

YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What PyYAML's constructors raise: they convert what a tag promises without a look at it, as an empty `!!int`."""
REASON_CHARACTERS = 200
"""Most characters of a parser's message that are quoted: some parsers quote the input."""

_Scanner: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(Composer, _Scanner):  # type: ignore[misc] # libyaml's where PyYAML has it
    """A safe loader that reads with libyaml and nests in Python: deep nesting in libyaml would end the process."""

    def __init__(self, stream: Any) -> None:
        """Read a text."""
        _Scanner.__init__(self, stream)
        Composer.__init__(self)


def reason(error: Exception) -> str:
    r"""Return a parser's reason in one short line.

    >>> reason(ValueError("got this,\n  wanted that")), reason(RecursionError())
    ('got this, wanted that', 'brackets nested too deep')
    """
    text = "brackets nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return text[:REASON_CHARACTERS]


def settings_in(path: Path, group: str) -> dict[str, Any]:
    """Return what a config file of a group says. Raises ConfigError if it is no mapping."""
    wanted = f"the settings of {_one(group)}"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; wanted {wanted}") from error
    except YAML_ERRORS as error:
        raise ConfigError(f"{path}: not YAML ({reason(error)}); wanted {wanted}") from error
    if not isinstance(values, dict):
        example = f", such as name: {path.stem}" if group in ("model", "dataset") else ""
        raise ConfigError(f"{path}: got a {type(values).__name__}, wanted {wanted}{example}")
    return values


def _one(group: str) -> str:
    return f"{'an' if group[0] in 'aeiou' else 'a'} {group}"


@contextmanager
def used(path: Path, group: str) -> Iterator[None]:
    """Turn what is missing or of another kind among a file's settings into a ConfigError that names the file."""
    try:
        yield
    except EvalkitError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {reason(error)}"
        raise ConfigError(f"{path}: not the settings of {_one(group)} ({problem}); repair or remove it") from error
