# /// script
# requires-python = ">=3.11"
# dependencies = ["late-interaction-kernels==0.4.5", "triton>=3.6", "torch==2.13.0", "numpy"]
# ///
"""MaxSim by the CPU path of late-interaction-kernels: its scorer, on chunks of padded documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from late_interaction_kernels import MaxSimScorer
from peers.worker import Prepared, read_maxsim, serve
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CHUNK = 64
"""Documents per call; the CPU path keeps the products of all query and document vectors in memory."""


def maxsim(job: Mapping[str, Any]) -> Prepared:
    """Prepare the scorer on padded chunks with masks; normalisation is off because the vectors have length 1."""
    query_QLD, document_XD, lengths_N = (torch.from_numpy(array) for array in read_maxsim(job))
    texts = torch.split(document_XD, lengths_N.tolist())
    chunks = []
    for begin in range(0, len(texts), CHUNK):
        some_N = lengths_N[begin : begin + CHUNK]
        mask_NT = torch.arange(int(some_N.max())) < some_N.unsqueeze(1)
        chunks.append((pad_sequence(list(texts[begin : begin + CHUNK]), batch_first=True), mask_NT))
    scorer = MaxSimScorer(normalize=False)

    def run(queries: int) -> Tensor:
        return torch.cat([scorer.score(query_QLD[:queries], text, d_mask=mask) for text, mask in chunks], dim=1)

    return Prepared(run, array=Tensor.numpy)


if __name__ == "__main__":
    serve({"maxsim": maxsim}, packages=("late-interaction-kernels", "torch", "triton"))
