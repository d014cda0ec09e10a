"""Attention paths: each text attends to its own tokens only, in a padded batch or in texts concatenated in one row.

Shapes: B texts, T padded width, X tokens of all texts, concatenated, Y tokens that are attended to, A heads, K width of
a head.

`sdpa` pads texts and runs on any device, with torch's kernel and a mask; in fp32 on a CPU with vector units it uses
evalkit's own kernel, which skips padding. `varlen` and `flash` concatenate texts: on CUDA they call the kernels of
torch and flash-attn, on the CPU a loop over texts. `evalkit check` compares all of them with the padded path.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from evalkit.config.settings import Attention, EncoderConfig
from evalkit.kernels.compile_cache import with_cache_folder
from evalkit.kernels.cpu import registers
from evalkit.kernels.process_setting import ProcessSetting
from evalkit.kernels.trouble import first_line, warn_once
from evalkit.ragged import offsets

Path: TypeAlias = Literal["sdpa", "varlen", "flash"]
"""The layout of a batch and the kernel that computes its attention."""
INTERFACE_NAME = "evalkit"
"""The name under which `attend` is registered in transformers' attention interface."""
INTERFACE_BACKBONES = ("jina_embeddings_v3", "bert", "xmod")
"""Backbones that are classes of transformers and compute attention through its interface."""
INTERFACE_ARCHITECTURES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Architectures of `backbone: transformers` that use this interface and in which tokens attend to the whole text.

Others cannot be packed here: they have local windows (ModernBERT), causal attention (decoders), or further terms in the
logits (DeBERTa, MPNet).
"""
HEAD_STEP = 8
"""The CUDA kernels need head widths that are multiples of this; other heads are padded with zeros, without effect."""
PROBE_ATOL = 5e-2
"""Largest accepted difference between a kernel and the reference in half precision, for values of about 1."""
FUSED_PROBE_TOKENS = 256
"""Tokens of the text with which torch's fused attention is tried; short texts do not take the path that can fail."""


class Packing(NamedTuple):
    """The layout of texts concatenated in one row: offsets of the tokens that attend and of those attended to."""

    offsets_q: Tensor
    """Offsets of the texts among the rows that attend [B + 1], int32."""
    offsets_k: Tensor
    """Offsets of the texts among the rows that are attended to [B + 1], int32."""
    longest_q: int
    longest_k: int
    attended_Y: Tensor | None
    """Rows that are attended to [Y], or None for all rows: a query's mask tokens may have vectors but no attention."""
    path: Path

    def to(self, upload: Callable[[Tensor], Tensor]) -> Packing:
        """Return the packing with its tensors moved by `upload`."""
        attended_Y = None if self.attended_Y is None else upload(self.attended_Y)
        return self._replace(offsets_q=upload(self.offsets_q), offsets_k=upload(self.offsets_k), attended_Y=attended_Y)


class Spans(NamedTuple):
    """The number of tokens of each text in a padded batch [B], and how many of them, from the left, are attended to."""

    lengths_B: np.ndarray
    attended_B: np.ndarray


def packing_of(lengths_N: np.ndarray, attended_N: np.ndarray, *, path: Path) -> Packing:
    """Return the packing of N texts with these lengths, whose first `attended_N` tokens are attended to."""
    offsets_q, offsets_k = (offsets(counts_N) for counts_N in (lengths_N, attended_N))
    all_attended = bool((lengths_N == attended_N).all())
    rows_Y = np.repeat(offsets_q[:-1] - offsets_k[:-1], attended_N) + np.arange(offsets_k[-1])
    return Packing(
        offsets_q=torch.from_numpy(offsets_q.astype(np.int32)),
        offsets_k=torch.from_numpy(offsets_k.astype(np.int32)),
        longest_q=int(lengths_N.max()),
        longest_k=int(attended_N.max()),
        attended_Y=None if all_attended else torch.from_numpy(rows_Y),
        path=path,
    )


