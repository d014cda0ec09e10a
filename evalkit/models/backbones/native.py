"""Build a transformer from a checkpoint's tensors; every tensor is loaded, left out on purpose, or an error.

The config chooses the class, never the checkpoint: for the `model_type: xlm-roberta` of jina-colbert-v2's config.json,
transformers' automatic class would build another network with random layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open

from evalkit.config.settings import EncoderConfig
from evalkit.errors import ModelError
from evalkit.models.checkpoint import PICKLE, WEIGHTS, Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from evalkit.models.backbones.jina_bert import JinaBertConfig

HEAD = "linear.weight"
"""The name of a linear head's weight in a checkpoint."""
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
"""The keys of config.json that every backbone reads; each backbone adds its own."""
XMOD_KEYS = (
    "pre_norm",
    "adapter_reduction_factor",
    "adapter_layer_norm",
    "adapter_reuse_layer_norm",
    "ln_before_adapter",
)
OPTIONAL_KEYS = (
    *("bos_token_id", "eos_token_id", "hidden_act", "position_embedding_type", "feed_forward_type"),
    *("rotary_emb_base", "rotary_emb_interleaved", "rotary_emb_scale_base", "languages", *XMOD_KEYS),
)
"""Further keys that some backbones read; dims share a backbone only if all of these are equal."""
MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "jina_embeddings_v3": ("xlm-roberta", "jina_embeddings_v3"),
    "bert": ("bert",),
    "jina_bert": ("bert", "jina_clip"),
    "xmod": ("xmod",),
}
"""The valid `model_type` in config.json for each backbone."""
FIXED_VALUES: Mapping[str, Mapping[str, Any]] = {
    "jina_embeddings_v3": {
        "position_embedding_type": "rotary",
        "hidden_act": "gelu",
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
    },
    "bert": {"position_embedding_type": "absolute"},
    "jina_bert": {},
    "xmod": {"position_embedding_type": "absolute"},
    "transformers": {},
}
"""Fixed properties of a backbone's class; a checkpoint whose config.json states other values is refused."""
# Keys of config.json by their valid values, which `config_values` checks.
COUNTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
)
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
MEASURES = ("layer_norm_eps", "adapter_reduction_factor")
SWITCHES = ("pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")
MAX_SIZE = 100_000_000
"""More than any valid size in config.json; building a model of a larger size would not end."""
MAX_LAYERS = 1_000
DEFAULT_ROPE_THETA = 10_000.0
"""RoPE base if config.json has none: inferred from the default of the original code, not published."""
ROPE_FREQUENCIES = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq")
"""The native class's buffers with RoPE's frequencies."""


class Backbone(NamedTuple):
    """A loaded transformer, its hidden size, and its RoPE base (None without RoPE or if unknown)."""

    module: nn.Module
    hidden_size: int
    rope_theta: float | None


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read all tensors of the weights file. Raises ModelError if the file is damaged or truncated."""
    if PICKLE in checkpoint.checksums:
        return _read_pickle(checkpoint)
    path = checkpoint.folder / WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a whole safetensors file ({error}); fetch the file again"
        raise ModelError(msg) from error


def refuse_unused(config: EncoderConfig, *, origin: str) -> None:
    """Raise ModelError for a setting without effect on this model: a result would name it all the same."""
    backbone, pooling = config.backbone, config.pooling
    problem = None
    if config.rope_theta != "checkpoint" and backbone != "jina_embeddings_v3":
        problem = f"rope_theta={config.rope_theta} for {backbone}, which has no RoPE; leave model.rope_theta out"
    elif config.adapter is not None and backbone != "xmod":
        problem = f"adapter={config.adapter} for {backbone}, which has no language adapters; leave model.adapter out"
    elif config.skiplist != "none" and pooling != "tokens":
        problem = f"skiplist={config.skiplist} for pooling {pooling}, which is over all tokens; set model.skiplist=none"
    if problem is not None:
        raise ModelError(f"{origin}: got {problem}")


def count_parameters(checkpoint: Checkpoint, *, adapter: str | None) -> int:
    """Return the number of floats in the weights file, including the head.

    Of XMOD's language adapters only `adapter` is counted. Of a safetensors file only the header is read. Raises
    ModelError if the file is damaged.
    """
    if PICKLE in checkpoint.checksums:
        sizes = {name: value.numel() for name, value in _read_pickle(checkpoint).items() if value.is_floating_point()}
    else:
        path = checkpoint.folder / WEIGHTS
        try:
            with safe_open(str(path), framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
                sizes = {
                    name: math.prod(part.get_shape())
                    for name, part in slices.items()
                    if part.get_dtype().startswith(("F", "BF"))
                }
        except (SafetensorError, OSError) as error:
            msg = f"{path}: not a whole safetensors file ({error}); fetch the file again"
            raise ModelError(msg) from error
    return sum(size for name, size in sizes.items() if (match := _ADAPTER.search(name)) is None or match[1] == adapter)


def _read_pickle(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read `pytorch_model.bin` with torch's tensor-only unpickler, which runs no code from the file."""
    path = checkpoint.folder / PICKLE
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes torch raises errors of nearly every type
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        msg = f"{path}: not a whole file of tensors ({reason}); fetch the file again, or get a safetensors copy"
        raise ModelError(msg) from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        msg = f"{path}: got more than named tensors, wanted a state dict; get a safetensors copy"
        raise ModelError(msg)
    return values


