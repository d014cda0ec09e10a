"""Build a backbone with the checkpoint's own Python code, if the config allows it; the code is pinned and checksummed.

Native classes are the default for every model. Code written for an older transformers may import without error and
still compute something else, so its result is checked here and known faults are corrected.

Shapes: B texts, T tokens, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from evalkit.config.settings import EncoderConfig
from evalkit.errors import ModelError
from evalkit.models.backbones.native import HEAD, Backbone, misfit, refuse_unused
from evalkit.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)

LEFT_OUT = (HEAD, "cls.", "lm_head.")
"""Prefixes of tensors that belong to no backbone: the projection, which evalkit applies, and masked-language heads."""


class RemoteBackbone(nn.Module):
    """A checkpoint's own module, called like every other backbone."""

    def __init__(self, inner: nn.Module, embeddings: nn.Module) -> None:
        """Wrap a module; its embeddings are registered first, under the name by which the canary finds them."""
        super().__init__()
        self.word_embeddings = embeddings
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the hidden states [B, T, H]. The mask is always passed, as 0 and 1, which all remote code accepts."""
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        output = self.inner(input_ids=input_ids, attention_mask=mask_BT)
        return BaseModelOutput(last_hidden_state=output.last_hidden_state)


def build(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], config: EncoderConfig) -> Backbone:
    """Build the backbone that the checkpoint's `auto_map` names, with the checkpoint's tensors.

    Raises ModelError if the code fails, if a tensor is missing, unexpected or has the wrong shape, if the result is not
    an encoder, and for settings that cannot be passed to the code or have no effect.
    """
    origin = checkpoint.origin
    if config.rope_theta != "checkpoint" or config.adapter is not None:
        msg = f"{origin}: model.rope_theta and model.adapter do not apply to the checkpoint's own code; leave them out"
        raise ModelError(msg)
    refuse_unused(config, origin=origin)
    _warn_once(
        f"model {config.name}: running the checkpoint's own code, as model.trust_remote_code=true allows: "
        f"{', '.join(sorted(checkpoint.code()))} of {origin}{f'@{checkpoint.revision}' if checkpoint.revision else ''}"
    )
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}
    try:
        with _quiet_and_offline():
            module, report = _loaded(checkpoint, kept)
            hidden_size = _probe(module)
    except Exception as error:  # remote code can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        msg = (
            f"{origin}: the checkpoint's own code fails ({reason}); "
            "leave model.trust_remote_code out to use the native class, if there is one"
        )
        raise ModelError(msg) from error
    missing, unexpected = (sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected"))
    misshapen = [
        f"{name} is {tuple(got)}, wanted {tuple(wanted)}" for name, got, wanted in sorted(report["mismatched_keys"])
    ]
    if problem := misfit(missing, unexpected, [*misshapen, *report.get("error_msgs", ())]):
        msg = f"{origin}: the checkpoint does not fit its own code: {problem}"
        raise ModelError(msg)
    return Backbone(module.eval().requires_grad_(requires_grad=False), hidden_size, None)


def _loaded(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> tuple[RemoteBackbone, dict[str, Any]]:
    """Return the module with its tensors, and transformers' loading report.

    The code is loaded as transformers' automatic classes do, but without their registry: for a second checkpoint with
    the same class names it would return the first one's code.
    """
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    folder, auto_map = str(checkpoint.folder), checkpoint.config()["auto_map"]
    _, commit = checkpoint.code_repository or ("", None)

    def code(name: str) -> Any:
        return get_class_from_dynamic_module(auto_map[name], folder, code_revision=commit, local_files_only=True)

    config = (code("AutoConfig") if "AutoConfig" in auto_map else AutoConfig).from_pretrained(folder)
    built = code("AutoModel")(config)
    module, report = type(built).from_pretrained(
        None,
        config=config,
        state_dict=dict(tensors),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the loading report, from which `build` raises
    )
    saved = set(built.state_dict())
    loaded_buffers = dict(module.named_buffers())
    for name, buffer in built.named_buffers():
        if name not in saved:
            # from_pretrained builds the module on the meta device, so a buffer that is not in the file (a RoPE table,
            # for example) is left uninitialised without an error. Copy it from the module that was built normally.
            loaded_buffers[name].copy_(buffer)
    return RemoteBackbone(module, module.get_input_embeddings()).eval(), report


@torch.inference_mode()
def _probe(module: RemoteBackbone) -> int:
    """Return the hidden size, taken from the output for two tokens. Raises ValueError if its shape is not [1, 2, H]."""
    hidden_BTH = module(input_ids=torch.zeros(1, 2, dtype=torch.int64)).last_hidden_state
    if hidden_BTH.ndim != 3 or hidden_BTH.shape[:2] != (1, 2):
        msg = f"last_hidden_state is {tuple(hidden_BTH.shape)}, wanted (1, 2, hidden size) for two tokens"
        raise ValueError(msg)
    return int(hidden_BTH.shape[2])


@contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Silence transformers' progress bars and tables, and keep remote code from downloading unpinned files."""
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_logging

    library: Any = transformers_logging
    offline, level, bars = constants.HF_HUB_OFFLINE, library.get_verbosity(), library.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)
