"""Encoders compute the vectors of batches of token ids: one per token or per text, at one or more dims.

Shapes: B texts of a batch, T tokens of the longest text, X tokens of all texts, Y tokens that are attended to, V tokens
with vectors, H hidden size, D dim, W sum of the dims of all heads, S token ids up to the largest of the skiplist.
A single-vector model is the case of one vector per text, so the store and the search know only one kind of model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from evalkit.config.settings import Attention, Elementwise, EncoderConfig
from evalkit.errors import ModelError
from evalkit.kernels.cpu import linear
from evalkit.kernels.fp32 import full_precision, require_full_precision
from evalkit.models import dense, metadata, tokens
from evalkit.models.attention import Packing, Spans, choose, enable, has_kernel, packing_of, working_sdpa
from evalkit.models.attention import Path as AttentionPath
from evalkit.models.backbones import generic, native
from evalkit.models.backbones.native import Backbone
from evalkit.models.checkpoint import TOKENIZER, WEIGHTS, Checkpoint, refuse_changes, resolve
from evalkit.models.elementwise import choose as choose_elementwise
from evalkit.models.elementwise import fuse
from evalkit.models.tokens import Tokens, TokenTable, Vocabulary
from evalkit.ragged import offsets
from evalkit.storage.keys import label

log = logging.getLogger(__name__)

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


Head: TypeAlias = Tensor | nn.Sequential | None
"""The weight [D, H] of a linear head, the layers of a Dense head, or None if hidden states are not projected."""
PAD_OFFSET_BACKBONES = ("xmod",)
"""Backbones whose positions start after the pad id and skip padding."""
PAD_OFFSET_ARCHITECTURES = ("camembert", "roberta", "xlm-roberta")
"""Architectures of `backbone: transformers` with the same positions."""


def attention_path(config: EncoderConfig, requested: Attention, device: torch.device) -> str:
    """Return attention path and device type as "PATH/TYPE"; both can change the last bits of vectors."""
    return f"{choose(requested, config=config, device=device).path}/{device.type}"


class Batch(NamedTuple):
    """Right-padded token ids and which of them are attended to [B, T], and which positions get vectors."""

    ids_BT: Tensor
    attended_BT: Tensor
    kept_V: Tensor
    """The flat positions in [B * T] that get vectors."""
    counts_B: Tensor
    """The number of token vectors of each text."""
    spans: Spans


class PackedBatch(NamedTuple):
    """The concatenated token ids of several texts, with positions inside the texts, and which of them get vectors."""

    ids_X: Tensor
    position_X: Tensor
    packing: Packing
    kept_V: Tensor
    """The rows of X that get vectors."""
    counts_B: Tensor
    """The number of token vectors of each text."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One backbone with the heads of one or more dims, on one device."""

    config: EncoderConfig
    module: nn.Module
    heads: Mapping[int, Head]
    """By dim."""
    vocabulary: Vocabulary
    skipped: Tensor
    """Token ids of the skiplist, int64, on the CPU: in documents they get no vectors."""
    device: torch.device
    dtype: torch.dtype
    rope_theta: float | None
    attention: AttentionPath = "sdpa"

    def __post_init__(self) -> None:
        if self.attention != "sdpa" or self._has_kernel:
            enable(self.module, self.config)

    @cached_property
    def _has_kernel(self) -> bool:
        """Whether evalkit's own kernel computes the attention of padded batches."""
        return self.attention == "sdpa" and has_kernel(self.config, self.module, device=self.device, dtype=self.dtype)

    def only(self, dims: Sequence[int]) -> Encoder:
        """Return an encoder with the same backbone and only the heads of `dims`."""
        return replace(self, heads={dim: self.heads[dim] for dim in dims})

    def tokenize_queries(self, texts: Sequence[str]) -> TokenTable:
        """Return the token ids of queries under the model's rules."""
        return tokens.tokenize(texts, self.config.query, self.vocabulary)

    def tokenize_documents(self, texts: Sequence[str]) -> TokenTable:
        """Return the token ids of documents under the model's rules."""
        return tokens.tokenize(texts, self.config.document, self.vocabulary)

    def kept(self, texts: TokenTable, *, skip_punctuation: bool) -> np.ndarray:
        """Return which tokens get vectors [X]: all except, in documents, those of the skiplist."""
        if skip_punctuation and len(self.skipped):
            return self._kept(texts.ids_X)
        return np.ones(len(texts.ids_X), dtype=bool)

    def _kept(self, ids: np.ndarray) -> np.ndarray:
        """Return for each token id whether it is not in the skiplist; the result has the shape of `ids`."""
        kept: np.ndarray = self._kept_S.take(ids, mode="clip")
        return kept

    @cached_property
    def _kept_S(self) -> np.ndarray:
        """Whether each token id is not in the skiplist; the last entry is for all ids above the largest skipped one."""
        kept_S = np.ones(int(self.skipped.max()) + 2, dtype=bool)
        kept_S[self.skipped.numpy()] = False
        return kept_S

    def batch(
        self,
        texts: Sequence[Tokens],
        *,
        skip_punctuation: bool,
        rows: np.ndarray | None = None,
        width: int | None = None,
    ) -> Batch | PackedBatch:
        """Build a batch in the layout of the encoder's attention path: packed, or padded on the right.

        With `skip_punctuation`, tokens of the document skiplist get no vectors. `rows` selects texts. `width` is the
        padded width, at least the longest text's length, which is the default; a packed batch has none.
        """
        table = TokenTable.of(texts)
        if self.attention != "sdpa":
            return self._packed(table if rows is None else table.take(rows), skip_punctuation=skip_punctuation)
        chosen_B = np.arange(len(table)) if rows is None else rows
        length_B1 = table.lengths_N[chosen_B, None]
        position_T = np.arange(width or length_B1.max())
        real_BT = position_T < length_B1
        ids_BT = table.ids_X.take(table.offsets_N[chosen_B, None] + position_T, mode="clip").astype(np.int64)
        ids_BT[~real_BT] = self.vocabulary.pad
        kept_BT = real_BT & self._kept(ids_BT) if skip_punctuation and len(self.skipped) else real_BT
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            attended_BT=torch.from_numpy(position_T < table.attended_N[chosen_B, None]),
            kept_V=torch.from_numpy(np.flatnonzero(kept_BT)),
            counts_B=torch.from_numpy(kept_BT.sum(1)),
            spans=Spans(table.lengths_N[chosen_B], table.attended_N[chosen_B]),
        )

    def _packed(self, table: TokenTable, *, skip_punctuation: bool) -> PackedBatch:
        kept_X = self.kept(table, skip_punctuation=skip_punctuation)
        return PackedBatch(
            ids_X=torch.from_numpy(table.ids_X.astype(np.int64)),
            position_X=torch.from_numpy(self._positions(table)),
            packing=packing_of(table.lengths_N, table.attended_N, path=self.attention),
            kept_V=torch.from_numpy(np.flatnonzero(kept_X)),
            counts_B=torch.from_numpy(np.diff(offsets(kept_X)[table.offsets_N])),
        )

    def _positions(self, table: TokenTable) -> np.ndarray:
        """Return each token's position in its text [X]; XLM-R's family starts after the pad id and skips padding."""
        begin_X = np.repeat(table.offsets_N[:-1], table.lengths_N)
        if (
            self.config.backbone not in PAD_OFFSET_BACKBONES
            and self.config.architecture not in PAD_OFFSET_ARCHITECTURES
        ):
            position_X: np.ndarray = np.arange(len(table.ids_X)) - begin_X
            return position_X
        real_X = table.ids_X != self.vocabulary.pad
        before_X = offsets(real_X)
        counted_X: np.ndarray = (before_X[1:] - before_X[begin_X]) * real_X + self.vocabulary.pad
        return counted_X

    @torch.inference_mode()
    def vectors(self, batch: Batch | PackedBatch) -> dict[int, tuple[Tensor, Tensor]]:
        """Return by dim the fp32 vectors of a batch, concatenated [V, D], and how many each text has [B].

        With pooling there is one vector per text [B, D]. The host does not wait for the device: rows and counts follow
        from the token ids.
        """
        with full_precision(self.device):
            return self._vectors(batch)

    def _vectors(self, batch: Batch | PackedBatch) -> dict[int, tuple[Tensor, Tensor]]:
        with working_sdpa(self.device, self.dtype):
            hidden_XH = self._hidden(batch)
        if self.config.pooling == "tokens":
            kept_VH, counts_B = hidden_XH, batch.counts_B
            if len(batch.kept_V) < len(hidden_XH):  # otherwise there is no padding and no punctuation
                kept_VH = hidden_XH.index_select(0, self.upload(batch.kept_V))
        else:
            kept_VH, counts_B = self._pooled(hidden_XH, batch), torch.ones_like(batch.counts_B)
        out = {}
        for dim, projected_VD in self._projected(kept_VH).items():
            vectors_VD = projected_VD.float()
            out[dim] = (to_unit_length(vectors_VD) if self.config.normalize else vectors_VD, counts_B)
        return out

    def _projected(self, hidden_XH: Tensor) -> dict[int, Tensor]:
        """Return the hidden states projected by each head [X, D], with one GEMM for all heads."""
        if self.config.head == "none":
            return dict.fromkeys(self.heads, hidden_XH)
        if self.config.head == "dense":
            return {
                dim: head(hidden_XH.to(self.dtype)) for dim, head in self.heads.items() if isinstance(head, nn.Module)
            }
        dims = self.config.dims
        by_dim = dict(zip(dims, torch.split(self._all_heads(hidden_XH), list(dims), dim=1), strict=True))
        return {dim: by_dim[dim] for dim in self.heads}

    @cached_property
    def _all_heads(self) -> Callable[[Tensor], Tensor]:
        """The GEMM with the heads [W, H] of all dims that the config lists; heads not in use are zero.

        A GEMM of another width may add in another order. This width depends on the model only and columns are
        independent, so a dim's vectors have the same bits whichever other dims are computed.
        """
        used = {dim: head_DH for dim, head_DH in self.heads.items() if isinstance(head_DH, Tensor)}
        any_DH = next(iter(used.values()))
        return linear.projection(
            torch.cat(
                [used[dim] if dim in used else any_DH.new_zeros(dim, any_DH.shape[1]) for dim in self.config.dims]
            )
        )

    def _hidden(self, batch: Batch | PackedBatch) -> Tensor:
        """Return the hidden states of every position of a batch [X, H], including padding."""
        if isinstance(batch, PackedBatch):
            inputs = {"input_ids": self.upload(batch.ids_X).unsqueeze(0), "packing": batch.packing.to(self.upload)}
            if self.config.backbone != "jina_bert":  # it has ALiBi instead of positions
                inputs["position_ids"] = self.upload(batch.position_X).unsqueeze(0)
            hidden = self.module(**inputs).last_hidden_state
        elif self._has_kernel:
            hidden = self.module(input_ids=batch.ids_BT, spans=batch.spans).last_hidden_state
        else:
            mask = None if bool(batch.attended_BT.all()) else self.upload(batch.attended_BT)
            hidden = self.module(input_ids=self.upload(batch.ids_BT), attention_mask=mask).last_hidden_state
        flat_XH: Tensor = hidden.flatten(0, 1)
        return flat_XH

    def _pooled(self, hidden_XH: Tensor, batch: Batch | PackedBatch) -> Tensor:
        """Return one row per text [B, H]: its first hidden state, or the fp32 mean of those that are attended to."""
        if isinstance(batch, PackedBatch):
            packing = batch.packing.to(self.upload)
            if self.config.pooling == "cls":
                return hidden_XH[packing.offsets_q[:-1]]
            attended_YH = hidden_XH if packing.attended_Y is None else hidden_XH[packing.attended_Y]
            counts_B = packing.offsets_k.diff().long()
            summed_BH = torch.segment_reduce(
                attended_YH.float(),
                "sum",
                lengths=counts_B,
                axis=0,
                unsafe=True,  # the check would wait for the device
            )
            return summed_BH / counts_B.unsqueeze(1)
        hidden_BTH = hidden_XH.view(*batch.ids_BT.shape, -1)
        if self.config.pooling == "cls":
            return hidden_BTH[:, 0]
        weight_BT1 = self.upload(batch.attended_BT).unsqueeze(-1).float()
        mean_BH: Tensor = (hidden_BTH.float() * weight_BT1).sum(1) / weight_BT1.sum(1)
        return mean_BH

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy to the device, from pinned memory so that the copy can overlap with computation."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def to_unit_length(vectors_XD: Tensor) -> Tensor:
    """Divide each vector by its norm, in fp32 and in place: a half-precision norm has an error of up to 4e-3.

    The result is that of `torch.nn.functional.normalize`, except if a norm is not finite: that vector becomes NaN.
    Division by infinity would give zeros, which no later step would notice.
    """
    norm_X1 = torch.linalg.vector_norm(vectors_XD, dim=-1, keepdim=True).clamp_min_(1e-12)
    return vectors_XD.div_(norm_X1.add_(norm_X1, alpha=0))  # 0 · ∞ is NaN


