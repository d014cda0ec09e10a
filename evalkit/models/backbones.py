"""Build a transformer from a checkpoint's tensors, every one of them accounted for.

The class and its configuration are chosen here, never by the checkpoint: with the `model_type: xlm-roberta` of
jina-colbert-v2's config.json an automatic class would build another network and leave its layers random.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from evalkit.errors import ModelError
from evalkit.models.checkpoint import WEIGHTS, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

HEAD = "linear.weight"
ARCHITECTURE_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "type_vocab_size",
    "pad_token_id",
)
"""What every backbone here reads from config.json; each adds its own."""
OPTIONAL_KEYS = ("bos_token_id", "eos_token_id", "hidden_act", "rotary_emb_base")
DEFAULT_ROPE_THETA = 10_000.0
"""RoPE base where config.json has none: inferred (the original code's default), not published."""


class Backbone(NamedTuple):
    """A loaded transformer, and the facts of it that a result must record."""

    module: nn.Module
    hidden_size: int
    rope_theta: float | None


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read all tensors of `model.safetensors`. Raises ModelError when the file is damaged or cut short."""
    path = checkpoint.folder / WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a whole safetensors file ({error}); fetch the file again"
        raise ModelError(msg) from error


def jina_embeddings_v3(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, rope_theta: float | None, origin: str
) -> Backbone:
    """Build transformers' native `jina_embeddings_v3` from the keys of jina-colbert-v2's repositories.

    The pooler is left out: no vector of a late-interaction model passes through it.
    """
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    theta = rope_theta if rope_theta is not None else float(values.get("rotary_emb_base", DEFAULT_ROPE_THETA))
    shape = _config_values(values, [*ARCHITECTURE_KEYS, "bos_token_id", "eos_token_id"], origin=origin)
    config = JinaEmbeddingsV3Config(**shape, rope_parameters={"rope_type": "default", "rope_theta": theta})
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == HEAD or name.startswith("roberta.pooler."):
            continue
        renamed.update(_native_names(name, tensor))
    module = _filled(lambda c: JinaEmbeddingsV3Model(c, add_pooling_layer=False), config, renamed, origin=origin)
    return Backbone(module, config.hidden_size, theta)


_JINA_RENAMES = (
    (re.compile(r"^roberta\."), ""),
    (re.compile(r"^emb_ln\."), "embeddings.LayerNorm."),
    (re.compile(r"^encoder\.layers\."), "layers."),
    (re.compile(r"\.mixer\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"\.norm1\."), ".post_attention_layernorm."),
    (re.compile(r"\.norm2\."), ".post_mlp_layernorm."),
)


def _native_names(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """Yield the native class's name for one checkpoint tensor; the fused Wqkv is cut into its rows [q; k; v]."""
    for pattern, replacement in _JINA_RENAMES:
        name = pattern.sub(replacement, name)
    if ".mixer.Wqkv." in name:
        for part, piece in zip("qkv", tensor.chunk(3, dim=0), strict=True):
            yield name.replace(".mixer.Wqkv.", f".self_attn.{part}_proj."), piece
    else:
        yield name, tensor


def bert(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, rope_theta: float | None, origin: str
) -> Backbone:
    """Build BERT without its pooler; keys may carry the `bert.` prefix of a full model."""
    from transformers import BertConfig, BertModel

    if rope_theta is not None:
        msg = (
            f"{origin}: got rope_theta={rope_theta} for BERT, which has absolute positions; leave model.rope_theta out"
        )
        raise ModelError(msg)
    shape = _config_values(values, [*ARCHITECTURE_KEYS, "hidden_act"], origin=origin)
    config = BertConfig(**shape)
    renamed = {
        name.removeprefix("bert."): tensor
        for name, tensor in tensors.items()
        # position_ids is a constant 0, 1, 2, … that old exports saved beside the weights.
        if name != HEAD and not name.startswith(("pooler.", "bert.pooler.")) and not name.endswith(".position_ids")
    }
    module = _filled(lambda c: BertModel(c, add_pooling_layer=False), config, renamed, origin=origin)
    return Backbone(module, config.hidden_size, None)


BACKBONES: Mapping[str, Callable[..., Backbone]] = {"jina_embeddings_v3": jina_embeddings_v3, "bert": bert}


def _config_values(values: Mapping[str, Any], names: list[str], *, origin: str) -> dict[str, Any]:
    missing = [name for name in names if name not in values]
    if missing:
        msg = f"{origin}: config.json lacks {', '.join(missing)}, which the architecture needs"
        raise ModelError(msg)
    return {name: values[name] for name in names}


def _filled(
    build: Callable[[Any], nn.Module], config: PretrainedConfig, tensors: Mapping[str, Tensor], *, origin: str
) -> nn.Module:
    """Build the module and load every tensor into it. Raises ModelError that lists what does not fit."""
    config._attn_implementation = "sdpa"  # noqa: SLF001 (the only way to choose it for a class built by hand)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    missing = sorted(set(shapes) - set(tensors))
    unexpected = sorted(set(tensors) - set(shapes))
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, wanted {shapes[name]}"
        for name in sorted(set(shapes) & set(tensors))
        if tuple(tensors[name].shape) != shapes[name]
    ]
    problems = [
        f"{label} {_few(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshapen))
        if names
    ]
    if problems:
        msg = f"{origin}: the checkpoint does not fit {type(config).__name__}: {'; '.join(problems)}"
        raise ModelError(msg)
    module = build(config)
    module.load_state_dict(dict(tensors), strict=True)
    return module.eval().requires_grad_(requires_grad=False)


def _few(names: list[str], *, shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"
