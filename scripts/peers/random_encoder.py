"""Build jina-colbert-v2's network with random weights, and random texts, to measure speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict

import numpy as np
import torch


class Shape(TypedDict):
    """The size of a network: layers, entries of the vocabulary, hidden size."""

    layers: int
    vocabulary: int
    hidden: int


FULL_SIZE = Shape(layers=24, vocabulary=250_004, hidden=1024)
"""The shape of jina-colbert-v2."""


def token_table(lengths: np.ndarray, *, vocabulary: int) -> Any:
    """Return random token ids for texts of the given lengths [N]."""
    from evalkit.models.tokens import TokenTable

    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.random.default_rng(0).integers(4, vocabulary, size=int(starts[-1]), dtype=np.int32)
    return TokenTable(ids, starts, lengths)


def encoder_of(  # noqa: PLR0913 (keyword-only after the device)
    device: torch.device,
    *,
    layers: int,
    vocabulary: int,
    dtype: torch.dtype,
    attention: Literal["sdpa", "varlen", "flash"],
    hidden: int = 64,
    dims: Iterable[int] = (128,),
    fused: bool = False,
) -> Any:
    """Return evalkit's encoder with a randomly initialised jina_embeddings_v3; the seed is fixed.

    With `fused`, Triton kernels compute RoPE, residuals and norms.
    """
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    from evalkit.config.settings import CheckpointSource, EncoderConfig, TextRules
    from evalkit.models.elementwise import fuse
    from evalkit.models.encoder import Encoder, moved
    from evalkit.models.tokens import Vocabulary

    shape = JinaEmbeddingsV3Config(  # type: ignore[call-arg]  # attn_implementation is missing in its annotations
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 if hidden > 64 else 2,
        intermediate_size=4 * hidden,
        max_position_embeddings=8194,
        type_vocab_size=1,
        pad_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(device):
        module: torch.nn.Module = JinaEmbeddingsV3Model(shape, add_pooling_layer=False)
        heads = {dim: torch.randn(dim, hidden) / hidden**0.5 for dim in dims}
    names: dict[torch.dtype, Literal["float32", "bfloat16"]] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    rules = TextRules(max_tokens=300)
    config = EncoderConfig(
        name="random",
        kind="late_interaction",
        backbone="jina_embeddings_v3",
        checkpoints={str(dim): CheckpointSource(path="none") for dim in dims},
        query=rules,
        document=rules,
        head="linear",
        pooling="tokens",
        normalize=True,
        skiplist="none",
        dtype=names[dtype],
    )
    module = moved(module.eval(), device, dtype)
    if fused:
        fuse(module)
    return Encoder(
        config=config,
        module=module,
        heads={dim: head.to(dtype) for dim, head in heads.items()},
        vocabulary=Vocabulary(tokenizer=None, first=0, last=2, pad=1, mask=3, size=vocabulary),  # type: ignore[arg-type]  # no text is read
        skipped=torch.zeros(0, dtype=torch.int64),
        device=device,
        dtype=dtype,
        rope_theta=10_000.0,
        attention=attention,
    )
