# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["pylate==1.6.0", "torch", "numpy<3"]
# ///
"""Pool small random documents with PyLate's hierarchical token pooling; save them as a fixture of the parity tests.

It needs its own environment, because PyLate 1.6 pins transformers below 5.4. With uv, or with the dependencies above in
a virtual environment:

    uv run scripts/parity_pylate_pooling.py tests/fixtures/parity/pylate_pooling.npz
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
from pylate.models import ColBERT

LENGTHS = (1, 2, 3, 9, 30)
DIM = 8
FACTORS = (1, 2, 3, 4)


def main(out: Path) -> None:
    """Write every document's vectors, the pooled vectors for each factor, and the versions of the packages."""
    arrays: dict[str, np.ndarray] = {}
    for place, length in enumerate(LENGTHS):
        rows = np.random.default_rng(place).normal(size=(length, DIM)).astype(np.float32)
        document = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)
        arrays[f"document_{place}"] = document.numpy()
        for factor in FACTORS:
            (pooled,) = ColBERT.pool_embeddings_hierarchical(None, [document], pool_factor=factor)
            arrays[f"pooled_{place}_{factor}"] = pooled.numpy()
    facts = {name: importlib.metadata.version(name) for name in ("pylate", "torch", "scipy", "numpy")}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # the stubs take the names for allow_pickle


if __name__ == "__main__":
    main(Path(sys.argv[1]))
