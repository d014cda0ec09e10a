# /// script
# requires-python = ">=3.11"
# dependencies = ["maxsim-cpu==0.1.0", "numpy"]
# ///
"""MaxSim by maxsim-cpu: its function for documents of equal length, or the one for variable lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import maxsim_cpu
import numpy as np
from peers.worker import Prepared, read_maxsim, serve


def maxsim(job: Mapping[str, Any]) -> Prepared:
    """Prepare one call per query; its interface does not accept several queries."""
    query_QLD, document_XD, lengths_N = read_maxsim(job)
    if len(set(lengths_N.tolist())) == 1:
        documents: Any = document_XD.reshape(len(lengths_N), lengths_N[0], -1)
        score = maxsim_cpu.maxsim_scores
    else:
        documents = np.split(document_XD, np.cumsum(lengths_N)[:-1])
        score = maxsim_cpu.maxsim_scores_variable
    return Prepared(lambda queries: [score(query, documents) for query in query_QLD[:queries]], array=np.stack)


if __name__ == "__main__":
    serve({"maxsim": maxsim}, packages=("maxsim-cpu", "numpy"))
