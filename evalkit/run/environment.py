"""The facts of a process that a result records: versions, device, processor."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch

import evalkit
from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.errors import ConfigError
from evalkit.kernels.cpu import simd
from evalkit.maxsim import choice
from evalkit.models import attention, elementwise

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "ranx", "numba", "ir-datasets", "PyStemmer")


def environment(device: torch.device | None) -> dict[str, Any]:
    """Return these facts; `device` is None for a system that computes without torch."""
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


def choose_device(name: str) -> torch.device:
    """Return the device that `engine.device` names; `auto` is CUDA if there is a CUDA device, else the CPU.

    Raises ConfigError if the device is unknown or missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"engine.device={name!r} unknown; wanted auto, cpu, cuda or cuda:N"
        raise ConfigError(msg) from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        msg = f"engine.device={name!r} is not here ({count} CUDA devices); wanted auto, cpu or cuda"
        raise ConfigError(msg)
    return device


BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768}
"""Tokens of a batch under `auto`. On a CPU each core has its own batch; larger ones need memory and are no faster."""


def batch_tokens(asked: Literal["auto"] | int, device: torch.device) -> int:
    """Return the most tokens of a batch, padding included."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) if asked == "auto" else asked


SHARD_TOKENS = {"cpu": 125_000, "cuda": 8_000_000}
"""Tokens of a shard under `auto`. On a GPU 125,000 tokens take a fraction of a second: too little work per shard."""


def shard_tokens(config: RunConfig, device: torch.device) -> int:
    """Return the most tokens of a shard. BM25 uses no device, so it has the CPU's number on every machine."""
    asked = config.store.shard_tokens
    if asked != "auto":
        return asked
    return SHARD_TOKENS.get(device.type if isinstance(config.model, EncoderConfig) else "cpu", SHARD_TOKENS["cpu"])


def max_document_tokens(config: RunConfig, device: torch.device) -> int:
    """Return the length in tokens at which the model truncates a document; BM25 truncates none."""
    model = config.model
    return model.document.max_tokens if isinstance(model, EncoderConfig) else shard_tokens(config, device)


def resolved(config: RunConfig, device: torch.device) -> RunConfig:
    """Return a config with numbers instead of `auto`, so that records say how the corpus was divided."""
    store = dataclasses.replace(config.store, shard_tokens=shard_tokens(config, device))
    return dataclasses.replace(config, store=store)


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
