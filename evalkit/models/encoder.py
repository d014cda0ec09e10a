"""Encoders: batches of token ids to L2-normalised vectors, one per token or one per text, at one or more dims.

Shapes: B texts of a batch, T tokens of the longest, X tokens of all, V of them that give vectors, H hidden size, D dim,
W the dims of all heads that the model has.
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
from evalkit.models import dense, metadata, tokens
from evalkit.models.attention import Packing, Spans, choose, enable, has_kernel, packing_of
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


def attention_path(config: EncoderConfig, asked: Attention, device: torch.device) -> str:
    """Name the attention path and the device type, both of which can move the last bits of a vector."""
    return f"{choose(asked, config=config, device=device).path}/{device.type}"


Head: TypeAlias = Tensor | nn.Sequential | None
PADS_COUNT = ("xmod",)
"""Backbones that count positions from behind their pad id, passing pads over; likewise these architectures."""
PADS_COUNT_OF = ("camembert", "roberta", "xlm-roberta")


class Batch(NamedTuple):
    """Right-padded ids and which of them are attended to [B, T], and which give vectors."""

    ids_BT: Tensor
    attended_BT: Tensor
    kept_V: Tensor
    """Rows of the flattened [B * T] that give vectors."""
    counts_B: Tensor
    """How many of them each text has."""
    spans: Spans


class PackedBatch(NamedTuple):
    """The ids of some texts back to back, each with its position in its own text, and which of them give vectors."""

    ids_X: Tensor
    position_X: Tensor
    packing: Packing
    kept_V: Tensor
    counts_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One backbone with the heads of one or more dims, on one device."""

    config: EncoderConfig
    module: nn.Module
    heads: Mapping[int, Head]
    """Head weight [D, H] or Dense layers by dim; None where hidden states are taken as they are."""
    vocabulary: Vocabulary
    skipped: Tensor
    device: torch.device
    dtype: torch.dtype
    rope_theta: float | None
    attention: AttentionPath = "sdpa"

    def __post_init__(self) -> None:
        if self.attention != "sdpa" or self._has_kernel:
            enable(self.module, self.config)

    @cached_property
    def _has_kernel(self) -> bool:
        return self.attention == "sdpa" and has_kernel(self.config, self.module, device=self.device, dtype=self.dtype)

    def only(self, dims: Sequence[int]) -> Encoder:
        """Return the same backbone with the heads of some dims."""
        return replace(self, heads={dim: self.heads[dim] for dim in dims})

    def tokenize_queries(self, texts: Sequence[str]) -> TokenTable:
        """Return each query's ids under the model's rules."""
        return tokens.tokenize(texts, self.config.query, self.vocabulary)

    def tokenize_documents(self, texts: Sequence[str]) -> TokenTable:
        """Return each document's ids under the model's rules."""
        return tokens.tokenize(texts, self.config.document, self.vocabulary)

    def kept(self, texts: TokenTable, *, skip_punctuation: bool) -> np.ndarray:
        """Return which ids give vectors of their own [X]: all but a document's skipped punctuation."""
        if skip_punctuation and len(self.skipped):
            return self._kept(texts.ids_X)
        return np.ones(len(texts.ids_X), dtype=bool)

    def _kept(self, ids: np.ndarray) -> np.ndarray:
        """Return which ids are not in the skiplist, in the shape they have."""
        kept: np.ndarray = self._kept_S.take(ids, mode="clip")
        return kept

    @cached_property
    def _kept_S(self) -> np.ndarray:
        """Which ids are not in the skiplist, up to its largest; the last entry stands for all above."""
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
        """Lay the ids of some texts out as the encoder's attention wants them: packed, or padded on the right.

        `skip_punctuation` leaves the document skiplist without vectors; `rows` chooses among the texts; `width` pads
        beyond the longest of them.
        """
        table = TokenTable.of(texts)
        if self.attention != "sdpa":
            return self._packed(table if rows is None else table.take(rows), skip_punctuation=skip_punctuation)
        chosen_B = np.arange(len(table)) if rows is None else rows
        length_B1 = table.lengths_N[chosen_B, None]
        place_T = np.arange(width or length_B1.max())
        real_BT = place_T < length_B1
        ids_BT = table.ids_X.take(table.offsets_N[chosen_B, None] + place_T, mode="clip").astype(np.int64)
        ids_BT[~real_BT] = self.vocabulary.pad
        kept_BT = real_BT & self._kept(ids_BT) if skip_punctuation and len(self.skipped) else real_BT
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            attended_BT=torch.from_numpy(place_T < table.attended_N[chosen_B, None]),
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
        """Return each id's position in its own text [X]; XLM-R's kin count from behind the pad id and pass it over."""
        begin_X = np.repeat(table.offsets_N[:-1], table.lengths_N)
        if self.config.backbone not in PADS_COUNT and self.config.architecture not in PADS_COUNT_OF:
            position_X: np.ndarray = np.arange(len(table.ids_X)) - begin_X
            return position_X
        real_X = table.ids_X != self.vocabulary.pad
        before_X = offsets(real_X)
        counted_X: np.ndarray = (before_X[1:] - before_X[begin_X]) * real_X + self.vocabulary.pad
        return counted_X

    @torch.inference_mode()
    def vectors(self, batch: Batch | PackedBatch) -> dict[int, tuple[Tensor, Tensor]]:
        """Return by dim the fp32 vectors of a batch, packed [ΣT, D], and how many each text has [B].

        Nothing here waits for the device: rows and counts are known from the ids.
        """
        hidden_XH = self._hidden(batch)
        if self.config.pooling == "tokens":
            packed_XH, counts_B = hidden_XH, batch.counts_B
            if len(batch.kept_V) < len(hidden_XH):  # else nothing is padding or punctuation
                packed_XH = hidden_XH.index_select(0, self.upload(batch.kept_V))
        else:
            packed_XH, counts_B = self._pooled(hidden_XH, batch), torch.ones_like(batch.counts_B)
        out = {}
        for dim, projected_XD in self._projected(packed_XH).items():
            vectors_XD = projected_XD.float()
            out[dim] = (to_unit_length(vectors_XD) if self.config.normalize else vectors_XD, counts_B)
        return out

    def _projected(self, hidden_XH: Tensor) -> dict[int, Tensor]:
        """Return the hidden states through each head [X, D], by one GEMM for all of them."""
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
        """The GEMM with the heads [W, H] of all dims that the config lists; zeros stand for those not in use.

        A GEMM of another width may add in another order. This width is the model's own, so a dim has the same bits
        whichever dims run beside it: a column does not depend on what the others hold.
        """
        used = {dim: head_DH for dim, head_DH in self.heads.items() if isinstance(head_DH, Tensor)}
        any_DH = next(iter(used.values()))
        return linear.projection(
            torch.cat(
                [used[dim] if dim in used else any_DH.new_zeros(dim, any_DH.shape[1]) for dim in self.config.dims]
            )
        )

    def _hidden(self, batch: Batch | PackedBatch) -> Tensor:
        """Return the hidden states of every place of a batch [X, H], padded places among them."""
        if isinstance(batch, PackedBatch):
            given = {"input_ids": self.upload(batch.ids_X).unsqueeze(0), "packing": batch.packing.to(self.upload)}
            if self.config.backbone != "jina_bert":  # which has ALiBi in place of positions
                given["position_ids"] = self.upload(batch.position_X).unsqueeze(0)
            hidden = self.module(**given).last_hidden_state
        elif self._has_kernel:
            hidden = self.module(input_ids=batch.ids_BT, spans=batch.spans).last_hidden_state
        else:
            mask = None if bool(batch.attended_BT.all()) else self.upload(batch.attended_BT)
            hidden = self.module(input_ids=self.upload(batch.ids_BT), attention_mask=mask).last_hidden_state
        flat_XH: Tensor = hidden.flatten(0, 1)
        return flat_XH

    def _pooled(self, hidden_XH: Tensor, batch: Batch | PackedBatch) -> Tensor:
        if isinstance(batch, PackedBatch):
            packing = batch.packing.to(self.upload)
            if self.config.pooling == "cls":
                return hidden_XH[packing.offsets_q[:-1]]
            attended_YH = hidden_XH if packing.attended_Y is None else hidden_XH[packing.attended_Y]
            counts_B = packing.offsets_k.diff().long()
            summed_BH = torch.segment_reduce(attended_YH.float(), "sum", lengths=counts_B, axis=0)
            return summed_BH / counts_B.unsqueeze(1)
        hidden_BTH = hidden_XH.view(*batch.ids_BT.shape, -1)
        if self.config.pooling == "cls":
            return hidden_BTH[:, 0]
        weight_BT1 = self.upload(batch.attended_BT).unsqueeze(-1).float()
        mean_BH: Tensor = (hidden_BTH.float() * weight_BT1).sum(1) / weight_BT1.sum(1)
        return mean_BH

    def upload(self, tensor: Tensor) -> Tensor:
        """Copy to the device; from pinned memory, which lets the copy run beside what the device is doing."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def to_unit_length(vectors_XD: Tensor) -> Tensor:
    """Divide each vector by its norm, in fp32 and in place: a half-precision norm is off by up to 4e-3.

    What `torch.nn.functional.normalize` returns, but for a vector whose norm is not finite: it becomes NaN throughout,
    where division by infinity would leave zeros that nothing notices.
    """
    norm_X1 = torch.linalg.vector_norm(vectors_XD, dim=-1, keepdim=True).clamp_min_(1e-12)
    return vectors_XD.div_(norm_X1.add_(norm_X1, alpha=0))  # zero times infinity is NaN


def checkpoints(config: EncoderConfig, dims: Sequence[int]) -> dict[int, Checkpoint]:
    """Find the checkpoint of each dim, and hold what it says of itself against the config.

    Raises ModelError that names the dims whose checkpoints can still be had.
    """
    found, failed = obtainable(config, dims)
    if failed:
        dim, first = next(iter(failed.items()))
        rest = f"; can run: dim={','.join(map(str, found))}" if found else ""
        msg = f"model {label(config.name, dim)}: {first}{rest}"
        raise ModelError(msg) from first
    return found


def obtainable(config: EncoderConfig, dims: Sequence[int]) -> tuple[dict[int, Checkpoint], dict[int, ModelError]]:
    """Return the checkpoints of the dims that can be had, and for each of the others why it cannot."""
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
    """Load the dims' checkpoints; dims whose backbones are equal by content share one encoder, hence one pass.

    Raises ModelError for tensors that do not fit, a missing head or missing special tokens, and for files that changed
    since their checksums were taken.
    """
    groups: list[tuple[dict[str, Tensor], dict[int, Checkpoint]]] = []
    heads: dict[int, Head] = {}
    for dim, checkpoint in found.items():
        tensors = native.read_tensors(checkpoint)
        heads[dim] = _head(tensors, config, dim, checkpoint)
        for shared, members in groups:
            if _same_backbone(shared, tensors) and _same_reading(next(iter(members.values())), checkpoint, config):
                members[dim] = checkpoint
                break
        else:
            groups.append((tensors, {dim: checkpoint}))
    if len(groups) > 1:
        apart = " / ".join(", ".join(map(str, members)) for _, members in groups)
        log.warning("model %s: the backbones of dims %s differ by content, so each runs apart", config.name, apart)
    dtype = DTYPES[config.dtype]
    encoders = []
    for tensors, members in groups:
        checkpoint = next(iter(members.values()))
        if config.trust_remote_code:
            from evalkit.models import remote_code

            backbone = remote_code.build(checkpoint, tensors, config)
        else:
            backbone = native.build(tensors, checkpoint.config(), config, origin=checkpoint.origin)
        tensors.clear()  # the module holds what it took: a layer's weight is freed once it is laid out
        vocabulary = tokens.vocabulary_of(config, checkpoint)
        _check_vocabulary(vocabulary, config, backbone, checkpoint)
        for dim, checkpoint_of_dim in members.items():
            _check_width(heads[dim], dim, backbone, checkpoint_of_dim)
        module = moved(backbone.module, device, dtype, exact=config.backbone == "transformers")
        if not config.trust_remote_code:  # a checkpoint's own code is run as it is
            linear.pack(module)
        if choose_elementwise(elementwise, config=config, device=device).fused:
            fuse(module)
        encoders.append(
            Encoder(
                config=config,
                module=module,
                heads={
                    dim: None if (head := heads[dim]) is None else head.to(device=device, dtype=dtype)
                    for dim in members
                },
                vocabulary=vocabulary,
                skipped=torch.tensor(
                    sorted(tokens.skipped_ids(config.skiplist, vocabulary, config.skiplist_words)), dtype=torch.int64
                ),
                device=device,
                dtype=dtype,
                rope_theta=backbone.rope_theta,
                attention=choose(attention, config=config, device=device).path,
            )
        )
    refuse_changes(found.values())
    return encoders


def moved(module: nn.Module, device: torch.device, dtype: torch.dtype, *, exact: bool = False) -> nn.Module:
    """Bring a module to a device and dtype, but for RoPE's frequencies, which stay in fp32 as in the native library.

    Rounded to bfloat16 they turn position 300 by up to .13 radian too far or too little (base 10000, heads of 64).
    `exact` keeps those of any architecture, by the end of their names.
    """
    kept = {
        name: buffer.clone()
        for name, buffer in module.named_buffers()
        if name in native.ROPE_FREQUENCIES or (exact and name.endswith("inv_freq"))
    }
    module.to(device=device, dtype=dtype)
    for name, buffer in kept.items():
        at, _, last = name.rpartition(".")
        setattr(module.get_submodule(at), last, buffer.to(device))
    return module


def _head(tensors: Mapping[str, Tensor], config: EncoderConfig, dim: int, checkpoint: Checkpoint) -> Head:
    """Return the projection [D, H] of a checkpoint. Heads are trained apart: one is never cut from another."""
    if config.head != "linear":
        if native.HEAD in tensors:
            wanted = "no head" if config.head == "none" else "the head beside the weights"
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
    """Refuse a head for another hidden size, and a dim that is not the hidden size where there is no head."""
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
    """Return the rows of a backbone's embedding matrix."""
    named = (len(values) for name, values in module.named_parameters() if "word_embeddings" in name)
    rows = next(named, None)
    if rows is None:
        own: Any = module
        rows = len(own.get_input_embeddings().weight)
    return rows


