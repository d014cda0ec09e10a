"""JinaBERT, which transformers lacks: BERT with symmetric ALiBi for positions and a GEGLU feed-forward.

Shapes: B texts, T tokens, H hidden size, I inner size, A attention heads, K width of a head.
Modules are named like the checkpoints' keys, so that every tensor is loaded under its own name. The sources are the
description of the architecture (arXiv 2310.19923) and, for the key layouts, the loaders of vLLM,
text-embeddings-inference and llama.cpp. tests/parity/test_hub_checkpoints_parity.py compares all layouts with a float64
implementation. A checkpoint's layout is recognised by its keys, because its config.json does not state it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from evalkit.models.attention import Packing, packed_attention


@dataclass(frozen=True, kw_only=True)
class JinaBertConfig:
    """The sizes in config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    type_vocab_size: int
    pad_token_id: int
    qk_norm: bool = False
    """Whether queries and keys are normalised before they are split into heads."""
    outer_norms: bool = False
    """Whether the layer adds and normalises the outputs of attention (for a second time) and feed-forward."""


def alibi_slopes(heads: int) -> list[float]:
    """Return each head's penalty per token of distance: 2^(-8i/n) for head i of n, if n is a power of two.

    For other numbers of heads, n is the next lower power of two, and the heads beyond it take every other slope of 2n
    heads (Press et al., arXiv 2108.12409, and their code).

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


class _Embeddings(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids_BT: Tensor) -> Tensor:
        summed: Tensor = self.LayerNorm(self.word_embeddings(ids_BT) + self.token_type_embeddings.weight[0])
        return summed


class _SelfAttention(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.layer_norm_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.layer_norm_k = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor, packing: Packing | None = None) -> Tensor:
        query_BTH, key_BTH, value_BTH = self.query(x_BTH), self.key(x_BTH), self.value(x_BTH)
        if self.qk_norm:
            query_BTH, key_BTH = self.layer_norm_q(query_BTH), self.layer_norm_k(key_BTH)
        query_BATK, key_BATK, value_BATK = (
            rearrange(part_BTH, "b t (a k) -> b a t k", a=self.heads) for part_BTH in (query_BTH, key_BTH, value_BTH)
        )
        if packing is not None:
            query, key, value = (part[0].transpose(0, 1) for part in (query_BATK, key_BATK, value_BATK))
            scale = query.shape[-1] ** -0.5
            mixed_XAK = packed_attention(query, key, value, packing, scale=scale, bias_ATT=bias_BATT[0])
            return mixed_XAK.flatten(1).unsqueeze(0)
        mixed_BATK = functional.scaled_dot_product_attention(query_BATK, key_BATK, value_BATK, attn_mask=bias_BATT)
        return rearrange(mixed_BATK, "b a t k -> b t (a k)")


class _AttentionOutput(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, mixed_BTH: Tensor, x_BTH: Tensor) -> Tensor:
        out_BTH: Tensor = self.LayerNorm(self.dense(mixed_BTH) + x_BTH)
        return out_BTH


class _Attention(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _AttentionOutput(config)

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor, packing: Packing | None) -> Tensor:
        out_BTH: Tensor = self.output(self.self(x_BTH, bias_BATT, packing), x_BTH)
        return out_BTH


class _GatedFeedForward(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTH: Tensor) -> Tensor:
        gate_BTI, inner_BTI = rearrange(self.gated_layers(x_BTH), "b t (half i) -> half b t i", half=2)
        out_BTH: Tensor = self.layernorm(self.wo(functional.gelu(gate_BTI) * inner_BTI) + x_BTH)
        return out_BTH


class _UpGatedFeedForward(nn.Module):
    """The feed-forward of checkpoints with outer norms: its gate is the second half, not the first."""

    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.up_gated_layer = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_layer = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTH: Tensor) -> Tensor:
        up_BTI, gate_BTI = rearrange(self.up_gated_layer(x_BTH), "b t (half i) -> half b t i", half=2)
        out_BTH: Tensor = self.down_layer(up_BTI * functional.gelu(gate_BTI))
        return out_BTH


class _Layer(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.outer_norms = config.outer_norms
        self.mlp = _UpGatedFeedForward(config) if config.outer_norms else _GatedFeedForward(config)
        if config.outer_norms:
            self.layer_norm_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.layer_norm_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor, packing: Packing | None) -> Tensor:
        mixed_BTH: Tensor = self.attention(x_BTH, bias_BATT, packing)
        if self.outer_norms:
            inner_BTH = self.layer_norm_1(x_BTH + mixed_BTH)
            out_BTH: Tensor = self.layer_norm_2(inner_BTH + self.mlp(inner_BTH))
        else:
            out_BTH = self.mlp(mixed_BTH)
        return out_BTH


class _Encoder(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


@cache
def _slopes(heads: int, device: torch.device) -> Tensor:
    """Return ALiBi's slopes [A] on a device. They are copied once, because the host waits for each such copy."""
    return torch.tensor(alibi_slopes(heads), device=device)


class JinaBertModel(nn.Module):
    """The encoder without a pooler; it is called like transformers' encoders."""

    def __init__(self, config: JinaBertConfig) -> None:
        """Allocate the weights; the loader fills them from a checkpoint."""
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None
    ) -> BaseModelOutput:
        """Return the hidden states [B, T, H]; where `attention_mask` [B, T] is 0, no token attends.

        With `packing`, `input_ids` has one row of concatenated texts, each of which attends only to itself.
        """
        x_BTH = self.embeddings(input_ids)
        bias_BATT = self._bias(input_ids.shape[1] if packing is None else packing.longest_q, x_BTH)
        if attention_mask is not None:
            bias_BATT = bias_BATT.masked_fill(~attention_mask.bool()[:, None, None, :], -math.inf)
        for layer in self.encoder.layer:
            x_BTH = layer(x_BTH, bias_BATT, packing)
        return BaseModelOutput(last_hidden_state=x_BTH)

    def _bias(self, length: int, like: Tensor) -> Tensor:
        """Return ALiBi's penalties [1, A, T, T] with the dtype of `like`: minus slope times distance."""
        position_T = torch.arange(length, device=like.device)
        distance_TT = (position_T[:, None] - position_T[None, :]).abs()
        slopes_A = _slopes(self.config.num_attention_heads, like.device)
        return (-slopes_A[:, None, None] * distance_TT).unsqueeze(0).to(like.dtype)
