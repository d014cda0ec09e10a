"""Which vector registers the processor has, and whether kernels can be compiled for them."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import NamedTuple

import torch


class Registers(NamedTuple):
    """A processor's vector registers."""

    size_bytes: int
    total: int


def _capabilities() -> dict[str, object]:
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


REGISTERS = Registers(64, 32) if _capabilities().get("avx512_f") else Registers(32, 16)


@cache
def available() -> bool:
    """Tell whether kernels can be compiled here, for vector units that they were written for."""
    compiled = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")  # the kernels' instructions cannot be interpreted
    return compiled and importlib.util.find_spec("numba") is not None and bool(_capabilities().get("avx2"))


@cache
def multiplies_pairs() -> bool:
    """Tell whether pairs of 16-bit numbers are multiplied and added at once: AVX-512 with VNNI, as numba sees it too.

    Without VNNI it takes two instructions, and is no faster than fp32.
    """
    if not available() or not _capabilities().get("avx512_vnni"):
        return False
    from numba.core.registry import cpu_target

    features = cpu_target.target_context.codegen().magic_tuple()[2]  # NUMBA_CPU_FEATURES may have said otherwise
    return "+avx512vnni" in features.split(",")
