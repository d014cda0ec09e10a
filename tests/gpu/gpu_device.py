"""The device of the tests in this folder: a GPU if there is one, otherwise the CPU with Triton's interpreter."""

import dataclasses

import pytest
import torch
from checkpoints import DIM, FAMILIES

from evalkit.config.compose import compose
from evalkit.models.encoder import checkpoints, load_encoders

CPU = torch.device("cpu")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
WORDS = ["hello", "world", "the", "a", "b", "c", ".", ",", "!"]
"""Words in the vocabulary of the small checkpoints' tokenizers."""


def invented(count, *, longest=40, seed=0):
    """Return random texts of 1 to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[word] for word in torch.randint(0, len(WORDS), (length,), generator=generator).tolist())
        for length in lengths
    ]


def loaded(name, folder, *, device, dtype, attention="auto", elementwise="auto"):
    """Return the encoder of a small checkpoint of one architecture."""
    if not folder.exists():
        folder.mkdir()
        FAMILIES[name](folder)
    model = compose([f"model={name}"]).model
    source = dataclasses.replace(next(iter(model.checkpoints.values())), path=str(folder))
    source = {str(DIM if model.head == "linear" else 24): source}
    model = dataclasses.replace(model, dtype=dtype, allow_pickle=True, checkpoints=source, verify=False)
    (encoder,) = load_encoders(
        model, checkpoints(model, model.dims), device=device, attention=attention, elementwise=elementwise
    )
    return encoder
