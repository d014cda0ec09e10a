"""Encoders: batches of token ids to L2-normalised vectors, one per token or one per text, at one or more dims.

Shapes: B texts of a batch, T tokens of the longest, H hidden size, D dim.
A single-vector model is the case of one vector per text, so the store and the search know only one kind of model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from evalkit.config import EncoderConfig
from evalkit.errors import ModelError
from evalkit.models import backbones, tokens
from evalkit.models.checkpoint import TOKENIZER, WEIGHTS, Checkpoint, resolve
from evalkit.models.tokens import Tokens, Vocabulary

log = logging.getLogger(__name__)

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


WIDTH_STEP = 8
"""Batches are padded to a multiple of this, because CPU kernels keep a plan for every shape that they have met."""


def attention_path(device: torch.device) -> str:
    """Name the attention path and the device type, both of which can move the last bits of a vector."""
    return f"sdpa/{device.type}"


class Batch(NamedTuple):
    """Right-padded ids, which of them are attended to, and which give vectors (all [B, T])."""

    ids_BT: Tensor
    attended_BT: Tensor
    kept_BT: Tensor


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One backbone with the heads of one or more dims, on one device."""

    config: EncoderConfig
    module: nn.Module
    heads: Mapping[int, Tensor | None]
    """Head weight [D, H] by dim; None where hidden states are taken as they are."""
    vocabulary: Vocabulary
    skipped: Tensor
    device: torch.device
    dtype: torch.dtype
    rope_theta: float | None

    def only(self, dims: Sequence[int]) -> Encoder:
        """Return the same backbone with the heads of some dims."""
        return replace(self, heads={dim: self.heads[dim] for dim in dims})

    def tokenize_queries(self, texts: Sequence[str]) -> list[Tokens]:
        """Return each query's ids under the model's rules."""
        return tokens.tokenize(texts, self.config.query, self.vocabulary)

    def tokenize_documents(self, texts: Sequence[str]) -> list[Tokens]:
        """Return each document's ids under the model's rules."""
        return tokens.tokenize(texts, self.config.document, self.vocabulary)

    def batch(self, texts: Sequence[Tokens], *, skip_punctuation: bool) -> Batch:
        """Pad the ids of some texts on the right; `skip_punctuation` marks the document skiplist as not kept."""
        width = -(-max(len(text.ids) for text in texts) // WIDTH_STEP) * WIDTH_STEP
        pad = self.vocabulary.pad
        ids_BT = torch.tensor([text.ids + [pad] * (width - len(text.ids)) for text in texts])
        position_T = torch.arange(width)
        attended_BT = position_T < torch.tensor([[text.attended] for text in texts])
        kept_BT = position_T < torch.tensor([[len(text.ids)] for text in texts])
        if skip_punctuation and len(self.skipped):
            kept_BT &= ~torch.isin(ids_BT, self.skipped)
        return Batch(ids_BT, attended_BT, kept_BT)

    @torch.inference_mode()
    def vectors(self, batch: Batch) -> dict[int, tuple[Tensor, Tensor]]:
        """Return by dim the fp32 vectors of a batch, packed [ΣT, D], and how many each text has [B].

        Projection is one GEMM per head, so that a dim's vectors do not depend on which other dims run beside it.
        """
        ids_BT = batch.ids_BT.to(self.device)
        attended_BT = batch.attended_BT.to(self.device)
        mask = None if bool(batch.attended_BT.all()) else attended_BT
        hidden_BTH = self.module(input_ids=ids_BT, attention_mask=mask).last_hidden_state
        if self.config.pooling == "tokens":
            kept_BT = batch.kept_BT.to(self.device)
            packed_XH, counts_B = hidden_BTH[kept_BT], batch.kept_BT.sum(1)
        else:
            packed_XH, counts_B = self._pooled(hidden_BTH, attended_BT), torch.ones(len(ids_BT), dtype=torch.int64)
        out = {}
        for dim, head_DH in self.heads.items():
            vectors_XD = (packed_XH if head_DH is None else packed_XH @ head_DH.T).float()
            if self.config.normalize:
                # In fp32: a half-precision norm is off by up to 4e-3.
                vectors_XD = functional.normalize(vectors_XD, dim=-1)
            out[dim] = (vectors_XD, counts_B)
        return out

    def _pooled(self, hidden_BTH: Tensor, attended_BT: Tensor) -> Tensor:
        if self.config.pooling == "cls":
            return hidden_BTH[:, 0]
        weight_BT1 = attended_BT.unsqueeze(-1).float()
        return (hidden_BTH.float() * weight_BT1).sum(1) / weight_BT1.sum(1)


def checkpoints(config: EncoderConfig, dims: Sequence[int]) -> dict[int, Checkpoint]:
    """Find the checkpoint of each dim. Raises ModelError that names the dims whose checkpoints can still be had."""
    found: dict[int, Checkpoint] = {}
    failed: dict[int, ModelError] = {}
    for dim in dims:
        try:
            found[dim] = resolve(config.checkpoints[str(dim)], allow_pickle=config.allow_pickle)
        except ModelError as error:
            failed[dim] = error
    if failed:
        dim, first = next(iter(failed.items()))
        rest = f"; can run: dim={','.join(map(str, found))}" if found else ""
        msg = f"model {config.name!r} dim {dim}: {first}{rest}"
        raise ModelError(msg) from first
    return found


def load_encoders(config: EncoderConfig, found: Mapping[int, Checkpoint], *, device: torch.device) -> list[Encoder]:
    """Load the dims' checkpoints; dims whose backbones are equal by content share one encoder, hence one pass.

    Raises ModelError for tensors that do not fit, a missing head or missing special tokens.
    """
    groups: list[tuple[dict[str, Tensor], dict[int, Checkpoint]]] = []
    heads: dict[int, Tensor | None] = {}
    for dim, checkpoint in found.items():
        tensors = backbones.read_tensors(checkpoint)
        heads[dim] = _head(tensors, config, dim, checkpoint)
        for shared, members in groups:
            if _same_backbone(shared, tensors) and _same_reading(next(iter(members.values())), checkpoint):
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
        backbone = backbones.build(tensors, checkpoint.config(), config, origin=checkpoint.origin)
        vocabulary = tokens.load_vocabulary(checkpoint)
        _check_vocabulary(vocabulary, config, tensors, checkpoint)
        if config.head == "none" and any(dim != backbone.hidden_size for dim in members):
            wanted = f"without a head, dim is the hidden size {backbone.hidden_size}"
            msg = f"{checkpoint.origin}: {wanted}; got {', '.join(map(str, members))}"
            raise ModelError(msg)
        encoders.append(
            Encoder(
                config=config,
                module=backbone.module.to(device=device, dtype=dtype),
                heads={
                    dim: None if (head := heads[dim]) is None else head.to(device=device, dtype=dtype)
                    for dim in members
                },
                vocabulary=vocabulary,
                skipped=torch.tensor(sorted(tokens.skipped_ids(config.skiplist, vocabulary)), dtype=torch.int64),
                device=device,
                dtype=dtype,
                rope_theta=backbone.rope_theta,
            )
        )
    return encoders


def _head(tensors: Mapping[str, Tensor], config: EncoderConfig, dim: int, checkpoint: Checkpoint) -> Tensor | None:
    """Return the projection [D, H] of a checkpoint. Heads are trained apart: one is never cut from another."""
    if config.head == "none":
        return None
    if backbones.HEAD not in tensors:
        msg = f"{checkpoint.origin}: {WEIGHTS} has no {backbones.HEAD}; wanted the head of dim {dim}"
        raise ModelError(msg)
    head = tensors[backbones.HEAD]
    if head.ndim != 2 or head.shape[0] != dim:
        msg = f"{checkpoint.origin}: {backbones.HEAD} is {tuple(head.shape)}, wanted ({dim}, hidden size) for dim {dim}"
        raise ModelError(msg)
    return head


def _same_backbone(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    names = {name for name in one if name != backbones.HEAD}
    return names == {name for name in other if name != backbones.HEAD} and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in names
    )


def _same_reading(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether tokenizer and architecture agree too: equal weights under other tokens are another model."""
    if one.checksums[TOKENIZER] != other.checksums[TOKENIZER]:
        return False
    one_values, other_values = one.config(), other.config()
    keys = (*backbones.ARCHITECTURE_KEYS, *backbones.OPTIONAL_KEYS)
    return all(one_values.get(key) == other_values.get(key) for key in keys)


def _check_vocabulary(
    vocabulary: Vocabulary, config: EncoderConfig, tensors: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    """Refuse a tokenizer that lacks a marker or has ids beyond the embedding matrix."""
    rows = next(tensor.shape[0] for name, tensor in tensors.items() if name.endswith("word_embeddings.weight"))
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
