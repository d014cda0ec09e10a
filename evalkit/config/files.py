"""Config files as plain values, read without Hydra. Files of a user can have any content; errors are one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer

from evalkit.errors import ConfigError, EvalkitError

YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""Errors of PyYAML. Its constructors convert a tagged value unchecked: an empty `!!int` raises IndexError."""
REASON_CHARACTERS = 200
"""Most characters of a parser's message that are quoted: some parsers quote the input."""

_Scanner: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(Composer, _Scanner):  # type: ignore[misc] # libyaml's where PyYAML has it
    """A safe loader: libyaml parses, Python composes the nodes. libyaml's own composer crashes on deep nesting."""

    def __init__(self, stream: Any) -> None:
        """Parse a text or an open file."""
        _Scanner.__init__(self, stream)
        Composer.__init__(self)


def reason(error: Exception) -> str:
    r"""Return a parser's message as one line of at most REASON_CHARACTERS.

    >>> reason(ValueError("got this,\n  wanted that")), reason(RecursionError())
    ('got this, wanted that', 'brackets nested too deep')
    """
    text = "brackets nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
    return text[:REASON_CHARACTERS]


def settings_in(path: Path, group: str) -> dict[str, Any]:
    """Return the settings in a config file of a group. Raises ConfigError if it cannot be read or is not a mapping."""
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
    """Turn errors about a file's settings (missing, or of a wrong type) into a ConfigError that names the file."""
    try:
        yield
    except EvalkitError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{type(error).__name__}: {reason(error)}"
        raise ConfigError(f"{path}: not the settings of {_one(group)} ({problem}); repair or remove it") from error
