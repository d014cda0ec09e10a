"""Which vector registers the processor has, and whether kernels can be compiled for them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)


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
    return bool(_capabilities().get("avx2")) and not problem()


@cache
def problem() -> str:
    """Return why kernels cannot be compiled for the processor's vector units.

    Empty where they can, and where the processor has none that they were written for.
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
    """Tell whether pairs of 16-bit numbers are multiplied and added at once: AVX-512 with VNNI, as numba sees it too.

    Without VNNI it takes two instructions, and is no faster than fp32.
    """
    return available() and bool(_capabilities().get("avx512_vnni")) and "avx512vnni" in _target()


@cache
def _target() -> frozenset[str]:
    """Return the features of the processor that numba compiles for; its settings may name a lesser one than this."""
    from numba.core.registry import cpu_target

    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def tried_out(label: str, right: Callable[[], bool]) -> str:
    """Return why kernels that are compiled on first use cannot be used, empty where they can.

    `right` runs them on a few numbers and tells whether the result is right.
    """
    reason = problem()
    if reason or not available():
        return f"{label} are not used: {reason}; torch's own calls are used instead" if reason else ""
    try:
        reason = "" if right() else "they give wrong values here"
    except Exception as error:  # noqa: BLE001 (a compiler that does not fit the processor fails in ways of its own)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"{type(error).__name__}: {first}"
    return f"{label} are not used: {reason}; torch's own calls are used instead" if reason else ""


@cache
def say_once(problem: str) -> None:
    """Report what was given up, once a process."""
    log.warning("%s", problem)