def with_head_of(encoder: Encoder, own: Checkpoint, other: Checkpoint, dim: int) -> Encoder | None:
    """Return an encoder with the head of another checkpoint beside its own, or None where the backbones differ.

    Nothing is built: both files are compared by content, the other's head alone is taken.
    """
    tensors = native.read_tensors(other)
    if not _same_reading(own, other, encoder.config) or not _same_backbone(native.read_tensors(own), tensors):
        return None
    head = _head(tensors, encoder.config, dim, other)
    added = None if head is None else head.to(device=encoder.device, dtype=encoder.dtype)
    return replace(encoder, heads={**encoder.heads, dim: added})


def _same_backbone(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    names = {name for name in one if name != native.HEAD}
    return names == {name for name in other if name != native.HEAD} and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in names
    )


def _same_reading(one: Checkpoint, other: Checkpoint, config: EncoderConfig) -> bool:
    """Whether tokenizer and architecture agree too: equal weights under other tokens are another model."""
    if one.checksums[TOKENIZER] != other.checksums[TOKENIZER] or one.code() != other.code():
        return False
    one_values, other_values = one.config(), other.config()
    keys: Iterable[str] = (*native.ARCHITECTURE_KEYS, *native.OPTIONAL_KEYS)
    if config.backbone == "transformers":  # whose classes read what they like
        keys = {*one_values, *other_values} - generic.COSMETIC
    return all(one_values.get(key) == other_values.get(key) for key in keys)


def _check_vocabulary(
    vocabulary: Vocabulary, config: EncoderConfig, backbone: Backbone, checkpoint: Checkpoint
) -> None:
    """Refuse a tokenizer that lacks a marker or has ids beyond the embedding matrix."""
    rows = embedding_rows(backbone.module)
    if vocabulary.size > rows:
        msg = (
            f"{checkpoint.origin}: the tokenizer has {vocabulary.size} tokens, the model {rows}; wanted the model's own"
        )
        raise ModelError(msg)
    for rules in (config.query, config.document):
        try:
            vocabulary.markers(rules)
        except ModelError as error:
            msg = f"{checkpoint.origin}: {error}"
            raise ModelError(msg) from error
