"""The section `ceilings`: the card's GEMM and copy rates, and which of evalkit's fast paths work on it.

    PYTHONPATH=.:scripts python scripts/gpu/ceilings.py --out OUT [--budget-s 100]     # --smoke: toy sizes on a CPU

It writes OUT/ceilings.json and needs a CUDA device. prove.sh runs all sections.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from shared import Bench, run_section


def ceilings(bench: Bench) -> None:
    """Record the attention path, time large matrix products and a copy, then try the compiled kernels."""
    from evalkit.config.compose import compose

    config = compose(["model=jina-colbert-v2", "model.dtype=bfloat16"]).model
    with bench.attempt("paths", "attention"):
        attention_path(bench, config)
    rates(bench)
    with bench.attempt("paths", "compiled kernels"):
        compiled_paths(bench, config)


def rates(bench: Bench) -> None:
    """Time large matrix products and a copy; the other sections report shares of these rates."""
    size = 256 if bench.smoke else 8192
    for dtype in (torch.bfloat16, torch.float16):
        one, other = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        took = bench.median_s(partial(torch.matmul, one, other), least_s=1.0, most=200)
        name = f"{str(dtype).removeprefix('torch.')} GEMM TFLOP/s"
        bench.record("ceilings", name, round(2 * size**3 / took / 1e12, 1))
    source = torch.empty(1 << (20 if bench.smoke else 32), dtype=torch.uint8, device=bench.device).random_(0, 255)
    target = torch.empty_like(source)
    took = bench.median_s(lambda: target.copy_(source))
    bench.record("ceilings", "copy GB/s, read and written", round(2 * len(source) / took / 1e9))


def attention_path(bench: Bench, config: Any) -> None:
    """Record the attention path of a run on this device, and why a faster one is not used."""
    from evalkit.models import attention

    chosen = attention.choose("auto", config=config, device=bench.device)
    bench.record("paths", "attention", chosen._asdict())
    if bench.device.type == "cuda":
        bench.record("paths", "options of torch's packed attention", dict(attention._varlen_options(bench.device)))  # noqa: SLF001 (the options have no public name)


def compiled_paths(bench: Bench, config: Any) -> None:
    """Record the elementwise and MaxSim kernels of a run on this device, and why faster ones are not used."""
    from evalkit.maxsim import choice
    from evalkit.models import elementwise

    fused = elementwise.choose("triton" if bench.smoke else "auto", config=config, device=bench.device)
    bench.record("paths", "elementwise", fused._asdict())
    for dim in (128, 96, 64):
        problem = choice.probe(bench.device, torch.float16, dim, choice.PIECE)
        bench.record("paths", f"MaxSim at {dim} numbers", problem or "Triton's kernel")


if __name__ == "__main__":
    run_section("ceilings", ceilings)
