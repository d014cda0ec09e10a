"""XMOD's output block for one language adapter.

transformers' block selects each text's adapter with a mask over the batch. That copies all hidden states three times,
and on a GPU the host waits twice per layer for the number of texts in the mask.

Shapes: B texts, T tokens, H hidden size, I inner size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class OneAdapterOutput(nn.Module):
    """The last block of a layer, with the same weights, names and result as in transformers."""

    def __init__(self, block: nn.Module) -> None:
        """Reuse the submodules of a block, which must have exactly one adapter."""
        super().__init__()
        parts: Any = block
        self.dense, self.LayerNorm = parts.dense, parts.LayerNorm
        self.adapter_layer_norm, self.adapter_modules = parts.adapter_layer_norm, parts.adapter_modules
        if self.adapter_layer_norm is not None:
            self._norm = "adapter_layer_norm"
        else:
            self._norm = "LayerNorm" if parts.adapter_reuse_layer_norm else ""
        self._residual_is_normed = bool(parts.ln_before_adapter)
        (self._adapter,) = self.adapter_modules

    def forward(self, inner: Tensor, residual: Tensor, lang_ids: Tensor) -> Tensor:
        """Return the layer's hidden states [B, T, H], given its inner ones [B, T, I]; all texts use the one adapter."""
        del lang_ids
        hidden_BTH: Tensor = self.dense(inner) + residual
        normed_BTH = self.get_submodule(self._norm)(hidden_BTH) if self._norm else hidden_BTH
        adapted_BTH: Tensor = self.adapter_modules[self._adapter](normed_BTH)
        return adapted_BTH + (normed_BTH if self._residual_is_normed else hidden_BTH)


def use_one_adapter(module: nn.Module) -> None:
    """Replace, in place, the output blocks of an XMOD model that has one adapter."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "XmodOutput":
                setattr(parent, name, OneAdapterOutput(child))