def checkpoints(config: EncoderConfig, dims: Sequence[int]) -> dict[int, Checkpoint]:
    """Locate the checkpoint of each dim, and refuse one whose own settings contradict the config.

    Raises ModelError that also names the dims whose checkpoints can be obtained.
    """
    found, failed = obtainable(config, dims)
    if failed:
        dim, first = next(iter(failed.items()))
        rest = f"; can run: dim={','.join(map(str, found))}" if found else ""
        msg = f"model {label(config.name, dim)}: {first}{rest}"
        raise ModelError(msg) from first
    return found


def obtainable(config: EncoderConfig, dims: Sequence[int]) -> tuple[dict[int, Checkpoint], dict[int, ModelError]]:
    """Return the checkpoints that can be obtained and do not contradict the config, and the error of each other dim."""
    found: dict[int, Checkpoint] = {}
    failed: dict[int, ModelError] = {}
    for dim in dims:
        try:
            checkpoint = resolve(
                config.checkpoints[str(dim)],
                allow_pickle=config.allow_pickle,
                remote_code=config.trust_remote_code,
                dense=config.head == "dense",
            )
            if not config.trust_remote_code:
                native.check_model_type(checkpoint.config(), config, origin=checkpoint.origin)
            metadata.refuse_contradictions(config, checkpoint, dim)
            found[dim] = checkpoint
        except ModelError as error:
            failed[dim] = error
    return found, failed


