"""Settings of torch that all threads of a process share, kept for as long as some thread needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ProcessSetting:
    """A setting that is made when the first thread needs it and undone when the last one has left."""

    def __init__(self, make: Callable[[str], Callable[[], object]]) -> None:
        """Set the function that makes the setting with a value and returns the function that undoes it."""
        self._make = make
        self._changed = threading.Condition()
        self._open: list[str] = []
        self._undo: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self, value: str) -> Iterator[None]:
        """Keep the setting at a value. Threads with the same value share it; one with another value waits for them.

        A thread that is inside with one value must not ask for another: it would wait for itself.
        """
        with self._changed:
            self._changed.wait_for(lambda: value in self._open or not self._open)
            if not self._open:
                self._undo = self._make(value)
            self._open.append(value)
        try:
            yield
        finally:
            with self._changed:
                self._open.pop()
                if not self._open:
                    self._undo()
                    self._changed.notify_all()
