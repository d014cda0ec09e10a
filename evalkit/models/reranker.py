"""Re-rankers: cross-encoders that read query and document together and return one score. No vectors are stored.

Shapes: B pairs of a batch, T tokens of the longest pair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evalkit.config.settings import RerankerConfig
from evalkit.errors import ModelError, Tried
from evalkit.kernels.fp32 import full_precision, require_full_precision
from evalkit.models.attention import working_sdpa
from evalkit.models.backbones import native as backbones
from evalkit.models.checkpoint import Checkpoint, refuse_changes, resolve
from evalkit.models.encoder import DTYPES
from evalkit.models.tokens import Vocabulary, load_vocabulary

_RENAMES = (
    (re.compile(r"^roberta\.emb_ln\."), "roberta.embeddings.LayerNorm."),
    (re.compile(r"^roberta\.encoder\.layers\."), "roberta.encoder.layer."),
    (re.compile(r"\.mixer\.out_proj\."), ".attention.output.dense."),
    (re.compile(r"\.norm1\."), ".attention.output.LayerNorm."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
    (re.compile(r"\.norm2\."), ".output.LayerNorm."),
)
"""Renames tensors from the repository's flash-attention layout to transformers' XLM-R."""


@dataclass(frozen=True, kw_only=True)
class Reranker:
    """A loaded re-ranker on one device."""

    config: RerankerConfig
    checkpoint: Checkpoint
    module: nn.Module
    vocabulary: Vocabulary
    device: torch.device

    def pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """Return the token ids of `<s> query </s></s> document </s>` for each document.

        A pair of more than `max_tokens` token ids is truncated as `truncated_lengths` says.
        """
        tokenizer = self.vocabulary.tokenizer
        (query_encoding,) = tokenizer.encode_batch_fast([query], add_special_tokens=False)
        encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
        query_ids, first, last = query_encoding.ids, self.vocabulary.first, self.vocabulary.last
        pairs = []
        for encoding in encodings:
            # Four special tokens are added to each pair.
            kept_q, kept_d = truncated_lengths(len(query_ids), len(encoding.ids), room=self.config.max_tokens - 4)
            pairs.append([first, *query_ids[:kept_q], last, last, *encoding.ids[:kept_d], last])
        return pairs

    @torch.inference_mode()
    def scores(self, pairs: Sequence[Sequence[int]]) -> list[float]:
        """Return the logit of each pair in fp32, computed in one padded batch. Raises ModelError if one is not finite.

        The sigmoid of some libraries is not applied: it keeps the order, but rounds away differences near 1.
        """
        width, pad = max(map(len, pairs)), self.vocabulary.pad
        ids_BT = torch.tensor([[*pair, *[pad] * (width - len(pair))] for pair in pairs], device=self.device)
        attended_BT = torch.arange(width, device=self.device) < torch.tensor(
            [[len(pair)] for pair in pairs], device=self.device
        )
        with full_precision(self.device), working_sdpa(self.device, DTYPES[self.config.dtype]):
            logits: Tensor = self.module(input_ids=ids_BT, attention_mask=attended_BT.long()).logits
        if not bool(torch.isfinite(logits).all()):
            msg = f"re-ranker {self.config.name} returned a score that is not finite; rerun with reranker.dtype=float32"
            raise ModelError(msg)
        return [float(score) for score in logits[:, 0].float().tolist()]


def truncated_lengths(query: int, document: int, *, room: int) -> tuple[int, int]:
    """Return how many tokens of query and document fit into `room` tokens if the longer side is truncated first.

    >>> truncated_lengths(10, 500, room=100), truncated_lengths(80, 500, room=100), truncated_lengths(80, 10, room=100)
    ((10, 90), (50, 50), (80, 10))
    """
    if query + document <= room:
        return query, document
    shorter = min(query, document)
    if shorter > room // 2:
        return (room // 2, room - room // 2) if query <= document else (room - room // 2, room // 2)
    return (query, room - query) if query <= document else (room - document, document)


def load_reranker(config: RerankerConfig, *, device: torch.device) -> Reranker:
    """Load a re-ranker on a device.

    Raises ModelError if the checkpoint is missing, damaged or not XLM-R, and DeviceError if fp32 products would be
    rounded.
    """
    require_full_precision()
    with backbones.explain_import_errors():
        from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    checkpoint = _resolved(config)
    values, origin = checkpoint.config(), checkpoint.origin
    if values.get("model_type") not in (None, "xlm-roberta"):
        msg = f"{origin}: config.json has model_type {values['model_type']!r}, wanted xlm-roberta for a re-ranker"
        raise ModelError(msg)
    names = [*backbones.ARCHITECTURE_KEYS, "hidden_act"]
    native = XLMRobertaConfig(**backbones.config_values(values, names, origin=origin), id2label={0: "relevance"})
    positions = values["max_position_embeddings"] - values["pad_token_id"] - 1
    if config.max_tokens > positions:
        msg = f"{origin}: reranker.max_tokens={config.max_tokens}, but the model has {positions} positions"
        raise ModelError(f"{msg}; wanted no more tokens than that")
    renamed = dict(_native_names(backbones.read_tensors(checkpoint)))
    module = backbones.filled(XLMRobertaForSequenceClassification, native, renamed, origin=origin)
    reranker = Reranker(
        config=config,
        checkpoint=checkpoint,
        module=module.to(device=device, dtype=DTYPES[config.dtype]),
        vocabulary=load_vocabulary(checkpoint),
        device=device,
    )
    refuse_changes([checkpoint])
    return reranker


_SETTINGS = (
    ("model.checkpoints.DIM.", "reranker.checkpoint."),
    ("model.allow_pickle", "reranker.allow_pickle"),
    (", or choose other dims with dim=", ""),
)
"""Texts in the errors of `resolve`, which name an encoder's settings, and their replacements for a re-ranker."""


def _resolved(config: RerankerConfig) -> Checkpoint:
    """Return the re-ranker's checkpoint. Raises ModelError that names the re-ranker's settings."""
    try:
        return resolve(config.checkpoint, allow_pickle=config.allow_pickle)
    except ModelError as error:
        parts: tuple[str, ...] = error.tried or (str(error),)
        for encoder_text, reranker_text in _SETTINGS:
            parts = tuple(part.replace(encoder_text, reranker_text) for part in parts)
        if error.tried is None:
            raise ModelError(parts[0]) from error
        raise ModelError.unobtainable(Tried(*parts)) from error


def _native_names(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Yield tensors under transformers' names; the fused Wqkv is split into query, key and value rows."""
    for name, tensor in tensors.items():
        renamed = name
        for pattern, replacement in _RENAMES:
            renamed = pattern.sub(replacement, renamed)
        if renamed.endswith(".position_ids") or renamed.startswith("roberta.pooler."):
            continue
        if ".mixer.Wqkv." in renamed:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3, dim=0), strict=True):
                yield renamed.replace(".mixer.Wqkv.", f".attention.self.{part}."), rows
        else:
            yield renamed, tensor
