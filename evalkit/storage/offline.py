"""No network: switched off for this process, or met and told in few words."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def reason(error: BaseException, *, most: int) -> str:
    """Return why something could not be fetched, in at most so many characters: the library's own words are a page.

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
    """Make every connection and name look-up of this process raise OSError, and set the Hub's client offline."""
    import huggingface_hub.constants as hub

    def refused(*_arguments: Any, **_settings: Any) -> Any:
        msg = "the network is off while evalkit verifies"
        raise OSError(msg)

    before = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo, hub.HF_HUB_OFFLINE
    # Methods of a class from outside are replaced, which mypy rightly reports and this needs.
    socket.socket.connect = socket.socket.connect_ex = refused  # type: ignore[method-assign]
    socket.getaddrinfo = refused
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        (
            socket.socket.connect,  # type: ignore[method-assign]
            socket.socket.connect_ex,  # type: ignore[method-assign]
            socket.getaddrinfo,
            hub.HF_HUB_OFFLINE,
        ) = before
