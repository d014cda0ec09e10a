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
        self._value = ""
        self._threads: list[int] = []
        """The threads that are inside, one entry for each time."""
        self._undo: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self, value: str) -> Iterator[None]:
        """Keep the setting at a value. Threads with the same value share it; one with another value waits for them.

        Raises RuntimeError if this thread is inside with another value, because it would wait for itself.
        """
        thread = threading.get_ident()
        with self._changed:
            if thread in self._threads and value != self._value:
                raise RuntimeError(f"a thread that needs the setting {self._value!r} cannot also have {value!r}")
            self._changed.wait_for(lambda: value == self._value or not self._threads)
            if not self._threads:
                self._undo, self._value = self._make(value), value
            self._threads.append(thread)
        try:
            yield
        finally:
            with self._changed:
                self._threads.remove(thread)
                if not self._threads:
                    self._undo()
                    self._changed.notify_all()