def load_encoders(
    config: EncoderConfig,
    found: Mapping[int, Checkpoint],
    *,
    device: torch.device,
    attention: Attention = "auto",
    elementwise: Elementwise = "auto",
) -> list[Encoder]:
    """Load the dims' checkpoints. Dims whose backbones have identical content share one encoder, and so one pass.

    Raises ModelError for tensors that do not fit, a missing head, missing special tokens, and files that changed after
    their checksums were computed. Raises DeviceError if fp32 products would be rounded.
    """
    require_full_precision()
    groups = _groups(config, found)
    if len(groups) > 1:
        dims = " / ".join(", ".join(map(str, group.checkpoints)) for group in groups)
        log.warning(
            "model %s: the backbones of dims %s differ by content, so each encodes in its own pass", config.name, dims
        )
    with full_precision(device):  # kernels are compared with torch when they are loaded
        encoders = [_encoder(config, group, device, attention=attention, elementwise=elementwise) for group in groups]
    refuse_changes(found.values())
    return encoders


class _Group(NamedTuple):
    """Dims that share a backbone: its tensors, and the checkpoint and head of each dim."""

    tensors: dict[str, Tensor]
    checkpoints: dict[int, Checkpoint]
    heads: dict[int, Head]


def _groups(config: EncoderConfig, found: Mapping[int, Checkpoint]) -> list[_Group]:
    """Read the dims' checkpoints and group dims whose backbones are equal. Raises ModelError for a missing head."""
    groups: list[_Group] = []
    for dim, checkpoint in found.items():
        tensors = native.read_tensors(checkpoint)
        head = _head(tensors, config, dim, checkpoint)
        for group in groups:
            first = next(iter(group.checkpoints.values()))
            if _same_backbone(group.tensors, tensors) and _same_tokenizer_and_config(first, checkpoint, config):
                break
        else:
            group = _Group(tensors, {}, {})
            groups.append(group)
        group.checkpoints[dim] = checkpoint
        group.heads[dim] = head
    return groups


