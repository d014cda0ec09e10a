"""Linear layers in fp32 on a CPU by oneDNN, which fuses bias, residual and GELU into the matrix product.

torch's own call copies the bias into the output, lets MKL add the product, and makes another pass over the output for
GELU or the residual. oneDNN packs the weights once for all batches. From two rows up, a row's result is bit-identical
whatever other rows are in the batch; MKL takes a different code path below sixteen rows.

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

ROWS_HINT = 1024
"""The number of rows for which oneDNN lays out a weight; results are correct for any number."""
GELU_PLACES = (("dense", "intermediate_act_fn"), ("fc1", "activation_fn"))
"""transformers' names of a linear layer and its activation: in BERT and XMOD, and in jina_embeddings_v3."""
RESIDUAL_BLOCKS = ("BertSelfOutput", "BertOutput")
"""transformers' blocks that apply a linear layer, add the residual and normalise."""


class OnednnLinear(nn.Module):
    """`x @ weight.T + bias`, followed by GELU if `gelu` is set, in one pass over the output."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, gelu: bool = False) -> None:
        """Pack a weight [O, I] into oneDNN's layout; the given tensor can then be freed."""
        super().__init__()
        # Not a parameter or buffer: code that moves or copies those cannot handle oneDNN's layout.
        self._packed_weight: Any = _operator("_reorder_linear_weight")(weight_OI.detach(), ROWS_HINT)
        self._activation: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight [O, I] in the dense layout, unpacked at each access."""
        dense: Tensor = self._packed_weight.to_dense()
        return dense

    def forward(self, rows: Tensor) -> Tensor:
        """Apply the layer to [..., I]; return [..., O]."""
        out: Tensor = _operator("_linear_pointwise")(rows, self._packed_weight, self.bias, *self._activation)
        return out

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """Apply the layer without GELU to [..., I] and add `other` [..., O]."""
        out: Tensor = _operator("_linear_pointwise").binary(rows, other, self._packed_weight, self.bias, "add")
        return out


class OnednnResidual(nn.Module):
    """`norm(x @ weight.T + bias + residual)`, with the sum computed in one pass over the output."""

    def __init__(self, dense: nn.Linear, norm: nn.Module) -> None:
        """Pack the linear layer of a block and keep its norm."""
        super().__init__()
        self.dense, self.LayerNorm = OnednnLinear(dense.weight, dense.bias), norm

    def forward(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Apply the block to `rows` [..., I] and `residual` [..., O]; return [..., O]."""
        out: Tensor = self.LayerNorm(self.dense.plus(rows, residual))
        return out


@cache
def _operator(name: str) -> Any:
    """Return an oneDNN operator that torch's compiler uses; it is not part of torch's public interface."""
    return getattr(torch.ops.mkldnn, name)


def use_onednn(module: nn.Module) -> None:
    """Replace, in place, a module's fp32 linear layers on the CPU by packed ones, fused with a GELU that follows.

    Layers of other types and devices stay, and all layers where this torch lacks oneDNN's (see `has_layers`).
    """
    for parent in list(module.modules()):
        if type(parent).__name__ in RESIDUAL_BLOCKS:  # its parent replaces the whole block
            continue
        for layer, activation in GELU_PLACES:
            linear, function = getattr(parent, layer, None), getattr(parent, activation, None)
            if _fits(linear) and is_gelu(function):
                setattr(parent, layer, OnednnLinear(linear.weight, linear.bias, gelu=True))
                setattr(parent, activation, nn.Identity())
        for name, child in list(parent.named_children()):
            if type(child).__name__ in RESIDUAL_BLOCKS and _fits(dense := getattr(child, "dense", None)):
                setattr(parent, name, OnednnResidual(dense, child.get_submodule("LayerNorm")))
            elif _fits(child):
                setattr(parent, name, OnednnLinear(child.weight, child.bias))


def projection(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that multiplies rows [..., I] by a weight's transpose, with oneDNN if `has_layers`."""
    if _packable(weight_OI):
        return OnednnLinear(weight_OI, None)
    return lambda rows: rows @ weight_OI.T


def weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every parameter; the weights of packed layers are unpacked."""
    yield from module.named_parameters()
    for name, child in module.named_modules():
        if isinstance(child, OnednnLinear):
            yield f"{name}.weight", child.weight


def _fits(layer: object) -> TypeGuard[nn.Linear]:
    # A subclass may compute more than a linear layer.
    return type(layer) is nn.Linear and _packable(layer.weight)


def _packable(weight: Tensor) -> bool:
    """Whether oneDNN's layers can use a weight here: fp32, on the CPU."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and has_layers()


def is_gelu(function: object) -> bool:
    """Whether a module is GELU by the error function, not one of its approximations."""
    if isinstance(function, nn.GELU):
        return function.approximate == "none"
    return type(function).__name__ == "GELUActivation" and getattr(function, "act", None) is functional.gelu


@cache
def has_layers() -> bool:
    """Tell whether this torch has oneDNN's layers and their results match torch's own; sets oneDNN's cache sizes."""
    memory.bound_native_caches()
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 32), (16, 32), (16,), (3, 16))
    rows, weight, bias, residual = (torch.randn(*shape, generator=generator) for shape in shapes)
    try:
        with torch.inference_mode():
            layer = OnednnLinear(weight, bias, gelu=True)
            ours, added = layer(rows), layer.plus(rows, residual)
    except (AttributeError, RuntimeError, TypeError):  # private operators of torch can change or disappear
        return False
    wanted = functional.linear(rows, weight, bias)
    return torch.allclose(ours, functional.gelu(wanted), atol=1e-5) and torch.allclose(
        added, wanted + residual, atol=1e-5
    )