def attend(  # noqa: PLR0913 (transformers calls it with these arguments)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    spans: Spans | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention for transformers' interface: with the given packing or spans, otherwise as `sdpa` does.

    Heads are [B, A, T, K] and the result is [B, T, A, K]; with a packing, [1, A, X, K] and [1, X, A, K].
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if spans is not None:
        return padded_attention(query, key, value, spans, scale=scale), None
    if packing is None:
        mixed, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
        return mixed, weights
    query_XAK, key_XAK, value_XAK = (heads[0].transpose(0, 1) for heads in (query, key, value))
    return packed_attention(query_XAK, key_XAK, value_XAK, packing, scale=scale).unsqueeze(0), None


def uses_attention_interface(config: EncoderConfig) -> bool:
    """Whether a model uses transformers' attention interface and each token attends to the whole text."""
    if config.backbone == "transformers":
        return config.architecture in INTERFACE_ARCHITECTURES
    return config.backbone in INTERFACE_BACKBONES


def has_kernel(config: EncoderConfig, module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether evalkit's kernel can compute a padded model's attention; log once if the kernel is faulty here.

    It needs fp32, a CPU with vector units, and a suitable head width.
    """
    suitable = device.type == "cpu" and dtype == torch.float32
    shape: Any = getattr(module, "config", None)
    if not suitable or shape is None or config.trust_remote_code or not uses_attention_interface(config):
        return False
    problem = kernel_problem()
    if problem:
        warn_once(problem)
    if problem or not registers.available():
        return False
    columns: int = _kernel().COLUMNS
    return int(shape.hidden_size // shape.num_attention_heads) % columns == 0


@cache
def kernel_problem() -> str:
    """Compile evalkit's kernel and compare it with torch on two texts; return why it cannot be used, or "".

    It is also "" on a processor without AVX2, for which there is no kernel.
    """
    return registers.trial_problem("the vector-unit kernels of attention", _kernel_gives_torchs_values)


def _kernel_gives_torchs_values() -> bool:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn((2, 1, 5, 32), generator=generator) for _ in range(3)]
    lengths_B = np.array([5, 3])
    mixed_BTAK = padded_attention(parts[0], parts[1], parts[2], Spans(lengths_B, lengths_B), scale=0.25)
    for text, length in enumerate(lengths_B.tolist()):
        query, key, value = (part[text, :, :length] for part in parts)
        wanted_ATK = functional.scaled_dot_product_attention(query, key, value, scale=0.25)
        if not torch.allclose(mixed_BTAK[text, :length].transpose(0, 1), wanted_ATK, atol=1e-5):
            return False
    return True


@cache
def _kernel() -> Any:
    """Return the module of evalkit's kernel; importing it compiles the kernel."""

    def load() -> Any:
        from evalkit.kernels.cpu import attention_kernel

        return attention_kernel

    return with_cache_folder(load)


def padded_attention(query_BATK: Tensor, key_BATK: Tensor, value_BATK: Tensor, spans: Spans, *, scale: float) -> Tensor:
    """Return the attention output [B, T, A, K] of a padded batch in fp32 on the CPU, with zeros at padding."""
    heads = [part.transpose(1, 2).contiguous() for part in (query_BATK, key_BATK, value_BATK)]
    mixed_BTAK = torch.empty_like(heads[0])
    query, key, value, mixed = (part.numpy() for part in (*heads, mixed_BTAK))
    _kernel().attention(query, key, value, *spans, scale, mixed)
    return mixed_BTAK


def working_sdpa(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Return a context in which torch's attention works well: its plain form where its fused one fails on this CPU.

    On CUDA cuDNN's form is left out: it plans every shape on the host, and batches have hundreds of shapes.
    """
    if device.type == "cuda":
        return _sdpa("without cuDNN")
    if device.type != "cpu" or not (problem := fused_problem(dtype)):
        return nullcontext()
    warn_once(problem)
    return _sdpa("plain")


def _allow(backends: str) -> Callable[[], object]:
    """Limit torch's attention to some of its backends; return the function that undoes it."""
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION] if backends == "without cuDNN" else []
    limited = sdpa_kernel([*fused, SDPBackend.MATH])
    limited.__enter__()
    return lambda: limited.__exit__(None, None, None)


_sdpa = ProcessSetting(_allow)
"""torch keeps the allowed backends for the whole process, and threads encode at the same time."""


@cache
def fused_problem(dtype: torch.dtype) -> str:
    """Try torch's fused attention on the CPU; return why it cannot be used in this dtype, or "".

    On processors with AMX it needs AVX-512 in bfloat16, which `ATEN_CPU_CAPABILITY` can forbid.
    """
    heads_BATK = torch.zeros((1, 1, FUSED_PROBE_TOKENS, 64), dtype=dtype)
    try:
        functional.scaled_dot_product_attention(heads_BATK, heads_BATK, heads_BATK)
    except RuntimeError as error:
        return f"torch's fused attention in {dtype} fails here ({first_line(error)}); its plain one is used instead"
    return ""


def packed_attention(
    query_XAK: Tensor,
    key_XAK: Tensor,
    value_XAK: Tensor,
    packing: Packing,
    *,
    scale: float,
    bias_ATT: Tensor | None = None,
) -> Tensor:
    """Return the attention output [X, A, K] of concatenated texts.

    `bias_ATT`, sized for the longest text, is added to every text's logits. With a bias the loop over texts is used
    even on CUDA, because no kernel accepts one.
    """
    if packing.attended_Y is not None:
        key_XAK, value_XAK = key_XAK[packing.attended_Y], value_XAK[packing.attended_Y]
    if bias_ATT is not None or query_XAK.device.type != "cuda":
        return _by_text(query_XAK, key_XAK, value_XAK, packing, scale, bias_ATT)
    return _KERNELS[packing.path](query_XAK, key_XAK, value_XAK, packing, scale)


def _by_text(
    query_XAK: Tensor,
    key_YAK: Tensor,
    value_YAK: Tensor,
    packing: Packing,
    scale: float,
    bias_ATT: Tensor | None = None,
) -> Tensor:
    """Compute attention text by text, batching neighbours of equal length: the CPU path, and the kernels' reference.

    Arguments are as for `packed_attention`, with keys and values already reduced to the rows that are attended to.
    """
    mixed_XAK = torch.empty_like(query_XAK)
    for q, k, texts in equal_lengths(packing):
        parts = (query_XAK[q], key_YAK[k], value_YAK[k])
        query, key, value = (part.view(texts, -1, *part.shape[1:]).transpose(1, 2) for part in parts)
        bias = None if bias_ATT is None else bias_ATT[:, : query.shape[2], : key.shape[2]]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
        mixed_XAK[q] = mixed.transpose(1, 2).flatten(0, 1)
    return mixed_XAK


def equal_lengths(packing: Packing) -> list[tuple[slice, slice, int]]:
    """Group consecutive texts of equal length; return each group's rows that attend, rows attended to, and size."""
    offsets_q, offsets_k = packing.offsets_q.tolist(), packing.offsets_k.tolist()
    spans = list(zip(pairwise(offsets_q), pairwise(offsets_k), strict=True))
    groups = []
    for _, group in groupby(spans, key=lambda span: (span[0][1] - span[0][0], span[1][1] - span[1][0])):
        texts = list(group)
        (first_q, first_k), (last_q, last_k) = texts[0], texts[-1]
        groups.append((slice(first_q[0], last_q[1]), slice(first_k[0], last_k[1]), len(texts)))
    return groups


def _widened(*heads: Tensor) -> tuple[Tensor, ...]:
    """Return heads [X, A, K] padded with zeros to a multiple of HEAD_STEP numbers."""
    missing = -heads[0].shape[-1] % HEAD_STEP
    return tuple(functional.pad(part, (0, missing)) for part in heads) if missing else heads


def _varlen(query_XAK: Tensor, key_YAK: Tensor, value_YAK: Tensor, packing: Packing, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = _widened(query_XAK, key_YAK, value_YAK)
    offsets_q, offsets_k, longest_q, longest_k, *_ = packing
    options = dict(_varlen_options(query.device))
    default_scale = query.shape[-1] ** -0.5
    if not math.isclose(scale, default_scale, rel_tol=1e-6):  # the default is not passed: not every torch accepts it
        if _varlen_takes_scale(query.device):
            options["scale"] = scale
        else:
            query = query * (scale / default_scale)
    mixed = varlen_attn(query, key, value, offsets_q, offsets_k, longest_q, longest_k, **options)
    assert isinstance(mixed, Tensor)  # no other result was requested
    return mixed[..., : query_XAK.shape[-1]]


@cache
def _varlen_options(device: torch.device) -> Mapping[str, Any]:
    """Return `num_splits=1` if torch accepts it: a text's vectors then do not depend on its neighbours.

    torch 2.11 lacks the option, and some versions accept it for flash-attention 3 only. The kernel of these versions
    does not split if queries and keys have the same number of heads.
    """
    option: Mapping[str, Any] = {"num_splits": 1}
    return option if _varlen_takes(device, **option) else {}


@cache
def _varlen_takes_scale(device: torch.device) -> bool:
    return _varlen_takes(device, scale=0.5)


def _varlen_takes(device: torch.device, **option: Any) -> bool:
    """Tell whether torch's kernel accepts an option, by calling it with one token."""
    from torch.nn.attention.varlen import varlen_attn

    heads = torch.zeros((1, 1, HEAD_STEP), dtype=torch.float16, device=device)
    one_text = torch.tensor([0, 1], dtype=torch.int32, device=device)
    try:
        varlen_attn(heads, heads, heads, one_text, one_text, 1, 1, **option)
    except (TypeError, RuntimeError):
        return False
    return True


def _flash(query_XAK: Tensor, key_YAK: Tensor, value_YAK: Tensor, packing: Packing, scale: float) -> Tensor:
    kernel = importlib.import_module("flash_attn").flash_attn_varlen_func
    query, key, value = _widened(query_XAK, key_YAK, value_YAK)
    offsets_q, offsets_k, longest_q, longest_k, *_ = packing
    mixed: Tensor = kernel(query, key, value, offsets_q, offsets_k, longest_q, longest_k, softmax_scale=scale)
    return mixed[..., : query_XAK.shape[-1]]


_KERNELS: Mapping[Path, Callable[[Tensor, Tensor, Tensor, Packing, float], Tensor]] = {
    "varlen": _varlen,
    "flash": _flash,
}


@cache
def _register() -> None:
    """Register `attend` with transformers, once per process."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(INTERFACE_NAME, attend)
    AttentionMaskInterface.register(INTERFACE_NAME, sdpa_mask)


def enable(module: nn.Module, config: EncoderConfig) -> None:
    """Make a backbone of transformers use `attend`, which behaves like `sdpa` until a packing is given."""
    if uses_attention_interface(config):
        _register()
        shape: Any = module.config
        shape._attn_implementation = INTERFACE_NAME  # noqa: SLF001 (no public setting without from_pretrained)


def packable(config: EncoderConfig) -> bool:
    """Whether a model can take packed texts; a checkpoint's own code may not support them."""
    return not config.trust_remote_code and (config.backbone != "transformers" or uses_attention_interface(config))


class Chosen(NamedTuple):
    """The attention path in use, and why a preferred path is not (empty if there is no problem)."""

    path: Path
    problem: str


def choose(requested: Attention, *, config: EncoderConfig, device: torch.device) -> Chosen:
    """Return the attention path for a model on a device; log once if a preferred path cannot be used.

    `auto` pads on the CPU, where batches sorted by length have little padding, and packs on CUDA in half precision.
    """
    chosen = _choose(requested, device, config.dtype, config.backbone, can_pack=packable(config))
    if chosen.problem:
        warn_once(chosen.problem)
    return chosen


def _choose(requested: Attention, device: torch.device, dtype: str, backbone: str, *, can_pack: bool) -> Chosen:
    if requested == "sdpa":
        return Chosen("sdpa", "")
    reason = _unpackable(requested, device, dtype, backbone, can_pack=can_pack)
    if reason:
        return Chosen(
            "sdpa", "" if requested == "auto" else f"engine.attention={requested}: {reason}; sdpa is used instead"
        )
    if device.type != "cuda":
        return Chosen("varlen" if requested == "varlen" else "sdpa", "")
    wanted: tuple[Path, ...] = ("varlen",) if requested == "varlen" else ("flash", "varlen")
    problems: list[str] = []
    for path in wanted:
        problem = probe(path, device, dtype)
        if not problem:
            return Chosen(path, _given_up(problems, path))
        # With `auto`, a missing flash-attn is not reported.
        if path != "flash" or requested == "flash" or flash_version() is not None:
            problems.append(problem)
    return Chosen("sdpa", _given_up(problems, "sdpa"))


def _unpackable(requested: Attention, device: torch.device, dtype: str, backbone: str, *, can_pack: bool) -> str:
    """Return why a model cannot use packed texts on a device, or "" if it can."""
    if not can_pack:
        own = "a checkpoint's own code" if backbone != "transformers" else "this architecture's attention"
        return f"{own} may not accept packed texts"
    if device.type != "cuda":
        return "flash-attn runs on CUDA only" if requested == "flash" else ""
    if dtype == "float32":
        return "packed attention on CUDA needs half precision (model.dtype=bfloat16)"
    return "no packed kernel supports ALiBi" if backbone == "jina_bert" else ""


def _given_up(problems: Sequence[str], path: Path) -> str:
    """Return the problems and the path that is used because of them, or "" without problems."""
    return f"{'; '.join(problems)}; {path} is used instead" if problems else ""


@cache
def flash_version() -> str | None:
    """Return the version of flash-attn, or None if it is not installed."""
    try:
        return importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def probe(path: Path, device: torch.device, dtype: str) -> str:
    """Run a kernel on two short texts and compare it with the reference; return the problem, or "" if there is none."""
    if path == "flash" and flash_version() is None:
        return "flash-attn is not installed (pip install 'evalkit[flash]')"
    label = f"flash-attn {flash_version()}" if path == "flash" else "torch's variable-length attention"
    generator = torch.Generator().manual_seed(0)
    lengths_N = np.array([5, 3])
    packing = packing_of(lengths_N, lengths_N, path=path)
    query, key, value = (torch.randn(8, 2, 16, generator=generator).to(getattr(torch, dtype)) for _ in range(3))
    wanted = _by_text(query.float(), key.float(), value.float(), packing, 0.25)
    on_device = packing.to(lambda tensor: tensor.to(device))
    try:
        ours = _KERNELS[path](query.to(device), key.to(device), value.to(device), on_device, 0.25).float().cpu()
    except Exception as error:  # noqa: BLE001 (a binary built for another torch or GPU can raise anything)
        return f"{label} is unusable here ({type(error).__name__}: {first_line(error)})"
    difference = float((ours - wanted).abs().max())
    return "" if difference <= PROBE_ATOL else f"{label} gives wrong values here (off by {difference:.1e})"
