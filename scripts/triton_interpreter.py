"""Triton 3.6's interpreter beside numpy 2.4 and later: a number is kept in an array of one, which is no int there."""

from __future__ import annotations

from importlib import metadata
from typing import Any


def mend() -> None:
    """Let a loop's bounds be read in Triton 3.6, as Triton 3.7 reads them; nothing is done to other versions."""
    if not metadata.version("triton").startswith("3.6."):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor  # noqa: SLF001 (Triton has no other place for it)

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched  # noqa: SLF001
