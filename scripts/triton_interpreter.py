"""Make the interpreter of Triton 3.6 work with numpy 2.4 and later.

It keeps a scalar in an array with one element, which these versions of numpy no longer convert to an int.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any


def mend() -> None:
    """Make Triton 3.6 read the bounds of loops as Triton 3.7 does; other versions are left unchanged."""
    if not metadata.version("triton").startswith("3.6."):
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor  # noqa: SLF001 (Triton offers no public hook)

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched  # noqa: SLF001 (as above)
