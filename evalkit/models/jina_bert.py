"""JinaBERT, which transformers lacks: BERT with symmetric ALiBi for positions and a GEGLU feed-forward.

Shapes: B texts, T tokens, H hidden size, A attention heads, K width of a head.
Module names are the checkpoints' own keys, so that every tensor loads under the name it was saved with. Written from
the architecture's description (arXiv 2310.19923) and its key layout as other projects read it (second-hand: vLLM's and
text-embeddings-inference's loaders); tests/parity/test_hub_checkpoints_parity.py holds it to a float64 implementation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True, kw_only=True)
class JinaBertConfig:
    """The sizes that config.json gives."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    type_vocab_size: int
    pad_token_id: int


def alibi_slopes(heads: int) -> list[float]:
    """Return the penalty per token of distance for each head: 2^(-8i/n) for n heads, n the power of two below.

    Heads beyond that power take every other slope of twice as many heads (Press et al., arXiv 2108.12409, and their
    code's rule for other head counts).

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (place + 1) / power) for place in range(power)]
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

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor) -> Tensor:
        query_BATK, key_BATK, value_BATK = (
            layer(x_BTH).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed_BATK = functional.scaled_dot_product_attention(query_BATK, key_BATK, value_BATK, attn_mask=bias_BATT)
        return mixed_BATK.transpose(1, 2).flatten(2)


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

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor) -> Tensor:
        out_BTH: Tensor = self.output(self.self(x_BTH, bias_BATT), x_BTH)
        return out_BTH


class _GatedFeedForward(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_BTH: Tensor) -> Tensor:
        gate, inner = self.gated_layers(x_BTH).chunk(2, dim=-1)
        out_BTH: Tensor = self.layernorm(self.wo(functional.gelu(gate) * inner) + x_BTH)
        return out_BTH


class _Layer(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.mlp = _GatedFeedForward(config)

    def forward(self, x_BTH: Tensor, bias_BATT: Tensor) -> Tensor:
        out_BTH: Tensor = self.mlp(self.attention(x_BTH, bias_BATT))
        return out_BTH


class _Encoder(nn.Module):
    def __init__(self, config: JinaBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class JinaBertModel(nn.Module):
    """The encoder without its pooler; called as transformers' encoders are."""

    def __init__(self, config: JinaBertConfig) -> None:
        """Make every weight, unfilled by training; the loader fills them from a checkpoint."""
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the hidden states [B, T, H]; where `attention_mask` [B, T] is 0, no token attends."""
        x_BTH = self.embeddings(input_ids)
        bias_BATT = self._bias(input_ids.shape[1], x_BTH)
        if attention_mask is not None:
            bias_BATT = bias_BATT.masked_fill(~attention_mask.bool()[:, None, None, :], -math.inf)
        for layer in self.encoder.layer:
            x_BTH = layer(x_BTH, bias_BATT)
        return BaseModelOutput(last_hidden_state=x_BTH)

    def _bias(self, length: int, like: Tensor) -> Tensor:
        """Return ALiBi's penalties [1, A, T, T]: slope times distance, in both directions alike."""
        position_T = torch.arange(length, device=like.device)
        distance_TT = (position_T[:, None] - position_T[None, :]).abs()
        slopes_A = torch.tensor(alibi_slopes(self.config.num_attention_heads), device=like.device)
        return (-slopes_A[:, None, None] * distance_TT).unsqueeze(0).to(like.dtype)