def _encoder(
    config: EncoderConfig, group: _Group, device: torch.device, *, attention: Attention, elementwise: Elementwise
) -> Encoder:
    """Build the encoder of one group of dims; the group's tensors are cleared. Raises ModelError if they do not fit."""
    checkpoint = next(iter(group.checkpoints.values()))
    if config.trust_remote_code:
        from evalkit.models import remote_code

        backbone = remote_code.build(checkpoint, group.tensors, config)
    else:
        backbone = native.build(group.tensors, checkpoint.config(), config, origin=checkpoint.origin)
    # Only the module refers to its tensors now, so each weight is freed as soon as it is in oneDNN's layout.
    group.tensors.clear()
    vocabulary = tokens.vocabulary_of(config, checkpoint)
    _check_vocabulary(vocabulary, config, backbone, checkpoint)
    for dim, checkpoint_of_dim in group.checkpoints.items():
        _check_width(group.heads[dim], dim, backbone, checkpoint_of_dim)
    dtype = DTYPES[config.dtype]
    module = moved(backbone.module, device, dtype, exact=config.backbone == "transformers")
    if not config.trust_remote_code:  # a checkpoint's own code is not changed
        linear.use_onednn(module)
    if choose_elementwise(elementwise, config=config, device=device).fused:
        fuse(module)
    return Encoder(
        config=config,
        module=module,
        heads={dim: None if head is None else head.to(device=device, dtype=dtype) for dim, head in group.heads.items()},
        vocabulary=vocabulary,
        skipped=torch.tensor(
            sorted(tokens.skipped_ids(config.skiplist, vocabulary, config.skiplist_words)), dtype=torch.int64
        ),
        device=device,
        dtype=dtype,
        rope_theta=backbone.rope_theta,
        attention=choose(attention, config=config, device=device).path,
    )


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype, *, exact: bool = False) -> nn.Module:
    """Move a module to a device and dtype, in place; RoPE's frequencies stay fp32, as in transformers.

    In bfloat16 the angles of position 300 would be wrong by up to 0.13 rad (base 10000, heads of 64). With `exact`, the
    frequencies are recognised in any architecture, by the end of their names.
    """
    kept = {
        name: buffer.clone()
        for name, buffer in module.named_buffers()
        if name in native.ROPE_FREQUENCIES or (exact and name.endswith("inv_freq"))
    }
    module.to(device=device, dtype=dtype)
    for name, buffer in kept.items():
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, buffer.to(device))
    return module


