"""The demo's backbone as remote code: XLM-R's layers with rotary positions, as jina-colbert-v2's own code has them.

It goes with the checkpoint (`scripts/peer.py checkpoint demo`), so that libraries whose transformers has no such class
load the weights by `trust_remote_code`. It is written for every transformers from 4.49 on: plain torch, no shared code.

Shapes: B texts, T tokens, H hidden size, A heads, W width of a head.
"""

# ruff: noqa: D107 (what a constructor of a torch module does is said by its class)

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class DemoConfig(PretrainedConfig):
    """What the checkpoint's config.json says."""

    model_type = "xlm-roberta"


class Attention(nn.Module):
    """Self-attention with queries, keys and values in one matrix, turned by their positions."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.base = config.rotary_emb_base
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Return the attended hidden states."""
        batch, tokens, hidden = hidden_BTH.shape
        width = hidden // self.heads
        parts = self.Wqkv(hidden_BTH).view(batch, tokens, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        inverse = self.base ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        angle = torch.outer(torch.arange(tokens, dtype=torch.float32), inverse).repeat(1, 2)
        query, key = (_turned(part, angle.cos(), angle.sin()) for part in (query, key))
        seen = mask_BT[:, None, None, :].bool()
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out_proj(found.transpose(1, 2).reshape(batch, tokens, hidden))


def _turned(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = part.chunk(2, dim=-1)
    return part * cos + torch.cat((-right, left), dim=-1) * sin


class Mlp(nn.Module):
    """The two linear maps of a layer."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """Return the hidden states behind both maps."""
        return self.fc2(nn.functional.gelu(self.fc1(hidden_BTH)))


class Layer(nn.Module):
    """Attention, then the linear maps, each added and normalised."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.mixer = Attention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_BTH: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Return the layer's hidden states."""
        hidden_BTH = self.norm1(hidden_BTH + self.mixer(hidden_BTH, mask_BT))
        return self.norm2(hidden_BTH + self.mlp(hidden_BTH))


class Embeddings(nn.Module):
    """Word and token type embeddings; positions are rotary."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        return self.word_embeddings(ids_BT) + self.token_type_embeddings.weight[0]


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class Pooler(nn.Module):
    """What the checkpoint holds beside; late interaction does not use it."""

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class DemoPreTrainedModel(PreTrainedModel):
    """What transformers needs to load the weights."""

    config_class = DemoConfig
    base_model_prefix = "roberta"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)


class DemoModel(DemoPreTrainedModel):
    """The backbone."""

    def __init__(self, config: DemoConfig, **_: object) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.emb_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPooling:
        """Return the hidden states of every token."""
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden_BTH = self.emb_ln(self.embeddings(input_ids))
        for layer in self.encoder.layers:
            hidden_BTH = layer(hidden_BTH, mask_BT)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_BTH)
