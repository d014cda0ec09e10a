"""Linear layers in fp32 on a CPU: oneDNN's, which add bias and residual or take GELU while a sum is in registers.

torch's own call copies the bias into the output, has MKL add the product to it, and passes over all of it once more
for GELU or the residual. oneDNN's weights are laid out once for all batches. From two rows up it gives a row the same
bits whatever rows are beside it, where MKL takes another path below sixteen.

Shapes: X rows, I width in, O width out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.kernels.cpu import memory

LAID_OUT_FOR = 1024
"""The number of rows that oneDNN is told to expect; others are as right."""
GELU_PLACES = (("dense", "intermediate_act_fn"), ("fc1", "activation_fn"))
"""What transformers calls a layer and the activation on it: in BERT and XMOD, in jina_embeddings_v3."""
RESIDUAL_BLOCKS = ("BertSelfOutput", "BertOutput")
"""transformers' blocks of a layer, the residual and a norm, in this order."""


class PackedLinear(nn.Module):
    """`x @ weight.T + bias`, then GELU if asked, in one pass over the output."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> None:
        """Lay a weight out; the tensor that was given is not needed any more."""
        super().__init__()
        # Neither parameters nor buffers: nothing that moves or copies those can take oneDNN's layout.
        self._laid_out: Any = _operator("_reorder_linear_weight")(weight_OI.detach(), LAID_OUT_FOR)
        self._after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight [O, I] in the common layout, made anew at each call."""
        dense: Tensor = self._laid_out.to_dense()
        return dense

    def forward(self, rows: Tensor) -> Tensor:
        """Return what the layer gives for [..., I]: [..., O]."""
        out: Tensor = _operator("_linear_pointwise")(rows, self._laid_out, self.bias, *self._after)
        return out

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """Return what the layer gives for [..., I] before GELU, and another tensor [..., O] added to it."""
        out: Tensor = _operator("_linear_pointwise").binary(rows, other, self._laid_out, self.bias, "add")
        return out


class PackedResidual(nn.Module):
    """`norm(x @ weight.T + bias + residual)`, the sum in one pass over the output."""

    def __init__(self, dense: nn.Linear, norm: nn.Module) -> None:
        """Take over the parts of a block."""
        super().__init__()
        self.dense, self.LayerNorm = PackedLinear(dense.weight, dense.bias), norm

    def forward(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Return what the block gives for [..., I] and [..., O]: [..., O]."""
        out: Tensor = self.LayerNorm(self.dense.plus(rows, residual))
        return out


@cache
def _operator(name: str) -> Any:
    """Return one of the calls that torch's own compiler makes; they are not part of its public interface."""
    return getattr(torch.ops.mkldnn, name)


def pack(module: nn.Module) -> None:
    """Replace the linear layers of a module in fp32 on the CPU, each with the GELU behind it; else change nothing."""
    for parent in list(module.modules()):
        if type(parent).__name__ in RESIDUAL_BLOCKS:  # replaced whole
            continue
        for layer, activation in GELU_PLACES:
            linear, function = getattr(parent, layer, None), getattr(parent, activation, None)
            if _fits(linear) and is_gelu(function):
                setattr(parent, layer, PackedLinear(linear.weight, linear.bias, gelu=True))
                setattr(parent, activation, nn.Identity())
        for name, child in list(parent.named_children()):
            if type(child).__name__ in RESIDUAL_BLOCKS and _fits(dense := getattr(child, "dense", None)):
                setattr(parent, name, PackedResidual(dense, child.get_submodule("LayerNorm")))
            elif _fits(child):
                setattr(parent, name, PackedLinear(child.weight, child.bias))


def projection(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what multiplies rows by a weight's transpose, by oneDNN where `pack` would take it."""
    if _packable(weight_OI):
        return PackedLinear(weight_OI, None)
    return lambda rows: rows @ weight_OI.T


def weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of every weight, those of packed layers in the common layout."""
    yield from module.named_parameters()
    for name, child in module.named_modules():
        if isinstance(child, PackedLinear):
            yield f"{name}.weight", child.weight


def _fits(layer: object) -> TypeGuard[nn.Linear]:
    # Subclasses may do more than their name says.
    return type(layer) is nn.Linear and _packable(layer.weight)


def _packable(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and can_pack()


def is_gelu(function: object) -> bool:
    """Whether a module is GELU by the error function, not one of its approximations."""
    if isinstance(function, nn.GELU):
        return function.approximate == "none"
    return type(function).__name__ == "GELUActivation" and getattr(function, "act", None) is functional.gelu


@cache
def can_pack() -> bool:
    """Whether this torch has oneDNN's layers, and they give what torch's own do."""
    memory.bound_native_caches()
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 32), (16, 32), (16,), (3, 16))
    rows, weight, bias, residual = (torch.randn(*shape, generator=generator) for shape in shapes)
    try:
        with torch.inference_mode():
            layer = PackedLinear(weight, bias, gelu=True)
            ours, added = layer(rows), layer.plus(rows, residual)
    except (AttributeError, RuntimeError, TypeError):  # the calls are torch's own affair, and may go or change
        return False
    wanted = functional.linear(rows, weight, bias)
    return torch.allclose(ours, functional.gelu(wanted), atol=1e-5) and torch.allclose(
        added, wanted + residual, atol=1e-5
    )
