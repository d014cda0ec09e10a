"""Heads that consist of Dense modules, which PyLate and sentence-transformers save with a backbone.

Each layer is `activation(x @ weight.T + bias)`; with a residual, the input or a projection of it is added.

Shapes: X rows, I width in, O width out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from evalkit.errors import ModelError, nearest
from evalkit.models.checkpoint import CONFIG, WEIGHTS, Checkpoint, dense_folders, read_json

ACTIVATIONS: Final[Mapping[str, type[nn.Module]]] = {
    name: getattr(nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU")
}
"""Activations by the last part of config.json's activation_function; as in PyLate, they are built without arguments."""
KEYS: Final = ("in_features", "out_features", "bias", "activation_function", "use_residual")
IGNORED_KEYS: Final = ("module_input_name", "module_output_name")
"""Names of a layer's input and output in sentence-transformers; ignored, because the layers here form a chain."""


class Dense(nn.Module):
    """One layer, from rows [X, I] to rows [X, O]."""

    def __init__(self, *, width_in: int, width_out: int, bias: bool, activation: nn.Module, residual: bool) -> None:
        """Allocate the weights; the loader fills them."""
        super().__init__()
        self.linear = nn.Linear(width_in, width_out, bias=bias)
        self.activation = activation
        self.adds_input = residual
        self.residual = nn.Linear(width_in, width_out, bias=False) if residual and width_in != width_out else None

    def forward(self, rows_XI: Tensor) -> Tensor:
        """Apply the layer to rows [X, I]; return [X, O]."""
        out_XO: Tensor = self.activation(self.linear(rows_XI))
        if not self.adds_input:
            return out_XO
        return out_XO + (rows_XI if self.residual is None else self.residual(rows_XI))


def load_dense(checkpoint: Checkpoint) -> nn.Sequential:
    """Load a checkpoint's Dense modules in order. Raises ModelError if one is unknown or does not fit."""
    layers = [_layer(checkpoint.folder / folder) for folder in dense_folders(checkpoint.folder)]
    for before, layer in pairwise(layers):
        got, wanted = layer.linear.in_features, before.linear.out_features
        if got != wanted:
            msg = f"{checkpoint.origin}: a Dense module takes {got} numbers, but the previous one returns {wanted}"
            raise ModelError(f"{msg}; fetch the checkpoint again")
    return nn.Sequential(*layers).eval().requires_grad_(requires_grad=False)


def widths(head: nn.Sequential) -> tuple[int, int]:
    """Return the widths of the layers' input and output rows."""
    first, last = head[0], head[-1]
    assert isinstance(first, Dense)
    assert isinstance(last, Dense)
    return first.linear.in_features, last.linear.out_features


def _layer(folder: Path) -> Dense:
    """Load one Dense module. Raises ModelError if its config is not supported or its tensors do not fit."""
    values = read_json(folder / CONFIG)
    if unknown := sorted(set(values) - {*KEYS, *IGNORED_KEYS}):
        msg = f"{folder / CONFIG}: got {', '.join(unknown)}, which is not a known key of a Dense module"
        raise ModelError(f"{msg}; wanted {', '.join(KEYS)}")
    package, _, name = str(values.get("activation_function", "torch.nn.Identity")).rpartition(".")
    if name not in ACTIVATIONS or package.partition(".")[0] != "torch":
        msg = f"{folder / CONFIG}: got activation_function {values['activation_function']!r}"
        wanted = nearest(name, ACTIVATIONS) if name not in ACTIVATIONS else f"wanted torch.nn.{name}"
        raise ModelError(f"{msg}, which is unknown; {wanted}")
    sizes = [values.get(key) for key in ("in_features", "out_features")]
    if not all(type(size) is int and size > 0 for size in sizes):
        msg = f"{folder / CONFIG}: got in_features {sizes[0]!r} and out_features {sizes[1]!r}, wanted numbers above 0"
        raise ModelError(msg)
    layer = Dense(
        width_in=int(str(sizes[0])),
        width_out=int(str(sizes[1])),
        bias=bool(values.get("bias", True)),
        activation=ACTIVATIONS[name](),
        residual=bool(values.get("use_residual", False)),
    )
    tensors = _tensors(folder / WEIGHTS)
    shapes = {key: tuple(tensor.shape) for key, tensor in layer.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if found != shapes:
        msg = f"{folder / WEIGHTS}: got {found}, wanted {shapes}, as {CONFIG} in that folder says; fetch both again"
        raise ModelError(msg)
    layer.load_state_dict(tensors)
    return layer


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read a module's tensors as fp32. Raises ModelError if the file is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a whole safetensors file ({error}); fetch the file again"
        raise ModelError(msg) from error
