"""Which vector registers the processor has, and whether kernels can be compiled for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from evalkit.kernels.trouble import first_line


class Registers(NamedTuple):
    """A processor's vector registers: the size of one, and how many there are."""

    size_bytes: int
    total: int


def _capabilities() -> dict[str, object]:
    """Return the processor's features as torch reports them; empty for a torch without that function."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


REGISTERS = Registers(64, 32) if _capabilities().get("avx512_f") else Registers(32, 16)
"""The registers that kernels are compiled for: those of AVX-512 if the processor has it, else those of AVX2."""


@cache
def available() -> bool:
    """Tell whether the processor has AVX2 and numba can compile the kernels for it."""
    return bool(_capabilities().get("avx2")) and not problem()


@cache
def problem() -> str:
    """Return why kernels cannot be compiled for the processor's vector units, or "" if they can.

    It is also "" on a processor without AVX2, for which there is no kernel.
    """
    if not _capabilities().get("avx2"):
        return ""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from numba.core import config

    if getattr(config, "DISABLE_JIT", False):
        return "numba's compiler is off (NUMBA_DISABLE_JIT)"
    wanted = ["avx2", "fma", *(["avx512f"] if REGISTERS.size_bytes == 64 else [])]
    missing = [name for name in wanted if name not in _target()]
    return f"numba compiles for a processor without {', '.join(missing)} (see NUMBA_CPU_NAME)" if missing else ""


@cache
def multiplies_pairs() -> bool:
    """Tell whether one instruction multiplies and adds pairs of 16-bit integers (AVX-512 VNNI) and numba may emit it.

    Without VNNI this takes two instructions and is no faster than fp32.
    """
    return available() and bool(_capabilities().get("avx512_vnni")) and "avx512vnni" in _target()


@cache
def _target() -> frozenset[str]:
    """Return the features of numba's target processor, which its settings may restrict (NUMBA_CPU_NAME)."""
    from numba.core.registry import cpu_target

    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def trial_problem(label: str, gives_right_values: Callable[[], bool]) -> str:
    """Compile kernels and run them once; return why they cannot be used, or "" if they can.

    It is also "" on a processor without AVX2, for which there is no kernel. `label` names the kernels in the text.
    `gives_right_values` runs them on a few numbers and tells whether the result is correct.
    """
    reason = problem()
    if not reason and not available():
        return ""
    if not reason:
        try:
            reason = "" if gives_right_values() else "they give wrong values here"
        except Exception as error:  # noqa: BLE001 (a compiler that does not support the processor can raise anything)
            reason = f"{type(error).__name__}: {first_line(error)}"
    return f"{label} are not used: {reason}; torch's own calls are used instead" if reason else ""
