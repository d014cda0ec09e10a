"""The device and the numbers of tokens that a config leaves to `auto`."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from evalkit.config.settings import EncoderConfig, RunConfig
from evalkit.errors import ConfigError

BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768}
"""Tokens of a batch under `auto`. On a CPU each core has its own batch; larger ones need memory and are no faster."""
SHARD_TOKENS = {"cpu": 125_000, "cuda": 8_000_000}
"""Tokens of a shard under `auto`. On a GPU 125,000 tokens take a fraction of a second: too little work per shard."""


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


def batch_tokens(asked: Literal["auto"] | int, device: torch.device) -> int:
    """Return the most tokens of a batch, padding included."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) if asked == "auto" else asked


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
