"""Elementwise operations of a backbone on a GPU, fused so that each takes one pass over memory instead of several.

Shapes: B texts, T width of a batch, X rows (tokens), A heads, K width of a head, H hidden size, I inner size.

Fused are RoPE (jina_embeddings_v3) and each residual with its norm (jina_embeddings_v3 and BERT); see
`evalkit.kernels.gpu.elementwise_kernel` for the arithmetic. The feed-forward of both is computed in slices of rows
(`in_slices`) with GELU in place, so that the rows between its two products stay in the GPU's level-2 cache. In
jina-colbert-v2 this saves 32 KB of memory traffic per token and layer, 786 KB in all, half of it for GELU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.config.settings import Elementwise, EncoderConfig
from evalkit.kernels.cpu import linear
from evalkit.kernels.trouble import first_line, warn_once
from evalkit.models.attention import attend

BACKBONES = ("jina_embeddings_v3", "bert")
"""Backbones with fused operations."""
LABEL = "Triton's elementwise kernels"
SLICE_BYTES = 32 << 20
"""Bytes of a slice between a feed-forward's products: 4,096 rows of jina-colbert-v2 in half precision.

They fit the level-2 cache of an H100 (50 MB), and the second product then has 128 tiles of 128 by 256 for 132
multiprocessors. scripts/gpu/encoding.py also measures other sizes.
"""
MIN_SLICE_ROWS = 1024
"""Fewest rows of a slice, whatever its bytes."""
PROBE_ATOL = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
"""Largest accepted difference between the kernels and fp32, for values of up to about 4."""


class Chosen(NamedTuple):
    """Whether the kernels are used, and the reason if they were requested but cannot be (empty otherwise)."""

    fused: bool
    problem: str


class FusedLayer(nn.Module):
    """A layer of jina_embeddings_v3 with the same weights, names and result as in transformers."""

    def __init__(self, layer: nn.Module) -> None:
        """Reuse the submodules of a layer."""
        super().__init__()
        self.self_attn = FusedAttention(layer.get_submodule("self_attn"))
        self.mlp = layer.get_submodule("mlp")
        self.width = int(cast("Any", self.mlp).config.intermediate_size)
        self.post_attention_layernorm = _norm(layer.get_submodule("post_attention_layernorm"))
        self.post_mlp_layernorm = _norm(layer.get_submodule("post_mlp_layernorm"))

    def forward(
        self,
        hidden_BTH: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> Tensor:
        """Return the layer's hidden states [B, T, H]; `position_embeddings` are the cosines and sines."""
        assert position_embeddings is not None
        mixed_BTH = self.self_attn(hidden_BTH, attention_mask, position_embeddings, **more)
        hidden_BTH = add_and_norm(mixed_BTH, hidden_BTH, self.post_attention_layernorm)
        return in_slices(hidden_BTH, self.mlp, self.post_mlp_layernorm, width=self.width)


