"""Keeps the loaded model from one cell of a sweep to the next, so that the same model is not loaded twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from evalkit.config.settings import EncoderConfig, EngineConfig
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, load_encoders
from evalkit.run.canary import canary
from evalkit.storage.keys import key_of


class Loaded(NamedTuple):
    """An encoder that passed the canary, and the dims whose published vectors it reproduced."""

    encoder: Encoder
    reproduced_dims: frozenset[int]


class _Held(NamedTuple):
    """A kept model and the key of everything that it was loaded with."""

    key: str
    encoders: list[Loaded]


_held: list[_Held] | None = None
"""The kept model, at most one. None until `keep` is called; until then models are freed at the end of their job."""


def keep() -> None:
    """From now on keep the last loaded model, until another model is loaded or the process ends."""
    global _held  # noqa: PLW0603 (all cells of a process share its memory and its device)
    if _held is None:
        _held = []


@contextmanager
def kept() -> Iterator[None]:
    """Keep the last loaded model while the context lasts; free it at the end."""
    global _held  # noqa: PLW0603 (as above)
    before, _held = _held, []
    try:
        yield
    finally:
        _held = before


def encoders(
    model: EncoderConfig, found: Mapping[int, Checkpoint], *, device: torch.device, engine: EngineConfig
) -> list[Loaded]:
    """Return the encoders of a model: the kept ones if they are the same, else newly loaded ones that pass the canary.

    Raises ModelError if a checkpoint cannot be loaded or the model fails the canary.
    """
    kernels = {"attention": engine.attention, "elementwise": engine.elementwise}
    key = key_of(_facts(model, found, device) | kernels)
    if _held and _held[0].key == key:
        return _held[0].encoders
    if _held:
        _held.clear()  # free its memory before the next model is loaded
        if device.type == "cuda":
            torch.cuda.empty_cache()
    made = load_encoders(model, found, device=device, attention=engine.attention, elementwise=engine.elementwise)
    loaded = [Loaded(encoder, canary(encoder, found)) for encoder in made]
    if _held is not None:
        _held.append(_Held(key, loaded))
    return loaded


def _facts(model: EncoderConfig, found: Mapping[int, Checkpoint], device: torch.device) -> dict[str, Any]:
    checkpoints = {
        str(dim): {"folder": str(checkpoint.folder), **checkpoint.checksums} for dim, checkpoint in found.items()
    }
    return {"model": dataclasses.asdict(model), "checkpoints": checkpoints, "device": str(device)}
