"""Switch off the network for this process, so that only files on disk are used."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
