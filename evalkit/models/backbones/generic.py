"""Build any text model that transformers has a class for, chosen by config.json's `model_type`.

transformers' loader maps a checkpoint's tensors to the class's names, whatever head they were saved with and whatever
their names in older versions. Two cases for which it only warns raise an error here: a missing tensor, which would be
random, and a tensor of a layer that the class lacks, which would be dropped.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evalkit.config.settings import EncoderConfig
from evalkit.errors import ModelError

POOLER = "pooler."
"""Prefix of the pooler's tensors. No vector depends on the pooler: it may be missing, and is not loaded."""
IGNORED_KEYS = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Keys of config.json that do not change vectors; the dtype is that of the job."""


def model_class(kind: str, *, origin: str) -> type[Any]:
    """Return transformers' class for a `model_type`. Raises ModelError if it has none."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    found: Any = MODEL_MAPPING.get(CONFIG_MAPPING[kind], None) if kind in CONFIG_MAPPING else None
    if isinstance(found, tuple):
        found = found[0]
    if found is None:
        import transformers

        msg = f"{origin}: transformers {transformers.__version__} has no class of its own for model_type {kind!r}"
        raise ModelError(f"{msg}; wanted a checkpoint that needs no code of its own, or a newer transformers")
    cls: type[Any] = found
    return cls


def load(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], config: EncoderConfig, *, origin: str
) -> tuple[nn.Module, int]:
    """Return the model with all its tensors loaded from a checkpoint, and its hidden size.

    Raises ModelError for missing tensors, tensors of unknown layers, wrong shapes, quantised weights, an invalid
    config.json or too few positions.
    """
    from transformers import CONFIG_MAPPING

    cls = model_class(str(config.architecture), origin=origin)
    try:
        shape = CONFIG_MAPPING[str(config.architecture)].from_dict(dict(values))
    except Exception as error:  # each architecture raises other errors for invalid values
        msg = f"{origin}: config.json does not suit model_type {config.architecture!r}"
        raise ModelError(f"{msg} ({' '.join(str(error).split())}); fetch the file again") from error
    parameters = inspect.signature(cls.__init__).parameters
    options = {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}
    if quantised := sorted(name for name, tensor in tensors.items() if _is_quantised(name, tensor)):
        msg = f"{origin}: got integers for {', '.join(quantised[:4])}, wanted weights that are not quantised"
        raise ModelError(msg)
    with _quiet():
        try:
            module, report = cls.from_pretrained(
                None,
                config=shape,
                state_dict=dict(tensors),
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="sdpa" if cls._supports_sdpa else "eager",
                **options,
            )
        except (RuntimeError, ValueError) as error:
            msg = f"{origin}: the checkpoint does not fit {cls.__name__}: {' '.join(str(error).split())[:600]}"
            raise ModelError(msg) from error
    from evalkit.models.backbones.native import misfit

    missing = sorted(name for name in report["missing_keys"] if not name.startswith(POOLER))
    unexpected = sorted(name for name in report["unexpected_keys"] if _is_of_a_layer(name, module, cls))
    misshapen = sorted(str(each[0] if isinstance(each, tuple) else each) for each in report["mismatched_keys"])
    if problem := misfit(missing, unexpected, misshapen):
        msg = f"{origin}: the checkpoint does not fit {cls.__name__}: {problem}"
        raise ModelError(f"{msg}; its missing layers would be random")
    if (positions := learned_positions(module)) is not None:
        from evalkit.models.backbones.native import check_positions

        check_positions(config, positions, origin=origin)
    module.eval().requires_grad_(requires_grad=False)
    return module, int(shape.hidden_size)


def learned_positions(module: nn.Module) -> int | None:
    """Return the number of learned positions; None for a model that computes positions."""
    for name, child in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            pad = child.padding_idx
            return child.num_embeddings - (0 if pad is None else pad + 1)
    return None


def _is_quantised(name: str, tensor: Tensor) -> bool:
    """Whether a tensor that should hold floats holds integers; position and token type ids are integers anyway."""
    return not tensor.is_floating_point() and not name.endswith((".position_ids", ".token_type_ids"))


def _is_of_a_layer(name: str, module: nn.Module, cls: type[Any]) -> bool:
    """Whether an unexpected tensor belongs to one of the module's layers, not to a head, pooler or constant."""
    short_name = name.removeprefix(f"{cls.base_model_prefix}.")
    if short_name.startswith(POOLER) or short_name.endswith((".position_ids", ".token_type_ids", "inv_freq")):
        return False
    return short_name.partition(".")[0] in dict(module.named_children())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars and its table of missing tensors, which `load` reports itself."""
    from transformers.utils import logging as transformers_logging

    library: Any = transformers_logging
    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
