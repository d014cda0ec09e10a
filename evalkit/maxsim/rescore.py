"""Exact MaxSim of nominated pairs, in batches, on the device of the document vectors.

Shapes: Q queries, N documents, D dim; H pairs, B pairs of one batch, L query vectors, T document vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from evalkit.kernels.trouble import first_line, is_out_of_memory, warn_once
from evalkit.ragged import Ragged

BATCH_NUMBERS = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Most float64 numbers of one batch of pairs, with padding, by device type: 512 MiB on a CPU.

On a GPU, writing and reading 8 GiB takes 6 ms at 3 TB/s, a hundred times as long as launching a batch. A batch that
does not fit memory is halved.
"""
_FITTING: dict[torch.device, int] = {}
"""The batch size in numbers that was found to fit a device's memory, if it is smaller."""


def exact_scores(
    queries: Ragged, documents: Ragged, query_H: Tensor, document_H: Tensor, *, batch_numbers: int | None = None
) -> Tensor:
    """Return the exact MaxSim, rounded once to fp32 [H], of chosen (query, document) pairs.

    The result is on the device of the document vectors. It is bit-identical to `simd.exact_scores` wherever the sums
    are exact, so that the order of additions does not matter: fp16 vectors of unit length, at most 32 per query. Pairs
    are batched by document length. Short documents are padded by repeating their last vector, short queries by zero
    vectors, whose maxima are 0. `batch_numbers` limits a batch's size in float64 numbers.
    """
    device = documents.rows_XD.device
    query_QLD = _padded(queries, device)
    query_H, document_H = query_H.to(device), document_H.to(device)
    offsets_N = documents.offsets_N.to(device)
    lengths_H = offsets_N[document_H + 1] - offsets_N[document_H]
    order_H = torch.argsort(lengths_H, stable=True)
    out_H = torch.empty(len(query_H), device=device)
    _, query_length, dim = query_QLD.shape
    sorted_lengths_H = lengths_H[order_H].cpu().numpy()
    # Numbers per pair: its document's vectors [T, D], its dot products [L, T] and its query's vectors [L, D].
    numbers_H = sorted_lengths_H * (dim + query_length) + query_length * dim
    most = batch_numbers or _FITTING.get(device) or BATCH_NUMBERS.get(device.type, BATCH_NUMBERS["cpu"])

    def score(batch: slice) -> None:
        pair_B = order_H[batch]
        document_B = document_H[pair_B]
        step_T = torch.arange(int(sorted_lengths_H[batch.stop - 1]), device=device)
        row_BT = offsets_N[document_B].unsqueeze(1) + torch.minimum(step_T, (lengths_H[pair_B] - 1).unsqueeze(1))
        document_BTD = documents.rows_XD[row_BT].double()
        similarity_BLT = torch.bmm(query_QLD[query_H[pair_B]], document_BTD.transpose(1, 2))
        out_H[pair_B] = similarity_BLT.amax(2).sum(1).float()

    begin = 0
    while begin < len(numbers_H):
        end = _batch_end(numbers_H, begin, most)
        problem = _attempt(score, slice(begin, end))
        if not problem:
            begin = end
            continue
        if end == begin + 1:
            raise torch.OutOfMemoryError(problem)
        if device not in _FITTING:
            warn_once(f"exact scores of {end - begin} pairs did not fit memory ({problem}): smaller batches follow")
        most = _FITTING[device] = int(numbers_H[end - 1]) * (end - begin) // 2
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return out_H


def _attempt(score: Callable[[slice], None], batch: slice) -> str:
    """Score a batch of pairs. Return the reason if it does not fit memory, else "".

    Only the error's text is returned: the error itself holds the batch's tensors, whose memory the next attempt needs.
    """
    try:
        score(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    return ""


def _batch_end(numbers_H: np.ndarray, begin: int, most: int) -> int:
    """Return the end of the longest batch of pairs, sorted by length, whose padded size is at most `most` numbers.

    A batch has at least one pair.
    """
    too_large_H = np.arange(1, len(numbers_H) - begin + 1) * numbers_H[begin:] > most
    return begin + max(1, int(too_large_H.argmax())) if too_large_H.any() else len(numbers_H)


def _padded(queries: Ragged, device: torch.device) -> Tensor:
    """Return query vectors in float64 [Q, L, D], with shorter queries padded by zeros."""
    lengths_Q = queries.offsets_N.diff()
    owner_Y = torch.repeat_interleave(torch.arange(len(lengths_Q)), lengths_Q)
    place_Y = torch.arange(len(owner_Y)) - queries.offsets_N[owner_Y]
    padded_QLD = torch.zeros(
        (len(lengths_Q), int(lengths_Q.max()), queries.rows_XD.shape[1]), dtype=torch.float64, device=device
    )
    padded_QLD[owner_Y.to(device), place_Y.to(device)] = queries.rows_XD.to(device).double()
    return padded_QLD