def build(tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str) -> Backbone:
    """Build the config's backbone from a checkpoint's tensors and the values of its config.json.

    Raises ModelError for another architecture, a missing value or tensors that do not fit.
    """
    check_model_type(values, config, origin=origin)
    refuse_unused(config, origin=origin)
    for name, value in FIXED_VALUES[config.backbone].items():
        if name in values and values[name] != value:
            msg = f"{origin}: config.json has {name} {values[name]!r}, wanted {value!r} for model.backbone"
            raise ModelError(f"{msg}={config.backbone}; this is another architecture")
    with explain_import_errors():  # each of these functions imports transformers
        return BACKBONES[config.backbone](tensors, values, config, origin=origin)


@contextmanager
def explain_import_errors() -> Iterator[None]:
    """Raise a one-line ModelError if a package that transformers imports fails on import.

    torchvision and flash_attn do if they were built for another torch; no model here needs them.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "import" not in str(error):
            raise
        first: BaseException = error
        while (cause := first.__cause__ or first.__context__) is not None:
            first = cause
        reason = " ".join(f"{type(first).__name__}: {first}".split())
        msg = f"transformers cannot be imported here ({reason}): a package that it uses is broken"
        raise ModelError(f"{msg}; reinstall or remove that package (often torchvision or flash_attn)") from error


def check_model_type(values: Mapping[str, Any], config: EncoderConfig, *, origin: str) -> None:
    """Raise ModelError if the `model_type` of a checkpoint's config.json does not belong to the config's backbone."""
    found = values.get("model_type")
    if config.backbone == "transformers":
        if found != config.architecture:
            wanted_type = f"wanted {config.architecture!r} as model.architecture says"
            msg = f"{origin}: config.json has model_type {found!r}, {wanted_type}; this is another architecture"
            raise ModelError(msg)
        return
    wanted = MODEL_TYPES[config.backbone]
    if found is not None and found not in wanted:
        msg = (
            f"{origin}: config.json has model_type {found!r}, wanted {' or '.join(wanted)} "
            f"for model.backbone={config.backbone}; this is another architecture"
        )
        raise ModelError(msg)


def jina_embeddings_v3(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str
) -> Backbone:
    """Build transformers' native `jina_embeddings_v3` from the tensors of jina-colbert-v2's repositories.

    The pooler is left out: no vector of a late-interaction model depends on it.
    """
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    requested = config.rope_theta
    theta = values.get("rotary_emb_base", DEFAULT_ROPE_THETA) if requested == "checkpoint" else requested
    if not _positive(theta):
        msg = f"{origin}: config.json has rotary_emb_base {theta!r}, wanted a number above 0; fetch the file again"
        raise ModelError(msg)
    shape = config_values(values, [*ARCHITECTURE_KEYS, "bos_token_id", "eos_token_id"], origin=origin)
    native = JinaEmbeddingsV3Config(**shape, rope_parameters={"rope_type": "default", "rope_theta": float(theta)})
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == HEAD or name.startswith("roberta.pooler."):
            continue
        renamed.update(_native_names(name, tensor, origin=origin))
    module = filled(lambda c: JinaEmbeddingsV3Model(c, add_pooling_layer=False), native, renamed, origin=origin)
    return Backbone(module, native.hidden_size, float(theta))


_JINA_RENAMES = (
    (re.compile(r"^roberta\."), ""),
    (re.compile(r"^emb_ln\."), "embeddings.LayerNorm."),
    (re.compile(r"^encoder\.layers\."), "layers."),
    (re.compile(r"\.mixer\.out_proj\."), ".self_attn.o_proj."),
    (re.compile(r"\.norm1\."), ".post_attention_layernorm."),
    (re.compile(r"\.norm2\."), ".post_mlp_layernorm."),
)


def _native_names(name: str, tensor: Tensor, *, origin: str) -> Iterable[tuple[str, Tensor]]:
    """Yield a checkpoint tensor under the native class's name; the fused Wqkv is split into its rows [q; k; v]."""
    for pattern, replacement in _JINA_RENAMES:
        name = pattern.sub(replacement, name)
    if ".mixer.Wqkv." in name:
        for part, rows in zip("qkv", _thirds(name, tensor, origin=origin), strict=True):
            yield name.replace(".mixer.Wqkv.", f".self_attn.{part}_proj."), rows
    else:
        yield name, tensor


