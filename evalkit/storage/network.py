"""Switch the network off for this process, and shorten the errors of failed connections."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def reason(error: BaseException, *, most: int) -> str:
    """Return why a download failed, in at most `most` characters. The library's own message can fill a page.

    >>> reason(OSError("(host='a.org', port=443): Max retries … Failed to resolve 'a.org'"), most=200)
    'OSError: no network, a.org could not be resolved'
    >>> reason(OSError("closed by   peer"), most=12)
    'OSError: clo'
    """
    text, kind = " ".join(str(error).split()), type(error).__name__
    if "outgoing traffic has been disabled" in text:
        return "nothing there, and HF_HUB_OFFLINE is set"
    if (found := re.search(r"Failed to resolve '([^']+)'", text)) is not None:
        return f"{kind}: no network, {found[1]} could not be resolved"
    if (found := re.search(r"ConnectionPool\(host='([^']+)'", text)) is not None:
        return f"{kind}: no connection to {found[1]}"
    return f"{kind}: {text}"[:most]


@contextmanager
def network_off() -> Iterator[None]:
    """Make every connection and name look-up of this process raise OSError, and put the Hub's client offline."""
    import huggingface_hub.constants as hub

    def refused(*_arguments: Any, **_settings: Any) -> Any:
        msg = "the network is off while evalkit verifies"
        raise OSError(msg)

    replaced: list[tuple[Any, str, Any]] = [
        (socket.socket, "connect", refused),
        (socket.socket, "connect_ex", refused),
        (socket, "getaddrinfo", refused),
        (hub, "HF_HUB_OFFLINE", True),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    _set(replaced)
    try:
        yield
    finally:
        _set(before)


def _set(attributes: list[tuple[Any, str, Any]]) -> None:
    """Set attributes, given as (owner, name, value)."""
    for owner, name, value in attributes:
        setattr(owner, name, value)
