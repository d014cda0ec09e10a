"""fp32 matrix products in full precision, whatever the process or its environment allows torch to round.

A program that uses evalkit may have called `torch.set_float32_matmul_precision("medium")`, or may call evalkit inside
`torch.autocast`; environment variables do the same for oneDNN and cuBLAS. The inputs of fp32 products are then rounded
to 10 or 7 bits, and a run would get other scores under the same run id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch

from evalkit.errors import DeviceError
from evalkit.kernels.process_setting import ProcessSetting

ROUNDING_VARIABLES: Mapping[str, str] = {
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
    "NVIDIA_TF32_OVERRIDE": "0",
}
"""Environment variables that let oneDNN or cuBLAS round fp32 inputs, each with the one value that does not.

torch cannot undo them: the libraries read them themselves.
"""


def require_full_precision() -> None:
    """Raise DeviceError if full precision cannot be had: by an environment variable or another default type."""
    for name, harmless in ROUNDING_VARIABLES.items():
        got = os.environ.get(name, "").strip()
        if got and got.upper() != harmless:
            msg = f"{name}={got} rounds the inputs of fp32 matrix products, so that scores would differ"
            raise DeviceError(f"{msg}; unset it, or use model.dtype=bfloat16, which the results name")
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise DeviceError(f"got torch.get_default_dtype() {dtype}, wanted torch.float32: call torch.set_default_dtype")


@contextmanager
def full_precision(device: torch.device, *, rounded_to_bf16: bool = False) -> Iterator[None]:
    """Compute products on a device in full precision, outside autocast; afterwards restore what was set before.

    With `rounded_to_bf16` CPUs with bf16 instructions round the inputs of fp32 products, not sums and outputs. torch
    has one setting for all threads: threads that want the same share it, others wait. A thread must therefore not ask
    for both at once.
    """
    precision = "bf16" if rounded_to_bf16 and device.type == "cpu" else "ieee"
    autocast = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
    with autocast, _matmul_precision(precision):
        yield


def _set(precision: str) -> Callable[[], None]:
    """Set the precision of fp32 products on CPUs, and the full one on CUDA; return the function that undoes it."""
    cpu, cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]  # not in the stubs
    before = cpu.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program has used both of torch's ways, and they disagree
        older = "highest"

    def undo() -> None:
        torch.set_float32_matmul_precision(older)
        cpu.fp32_precision, cuda.fp32_precision, cuda.allow_fp16_accumulation = before

    torch.set_float32_matmul_precision("highest")  # sets the older flag too, without which cuBLAS raises
    cuda.allow_fp16_accumulation = False
    if precision != "ieee":
        cpu.fp32_precision = precision
    return undo


_matmul_precision = ProcessSetting(_set)