def _thirds(name: str, tensor: Tensor, *, origin: str) -> Tensor:
    """Split fused rows into three equal parts. Raises ModelError if that is not possible."""
    if tensor.ndim == 0 or len(tensor) % 3:
        msg = f"{origin}: mis-shaped {name} is {tuple(tensor.shape)}, wanted three equal parts [q; k; v]"
        raise ModelError(msg)
    return rearrange(tensor, "(part rows) ... -> part rows ...", part=3)


def bert(tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str) -> Backbone:
    """Build BERT without its pooler; tensor names may have the prefix `bert.` of a model with a head."""
    from transformers import BertConfig, BertModel

    native = BertConfig(**config_values(values, [*ARCHITECTURE_KEYS, "hidden_act"], origin=origin))
    check_positions(config, native.max_position_embeddings, origin=origin)
    renamed = _without(tensors, prefix="bert.", left_out=("pooler.", "cls."))
    module = filled(lambda c: BertModel(c, add_pooling_layer=False), native, renamed, origin=origin)
    return Backbone(module, native.hidden_size, None)


def jina_bert(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str
) -> Backbone:
    """Build evalkit's own JinaBERT without its pooler and masked-language-model head, which change no vector.

    Of jina-clip-v1 only the text encoder is built.
    """
    from evalkit.models.backbones.jina_bert import JinaBertConfig, JinaBertModel

    del config
    if values.get("model_type") == "jina_clip":
        tensors, values = _text_tower(tensors, values, origin=origin)
    for name, wanted in (("position_embedding_type", "alibi"), ("feed_forward_type", "geglu")):
        if values.get(name) != wanted:
            msg = (
                f"{origin}: config.json has {name} {values.get(name)!r}, wanted {wanted!r} for model.backbone=jina_bert"
            )
            raise ModelError(msg)
    keys = [name for name in ARCHITECTURE_KEYS if name != "max_position_embeddings"]  # ALiBi has no last position
    renamed = _without(tensors, prefix="bert.", left_out=("pooler.", "cls."))
    native = JinaBertConfig(
        **config_values(values, keys, origin=origin),
        qk_norm="encoder.layer.0.attention.self.layer_norm_q.weight" in renamed,
        outer_norms="encoder.layer.0.layer_norm_1.weight" in renamed,
    )
    module = filled(JinaBertModel, native, renamed, origin=origin)
    return Backbone(module, native.hidden_size, None)


# "Text tower" is CLIP's name of the text encoder.
_TEXT_TOWER = "text_model.transformer."
_TEXT_TOWER_HEAD_WIDTH = 64
_TEXT_TOWER_VALUES = {
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
}
"""Values that jina-clip-v1's config.json takes from jina-bert-flash-implementation's; sizes follow from the tensors."""
_TEXT_TOWER_RENAMES = (
    (re.compile(r"^emb_ln\."), "embeddings.LayerNorm."),
    (re.compile(r"^encoder\.layers\."), "encoder.layer."),
    (re.compile(r"\.mixer\.out_proj\."), ".attention.output.dense."),
    (re.compile(r"\.norm1\."), ".attention.output.LayerNorm."),
    (re.compile(r"\.norm2\."), ".mlp.layernorm."),
)
"""Undoes the renaming of jina-bert-flash-implementation's convert_v2_weights.py."""


