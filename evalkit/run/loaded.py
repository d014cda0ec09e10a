"""The model that is loaded, kept from one cell of a sweep to the next: only another model is read from disk again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from evalkit.config.settings import Attention, Elementwise, EncoderConfig
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, load_encoders
from evalkit.run.canary import canary
from evalkit.storage.keys import key_of


class Loaded(NamedTuple):
    """An encoder that passed the canary, and the dims at which it met vectors that are published for it."""

    encoder: Encoder
    met_vectors: frozenset[int]


class _Held(NamedTuple):
    key: str
    encoders: list[Loaded]


_held: list[_Held] | None = None
"""The one model that is kept; None unless asked to keep: then nothing outlives its run."""


def keep() -> None:
    """Keep the model that was loaded last until another one is asked for, as long as the process lives."""
    global _held  # noqa: PLW0603 (memory of a process or device is one thing that all its cells share)
    if _held is None:
        _held = []


@contextmanager
def kept() -> Iterator[None]:
    """Do as `keep` until the context is left."""
    global _held  # noqa: PLW0603 (as above)
    before, _held = _held, []
    try:
        yield
    finally:
        _held = before


def encoders(
    model: EncoderConfig,
    found: Mapping[int, Checkpoint],
    *,
    device: torch.device,
    attention: Attention = "auto",
    elementwise: Elementwise = "auto",
) -> list[Loaded]:
    """Return the encoders of a model, asked every question of the canary; those that are kept, where they are the same.

    Raises ModelError, as `load_encoders` and `canary` do.
    """
    key = key_of(_facts(model, found, device) | {"attention": attention, "elementwise": elementwise})
    if _held and _held[0].key == key:
        return _held[0].encoders
    if _held:
        _held.clear()  # its memory is needed for the next
        if device.type == "cuda":
            torch.cuda.empty_cache()
    made = load_encoders(model, found, device=device, attention=attention, elementwise=elementwise)
    loaded = [Loaded(encoder, canary(encoder, found)) for encoder in made]
    if _held is not None:
        _held.append(_Held(key, loaded))
    return loaded


def _facts(model: EncoderConfig, found: Mapping[int, Checkpoint], device: torch.device) -> dict[str, Any]:
    checkpoints = {
        str(dim): {"folder": str(checkpoint.folder), **checkpoint.checksums} for dim, checkpoint in found.items()
    }
    return {"model": dataclasses.asdict(model), "checkpoints": checkpoints, "device": str(device)}
