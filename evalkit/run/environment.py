"""The facts of a process that a result records: versions, device, processor."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import evalkit
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.kernels.cpu import simd
from evalkit.maxsim import choice
from evalkit.models import attention, elementwise

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "ranx", "numba", "ir-datasets", "PyStemmer")


def environment(device: torch.device | None) -> dict[str, Any]:
    """Return the facts of this process; `device` is None for a system that computes without torch."""
    facts: dict[str, Any] = {
        "evalkit": evalkit.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if (flash := attention.flash_version()) is not None:
        facts["packages"]["flash-attn"] = flash
    if device is not None:
        facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        facts["threads"] = torch.get_num_threads()
        if (units := instruction_set(device)) is not None:
            facts["instruction_set"] = units
    return facts


def instruction_set(device: torch.device) -> str | None:
    """Return the vector instructions of a CPU's matrix products, which change the last bits of vectors; else None."""
    if device.type != "cpu":
        return None
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", ONEDNN_MAX_CPU_ISA={limit}" if limit else "")


def arithmetic(config: RunConfig, device: torch.device) -> str | None:
    """Return what changes the last bits of a vector and is not in the store key: instructions and attention kernel.

    None on a GPU, where the store key has the attention path.
    """
    units = instruction_set(device)
    if units is None or "attention_kernel_given_up" not in given_up(config, device):
        return units
    return f"{units}, attention by torch"


def given_up(config: RunConfig, device: torch.device) -> dict[str, str]:
    """Return for each kernel that could not be used the reason; empty if all are as requested and the fastest."""
    model, engine = config.model, config.engine
    if not isinstance(model, EncoderConfig):
        return {}
    problems = {
        "attention_given_up": attention.choose(engine.attention, config=model, device=device).problem,
        "elementwise_given_up": elementwise.choose(engine.elementwise, config=model, device=device).problem,
        "maxsim_given_up": choice.given_up(device, model.dims),
    }
    if device.type == "cpu":
        problems["maxsim_given_up"] = simd.problem() if engine.maxsim == "auto" else ""
        served = model.dtype == "float32" and model.backbone in attention.INTERFACE_BACKBONES
        problems["attention_kernel_given_up"] = attention.kernel_problem() if served else ""
    return {name: problem for name, problem in problems.items() if problem}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the name of the processor, if the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