def _text_tower(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, origin: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of jina-clip-v1's text tower under JinaBERT's names, and the values of its config.

    Raises ModelError if a tensor is missing, or config.json asks for more than the mean of the tower's hidden states.
    """
    text = values.get("text_config") or {}
    output = {"pooler_type": text.get("pooler_type"), "proj_type": text.get("proj_type")}
    if output != {"pooler_type": "mean_pooler", "proj_type": None} or values.get("add_projections"):
        found = {**output, "add_projections": values.get("add_projections")}
        msg = f"{origin}: config.json has {found} for the text tower, wanted mean_pooler and no projection"
        raise ModelError(f"{msg}; this is another architecture")
    renamed: dict[str, Tensor] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("vision_model.") or full_name == "logit_scale":
            continue
        name = full_name.removeprefix(_TEXT_TOWER)
        for pattern, replacement in _TEXT_TOWER_RENAMES:
            name = pattern.sub(replacement, name)
        if ".mixer.Wqkv." in name:
            for part, rows in zip(("query", "key", "value"), _thirds(name, tensor, origin=origin), strict=True):
                renamed[name.replace(".mixer.Wqkv.", f".attention.self.{part}.")] = rows
        else:
            renamed[name] = tensor
    layers = {match[1] for name in renamed if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    try:
        vocabulary, hidden = renamed["embeddings.word_embeddings.weight"].shape
        sizes = {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_hidden_layers": len(layers),
            "num_attention_heads": hidden // _TEXT_TOWER_HEAD_WIDTH,
            "intermediate_size": renamed["encoder.layer.0.mlp.wo.weight"].shape[1],
            "type_vocab_size": len(renamed["embeddings.token_type_embeddings.weight"]),
        }
    except KeyError as error:
        msg = f"{origin}: the checkpoint has no {_TEXT_TOWER}… for {error}; wanted jina-clip-v1's text tower"
        raise ModelError(msg) from error
    return renamed, {**_TEXT_TOWER_VALUES, **sizes}


def xmod(tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str) -> Backbone:
    """Build XMOD with only the language adapter of the config."""
    from transformers import XmodConfig, XmodModel

    from evalkit.models.backbones.xmod import use_one_adapter

    names = [*ARCHITECTURE_KEYS, "hidden_act", "languages", *XMOD_KEYS]
    shape = config_values(values, names, origin=origin)
    languages, chosen = list(shape["languages"] or ()), config.adapter
    if chosen not in languages:
        msg = f"{origin}: no language adapter {chosen!r}; choose with model.adapter=CODE one of {', '.join(languages)}"
        raise ModelError(msg)
    native = XmodConfig(**{**shape, "languages": [chosen], "default_language": chosen})
    check_positions(config, shape["max_position_embeddings"] - shape["pad_token_id"] - 1, origin=origin)
    others = {language for language in languages if language != chosen}
    renamed = {
        name: tensor
        for name, tensor in _without(tensors, prefix="roberta.", left_out=("pooler.", "lm_head.")).items()
        if not (match := _ADAPTER.search(name)) or match[1] not in others
    }
    module = filled(lambda c: XmodModel(c, add_pooling_layer=False), native, renamed, origin=origin)
    use_one_adapter(module)
    return Backbone(module, native.hidden_size, None)


def transformers_own(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str
) -> Backbone:
    """Build any other text model with transformers' own loader; the head is loaded separately."""
    from evalkit.models.backbones import generic

    without_head = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    module, hidden_size = generic.load(without_head, values, config, origin=origin)
    return Backbone(module, hidden_size, None)


def check_positions(config: EncoderConfig, positions: int, *, origin: str) -> None:
    """Raise ModelError if max_tokens exceeds the number of positions of a model with learned positions."""
    for side, rules in (("query", config.query), ("document", config.document)):
        if rules.max_tokens > positions:
            msg = f"{origin}: model.{side}.max_tokens={rules.max_tokens}, but the model has {positions} positions"
            raise ModelError(f"{msg}; wanted no more tokens than that")


_ADAPTER = re.compile(r"\.adapter_modules\.([^.]+)\.")
"""Finds the language in the name of a tensor of an XMOD adapter."""

BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "jina_embeddings_v3": jina_embeddings_v3,
    "bert": bert,
    "jina_bert": jina_bert,
    "xmod": xmod,
    "transformers": transformers_own,
}
"""The function that builds each `model.backbone`."""

_OLD_NORM = re.compile(r"(LayerNorm|layer_norm)\.(gamma|beta)$")
"""TensorFlow's names of a norm's weight and bias; transformers 5 reads such names and saves some models with them."""