class FusedAttention(nn.Module):
    """The attention of a FusedLayer: projections, RoPE in one pass, `attend`, output projection."""

    is_causal = False

    def __init__(self, attention: nn.Module) -> None:
        """Reuse the projections of an attention module."""
        super().__init__()
        parts: Any = attention
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = parts.q_proj, parts.k_proj, parts.v_proj, parts.o_proj
        self.head_dim: int = parts.head_dim

    def forward(
        self, hidden_BTH: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor], **more: Any
    ) -> Tensor:
        """Return the attention output [B, T, H]; `position_embeddings` are the cosines and sines [B, T, K]."""
        query, key, value = (
            projection(hidden_BTH).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        rotate_in_place(query, key, *position_embeddings)
        heads = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        mixed_BTAK, _ = attend(self, *heads, attention_mask, **more)
        out_BTH: Tensor = self.o_proj(mixed_BTAK.flatten(2))
        return out_BTH


class FusedResidual(nn.Module):
    """A block of BERT, `norm(x @ weight.T + bias + residual)`, with sum and norm in one pass."""

    def __init__(self, block: nn.Module) -> None:
        """Reuse the submodules of a block."""
        super().__init__()
        self.dense, self.LayerNorm = block.get_submodule("dense"), _norm(block.get_submodule("LayerNorm"))

    def forward(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Apply the block to rows [..., I] and residual [..., H]; return [..., H]."""
        return add_and_norm(self.dense(rows), residual, self.LayerNorm)


class GeluInPlace(nn.Module):
    """Exact GELU (by the error function) that overwrites its input."""

    def forward(self, rows: Tensor) -> Tensor:
        """Apply GELU to each number."""
        gelu: Tensor = torch.ops.aten.gelu.out(rows, out=rows)
        return gelu


def in_slices(hidden: Tensor, feed_forward: Callable[[Tensor], Tensor], norm: nn.LayerNorm, *, width: int) -> Tensor:
    """Return `norm(hidden + feed_forward(hidden))` [..., H], computed in slices of rows; `hidden` is overwritten.

    `width` is the width between the feed-forward's products; a slice has as many rows as fit SLICE_BYTES. Rows are
    independent, so slicing changes results no more than another batch size does: in the last bits.
    """
    hidden = hidden.contiguous()
    rows_XH = hidden.view(-1, hidden.shape[-1])
    for slice_XH in torch.split(rows_XH, max(MIN_SLICE_ROWS, SLICE_BYTES // (width * hidden.element_size()))):
        add_and_norm(slice_XH, feed_forward(slice_XH), norm)
    return hidden


def rotate_in_place(query_BTAK: Tensor, key_BTAK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> None:
    """Apply RoPE to queries and keys in place, which must be contiguous.

    The cosines and sines may be those of one text only; then all texts use them.
    """
    from evalkit.kernels.gpu.elementwise_kernel import rotate

    assert query_BTAK.is_contiguous()
    assert key_BTAK.is_contiguous()
    *_, heads, width = query_BTAK.shape
    tokens = query_BTAK.numel() // (heads * width)
    blocks = {"head_block": _power_of_two(heads), "half_block": _power_of_two(width // 2)}
    tables = (cos_BTK.contiguous(), sin_BTK.contiguous())
    period = cos_BTK.numel() // width  # rows of a table; the kernel repeats them for further texts
    with torch.cuda.device_of(query_BTAK):  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        rotate[(tokens,)](
            query_BTAK,
            key_BTAK,
            *tables,
            period,
            heads=heads,
            half=width // 2,
            **blocks,
            num_warps=warps(prod(blocks.values())),
        )


def add_and_norm(rows: Tensor, others: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return `norm(rows + others)` [..., H]; `rows` is overwritten."""
    from evalkit.kernels.gpu.elementwise_kernel import add_norm

    rows, others, width = rows.contiguous(), others.contiguous(), rows.shape[-1]
    options = {"eps": norm.eps, "width": width, "block": _power_of_two(width), "num_warps": warps(_power_of_two(width))}
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        add_norm[(rows.numel() // width,)](rows, others, norm.weight, norm.bias, **options)
    return rows


def warps(numbers: int) -> int:
    """Return the number of warps for a row of `numbers`: each thread loads 8, which are 16 bytes in half precision.

    >>> [warps(numbers) for numbers in (64, 512, 1024)]
    [1, 2, 4]
    """
    return max(1, min(8, numbers // 256))


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`.

    >>> [_power_of_two(number) for number in (1, 12, 16)]
    [1, 16, 16]
    """
    return 1 << (number - 1).bit_length()


def fuse(module: nn.Module) -> None:
    """Replace, in place, the operations of a backbone that the kernels fuse; weights keep their names."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "JinaEmbeddingsV3Layer":
                setattr(parent, name, FusedLayer(child))
            elif type(child).__name__ in linear.RESIDUAL_BLOCKS and _is_norm(getattr(child, "LayerNorm", None)):
                setattr(parent, name, FusedResidual(child))
            elif linear.is_gelu(child):
                setattr(parent, name, GeluInPlace())
    for layer in module.modules():
        if type(layer).__name__ == "BertLayer" and isinstance(layer.output, FusedResidual):
            _slice_feed_forward(layer)


def _slice_feed_forward(layer: nn.Module) -> None:
    """Make a layer of BERT compute its feed-forward in slices, by replacing its method `feed_forward_chunk`."""
    parts: Any = layer
    block: FusedResidual = parts.output

    def feed_forward(rows_XH: Tensor) -> Tensor:
        projected_XH: Tensor = block.dense(parts.intermediate(rows_XH))
        return projected_XH

    def chunk(attention_output: Tensor) -> Tensor:
        width = int(parts.intermediate.dense.weight.shape[0])
        return in_slices(attention_output, feed_forward, block.LayerNorm, width=width)

    parts.feed_forward_chunk = chunk


def _norm(module: nn.Module) -> nn.LayerNorm:
    assert _is_norm(module)
    return module


def _is_norm(module: object) -> TypeGuard[nn.LayerNorm]:
    """Whether a module is a LayerNorm with weight and bias; a subclass may compute something else."""
    return type(module) is nn.LayerNorm and module.weight is not None and module.bias is not None


def choose(requested: Elementwise, *, config: EncoderConfig, device: torch.device) -> Chosen:
    """Decide whether a model uses the kernels; log once if they cannot be used.

    `auto` uses them on CUDA if they give the results of torch's own calls.
    """
    if requested == "torch" or config.backbone not in BACKBONES or config.trust_remote_code:
        return Chosen(fused=False, problem="")
    if requested == "auto" and device.type != "cuda":
        return Chosen(fused=False, problem="")
    problem = probe(device, config.dtype)
    if problem:
        problem = f"{problem}; torch's own calls are used instead"
        warn_once(problem)
    return Chosen(fused=not problem, problem=problem)


@cache
def probe(device: torch.device, dtype: str) -> str:
    """Run both kernels on a few numbers and compare with fp32. Return the problem, or "" if there is none."""
    if importlib.util.find_spec("triton") is None:
        return f"{LABEL} need the package triton, which is not installed"
    generator = torch.Generator().manual_seed(0)
    torch_dtype = getattr(torch, dtype)
    query, key, angle = (torch.randn(shape, generator=generator) for shape in ((2, 3, 5, 12), (2, 3, 5, 12), (1, 3, 6)))
    rows, others, weight, bias = (torch.randn(shape, generator=generator) for shape in ((3, 40), (3, 40), (40,), (40,)))
    query, key, rows, others, weight, bias = (part.to(torch_dtype) for part in (query, key, rows, others, weight, bias))
    cos, sin = (torch.cat([table, table], dim=2).to(torch_dtype) for table in (angle.cos(), angle.sin()))
    wanted = [reference_rotated(part.float(), cos.float(), sin.float()) for part in (query, key)]
    wanted.append(functional.layer_norm(rows.float() + others.float(), (40,), weight.float(), bias.float()))
    norm = nn.LayerNorm(40, dtype=torch_dtype)
    norm.load_state_dict({"weight": weight, "bias": bias})
    try:
        with torch.inference_mode():
            query, key = query.to(device), key.to(device)
            rotate_in_place(query, key, cos.to(device), sin.to(device))
            ours = [query, key, add_and_norm(rows.to(device), others.to(device), norm.to(device))]
            differences = [(one.float().cpu() - other).abs().max() for one, other in zip(ours, wanted, strict=True)]
            difference = float(torch.stack(differences).max())
    except Exception as error:  # noqa: BLE001 (a compiler that does not support the GPU can raise anything)
        return f"{LABEL} are unusable here ({type(error).__name__}: {first_line(error)})"
    return "" if difference <= PROBE_ATOL[dtype] else f"{LABEL} give wrong values here (off by {difference:.1e})"


def reference_rotated(heads_BTAK: Tensor, cos_BTK: Tensor, sin_BTK: Tensor) -> Tensor:
    """Return heads rotated by RoPE's definition, in the variant that pairs the two halves of a head."""
    first, second = heads_BTAK.chunk(2, dim=-1)
    return heads_BTAK * cos_BTK.unsqueeze(2) + torch.cat([-second, first], dim=-1) * sin_BTK.unsqueeze(2)