def _head(tensors: Mapping[str, Tensor], config: EncoderConfig, dim: int, checkpoint: Checkpoint) -> Head:
    """Return the head of a checkpoint. Each head is trained separately; none is a slice of another.

    Raises ModelError if the checkpoint has another head than the config says, or none.
    """
    if config.head != "linear":
        if native.HEAD in tensors:
            wanted = "no head" if config.head == "none" else "a head of Dense modules"
            msg = f"{checkpoint.origin}: unexpected {native.HEAD}; wanted {wanted}, as model.head={config.head} says"
            raise ModelError(msg)
        return dense.load_dense(checkpoint) if config.head == "dense" else None
    if native.HEAD not in tensors:
        msg = f"{checkpoint.origin}: {WEIGHTS} has no {native.HEAD}; wanted the head of dim {dim}"
        raise ModelError(msg)
    head = tensors[native.HEAD]
    if head.ndim != 2 or head.shape[0] != dim or not head.is_floating_point():
        found = f"{tuple(head.shape)} of {str(head.dtype).removeprefix('torch.')}"
        msg = f"{checkpoint.origin}: {native.HEAD} is {found}, wanted ({dim}, hidden size) of floats for dim {dim}"
        raise ModelError(msg)
    return head


def _check_width(head: Head, dim: int, backbone: Backbone, checkpoint: Checkpoint) -> None:
    """Raise ModelError if the head does not fit the hidden size or, without a head, the dim is not the hidden size."""
    hidden = backbone.hidden_size
    if isinstance(head, nn.Sequential):
        if (found := dense.widths(head)) != (hidden, dim):
            msg = f"{checkpoint.origin}: its Dense modules project {found[0]} numbers to {found[1]}"
            raise ModelError(f"{msg}, wanted {hidden} (the hidden size) to {dim} (the dim)")
        return
    if head is None and dim != hidden:
        msg = f"{checkpoint.origin}: without a head, dim is the hidden size {hidden}; got {dim}"
        raise ModelError(msg)
    if head is not None and head.shape[1] != hidden:
        msg = f"{checkpoint.origin}: {native.HEAD} is {tuple(head.shape)}, wanted ({dim}, {hidden}) for dim {dim}"
        raise ModelError(msg)