def _new_norm(match: re.Match[str]) -> str:
    """Return torch's name for a match of _OLD_NORM."""
    return f"{match[1]}.{'weight' if match[2] == 'gamma' else 'bias'}"


def _without(tensors: Mapping[str, Tensor], *, prefix: str, left_out: tuple[str, ...]) -> dict[str, Tensor]:
    """Return a backbone's tensors, with a prefix removed from their names.

    The head, saved position ids and names that start with `left_out` are removed.
    """
    renamed = {_OLD_NORM.sub(_new_norm, name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
    renamed.pop(HEAD, None)
    return {
        name: tensor
        for name, tensor in renamed.items()
        # position_ids is a constant 0, 1, 2, … that old exports saved with the weights.
        if not name.startswith(left_out) and not name.endswith(".position_ids")
    }


def config_values(values: Mapping[str, Any], names: list[str], *, origin: str) -> dict[str, Any]:
    """Return the values of these keys in a config.json. Raises ModelError that names missing or invalid ones."""
    from transformers.activations import ACT2FN

    missing = [name for name in names if name not in values]
    if missing:
        msg = f"{origin}: config.json lacks {', '.join(missing)}, which the architecture needs"
        raise ModelError(msg)
    for keys, is_valid, wanted in (
        (COUNTS, _count, f"whole numbers from 1 to {MAX_SIZE:,}"),
        (("num_hidden_layers",), lambda value: value <= MAX_LAYERS, f"{MAX_LAYERS} layers at most"),
        (TOKEN_IDS, lambda value: type(value) is int and 0 <= value < values["vocab_size"], "ids of the vocabulary"),
        (MEASURES, _positive, "numbers above 0"),
        (SWITCHES, lambda value: isinstance(value, bool), "true or false"),
        (("languages",), lambda value: isinstance(value, list), "a list"),
    ):
        if wrong := [f"{name} {values[name]!r}" for name in keys if name in names and not is_valid(values[name])]:
            msg = f"{origin}: config.json has {', '.join(wrong)}, wanted {wanted}; fetch the file again"
            raise ModelError(msg)
    if "hidden_act" in names and str(values["hidden_act"]) not in ACT2FN:
        msg = f"{origin}: config.json has hidden_act {values['hidden_act']!r}, wanted one that transformers knows"
        raise ModelError(f"{msg}: {', '.join(sorted(ACT2FN))}")
    if values["hidden_size"] % values["num_attention_heads"]:
        sizes = f"hidden_size {values['hidden_size']} and num_attention_heads {values['num_attention_heads']}"
        msg = f"{origin}: config.json has {sizes}, wanted a multiple of the number of heads; fetch the file again"
        raise ModelError(msg)
    return {name: values[name] for name in names}


def _count(value: object) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


def _positive(value: object) -> bool:
    return type(value) in (int, float) and 0 < cast("float", value) < math.inf


def filled(
    make: Callable[[Any], nn.Module],
    config: PretrainedConfig | JinaBertConfig,
    tensors: Mapping[str, Tensor],
    *,
    origin: str,
) -> nn.Module:
    """Return `make(config)` in evaluation mode with every tensor loaded.

    Raises ModelError that lists missing, unexpected, mis-shaped and quantised tensors.
    """
    if hasattr(config, "_attn_implementation"):
        config._attn_implementation = "sdpa"  # noqa: SLF001 (no public setting without from_pretrained)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in make(config).state_dict().items()}
    missing = sorted(set(shapes) - set(tensors))
    unexpected = sorted(set(tensors) - set(shapes))
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, wanted {shapes[name]}"
        for name in sorted(set(shapes) & set(tensors))
        if tuple(tensors[name].shape) != shapes[name]
    ]
    misshapen += [
        f"{name} is {str(tensors[name].dtype).removeprefix('torch.')}, wanted floating point"
        for name in sorted(set(shapes) & set(tensors))
        if not tensors[name].is_floating_point()  # a quantised copy; nothing here applies its scales
    ]
    if problem := misfit(missing, unexpected, misshapen):
        msg = f"{origin}: the checkpoint does not fit {type(config).__name__}: {problem}"
        raise ModelError(msg)
    module = make(config)
    module.load_state_dict(dict(tensors), strict=True)
    return module.eval().requires_grad_(requires_grad=False)


def misfit(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """Describe the tensors that do not fit a module, a few names of each kind; "" if all do."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshapen))
    return "; ".join(f"{label} {_few(names)}" for label, names in kinds if names)


def _few(names: list[str], *, shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"
