"""What questions to a loaded model share: the form of a finding, vectors of a few texts, and loading it again.

Shapes: T tokens of a text, D dim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from evalkit.config.settings import EncoderConfig
from evalkit.models.checkpoint import Checkpoint
from evalkit.models.encoder import Encoder, embedding_rows, load_encoders
from evalkit.models.tokens import Tokens

HELLO = "Hello World"
"""The text whose vectors are published for some models."""

Verdict = Literal["ok", "FAILED", "skipped"]
"""`skipped`: there is nothing to compare with, or the question does not apply to the model."""


class Finding(NamedTuple):
    """One question to a model, the verdict on its answer, what was measured, and for a failure the likeliest cause."""

    question: str
    verdict: Verdict
    measured: str
    cause: str = ""


Reload = Callable[[EncoderConfig], Encoder]
"""Loads the same checkpoint under another config: in fp32, or to try which config gives the published vectors."""


def reloader(encoder: Encoder, found: Mapping[int, Checkpoint]) -> Reload:
    """Return a function that loads an encoder's checkpoints again under another config."""
    members = {dim: found[dim] for dim in encoder.heads}
    return lambda changed: load_encoders(changed, members, device=encoder.device, elementwise="torch")[0]


def vectors_of(encoder: Encoder, texts: Sequence[Tokens], *, documents: bool) -> dict[int, list[Tensor]]:
    """Return by dim the fp32 vectors [T, D] of each text, encoded in one padded batch."""
    packed = encoder.vectors(encoder.batch(texts, skip_punctuation=documents))
    return {dim: list(torch.split(vectors.cpu(), counts.tolist())) for dim, (vectors, counts) in packed.items()}


def vocabulary_rows(encoder: Encoder) -> int:
    """Return the number of rows of the embedding matrix; a stand-in for the published model has another one."""
    return embedding_rows(encoder.module)


def packaged_json(name: str) -> dict[str, Any]:
    """Return the content of a file of published facts, which lie beside the models' code."""
    values: dict[str, Any] = json.loads((Path(__file__).parents[1] / "models" / name).read_text(encoding="utf-8"))
    return values
