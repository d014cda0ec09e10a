"""Readers of JSON and YAML that may be damaged or hostile: they return plain values or raise one error.

Python's parsers raise many kinds of errors on such input: RecursionError for deep nesting, ValueError for numbers of
5,000 digits, UnicodeDecodeError, and their own. Functions here raise only `UnreadableError`, whose text is a short
reason for a message.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import yaml

from evalkit.config.files import YAML_ERRORS, Loader, reason

MAX_DEPTH = 100
"""The maximum depth of nested lists and mappings; no file of evalkit reaches ten."""
MAX_BITS = 64
"""Most bits of a whole number: larger ones are not counts, and cannot be compared with floats."""


class UnreadableError(ValueError):
    """A file's content cannot be used; the text is the reason, without the file's name."""


def json_value(data: str | bytes, *, nan_as_null: bool = False) -> Any:
    """Parse a JSON text. Raises UnreadableError, also for NaN, half surrogate pairs and deep nesting.

    With `nan_as_null`, NaN and infinities become null; Python writes them although JSON does not have them.

    >>> json_value('{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text, parse_constant=_no_value if nan_as_null else _refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from error
    return _checked(value)


def json_object(data: str | bytes, *, nan_as_null: bool = False) -> dict[str, Any]:
    """Parse a JSON text that is an object. Raises UnreadableError for anything else."""
    value = json_value(data, nan_as_null=nan_as_null)
    if not isinstance(value, dict):
        msg = f"got {_type_name(value)}, wanted a JSON object"
        raise UnreadableError(msg)
    return value


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UnreadableError, also if the file cannot be read."""
    return json_value(_bytes(path))


def read_json_object(path: Path, *, nan_as_null: bool = False) -> dict[str, Any]:
    """Parse a JSON file that has an object. Raises UnreadableError, also if the file cannot be read."""
    return json_object(_bytes(path), nan_as_null=nan_as_null)


def yaml_value(data: str | bytes) -> Any:
    """Parse a YAML text. Raises UnreadableError, also for aliases, which can make a small file large.

    >>> yaml_value("a: [1, null]")
    {'a': [1, None]}
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader that refuses more)
    except YAML_ERRORS as error:
        raise _unreadable(error) from error
    return _checked(value)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises UnreadableError, also if the file cannot be read."""
    return yaml_value(_bytes(path))


class _Loader(Loader):
    """YAML without aliases: evalkit writes none, and nested ones can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            msg = "got an alias (*name), wanted the value itself"
            raise yaml.YAMLError(msg)
        return super().compose_node(parent, index)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableError(str(getattr(error, "strerror", None) or error)) from error


def _unreadable(error: Exception) -> UnreadableError:
    return UnreadableError(reason(error))


def _no_value(_constant: str) -> None:
    return None


def _refuse_constant(constant: str) -> NoReturn:
    msg = f"got {constant}, wanted a finite number"
    raise ValueError(msg)


def _checked(value: Any, depth: int = 0) -> Any:
    """Return a value if UTF-8 can encode it and it is not nested too deeply; else raise UnreadableError."""
    if depth > MAX_DEPTH:
        msg = f"got more than {MAX_DEPTH} lists and mappings in each other"
        raise UnreadableError(msg)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            msg = f"got half a surrogate pair ({value[error.start]!r}), wanted text that UTF-8 can hold"
            raise UnreadableError(msg) from error
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        msg = f"got a whole number of {value.bit_length()} bits, wanted {MAX_BITS} at most"
        raise UnreadableError(msg)
    elif isinstance(value, float) and not math.isfinite(value):
        msg = f"got {value}, wanted a finite number"
        raise UnreadableError(msg)
    elif isinstance(value, dict):
        for name, item in value.items():
            _checked(name, depth + 1)
            _checked(item, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _checked(item, depth + 1)
    return value


def _type_name(value: Any) -> str:
    names = {str: "a text", list: "a list", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")