def embedding_rows(module: nn.Module) -> int:
    """Return the number of rows of a backbone's token embedding matrix."""
    named = (len(values) for name, values in module.named_parameters() if "word_embeddings" in name)
    rows = next(named, None)
    if rows is None:
        backbone: Any = module
        rows = len(backbone.get_input_embeddings().weight)
    return rows


def with_head_of(encoder: Encoder, own: Checkpoint, other: Checkpoint, dim: int) -> Encoder | None:
    """Return an encoder with the head of another checkpoint added, or None if the backbones differ by content.

    `own` is the encoder's checkpoint, `other` that of the new `dim`. Raises ModelError if a file is damaged or `other`
    lacks the head.
    """
    tensors = native.read_tensors(other)
    if not _same_tokenizer_and_config(own, other, encoder.config) or not _same_backbone(
        native.read_tensors(own), tensors
    ):
        return None
    head = _head(tensors, encoder.config, dim, other)
    added = None if head is None else head.to(device=encoder.device, dtype=encoder.dtype)
    return replace(encoder, heads={**encoder.heads, dim: added})


def _same_backbone(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all tensors but the head are equal."""
    names = {name for name in one if name != native.HEAD}
    return names == {name for name in other if name != native.HEAD} and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in names
    )


def _same_tokenizer_and_config(one: Checkpoint, other: Checkpoint, config: EncoderConfig) -> bool:
    """Whether tokenizer, code and architecture are the same, without which equal weights give other vectors."""
    if one.checksums[TOKENIZER] != other.checksums[TOKENIZER] or one.code() != other.code():
        return False
    one_values, other_values = one.config(), other.config()
    keys: Iterable[str] = (*native.ARCHITECTURE_KEYS, *native.OPTIONAL_KEYS)
    if config.backbone == "transformers":  # its classes may read any key
        keys = {*one_values, *other_values} - generic.IGNORED_KEYS
    return all(one_values.get(key) == other_values.get(key) for key in keys)


def _check_vocabulary(
    vocabulary: Vocabulary, config: EncoderConfig, backbone: Backbone, checkpoint: Checkpoint
) -> None:
    """Raise ModelError if a tokenizer lacks a marker or has ids outside the embedding matrix."""
    rows = embedding_rows(backbone.module)
    if vocabulary.size > rows:
        msg = (
            f"{checkpoint.origin}: the tokenizer has {vocabulary.size} tokens, the model {rows}; wanted the model's "
            "own tokenizer"
        )
        raise ModelError(msg)
    for rules in (config.query, config.document):
        try:
            vocabulary.markers(rules)
        except ModelError as error:
            msg = f"{checkpoint.origin}: {error}"
            raise ModelError(msg) from error
