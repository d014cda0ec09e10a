"""Small random checkpoints in the exact on-disk layouts of the real repositories, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

PIECES = ["▁", ".", ",", "!", "▁hello", "▁world", "▁the", "a", "b", "c", "d", "e", "f", "g", "▁a", "▁b", "▁c", "s", "t"]


def write_xlmr_tokenizer(path: Path, *, markers: bool = True) -> int:
    """Write an XLM-R-like tokenizer.json: specials 0-3, pieces, <mask>, the two markers last; return its size."""
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(place + 1)) for place, piece in enumerate(PIECES)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    if markers:
        tokenizer.add_special_tokens(["[QueryMarker]", "[DocumentMarker]"])
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def jina_tensors(*, vocabulary: int, hidden: int, layers: int, inner: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random backbone tensors under the keys of jinaai/jina-colbert-v2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors = {
        "roberta.embeddings.word_embeddings.weight": draw(vocabulary, hidden, scale=1.0),
        "roberta.embeddings.token_type_embeddings.weight": draw(1, hidden),
        "roberta.emb_ln.weight": 1 + draw(hidden),
        "roberta.emb_ln.bias": draw(hidden),
        "roberta.pooler.dense.weight": draw(hidden, hidden),
        "roberta.pooler.dense.bias": draw(hidden),
    }
    for layer in range(layers):
        prefix = f"roberta.encoder.layers.{layer}."
        for name, rows, columns in (
            ("mixer.Wqkv", 3 * hidden, hidden),
            ("mixer.out_proj", hidden, hidden),
            ("mlp.fc1", inner, hidden),
            ("mlp.fc2", hidden, inner),
        ):
            tensors[f"{prefix}{name}.weight"] = draw(rows, columns)
            tensors[f"{prefix}{name}.bias"] = draw(rows)
        for name in ("norm1", "norm2"):
            tensors[f"{prefix}{name}.weight"] = 1 + draw(hidden)
            tensors[f"{prefix}{name}.bias"] = draw(hidden)
    return tensors


def jina_config(*, vocabulary: int, hidden: int, layers: int, heads: int, inner: int) -> dict[str, object]:
    """Return a config.json as that repository has it: it calls itself xlm-roberta."""
    return {
        "architectures": ["ColBERT"],
        "model_type": "xlm-roberta",
        "position_embedding_type": "rotary",
        "rotary_emb_base": 10000.0,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 8194,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def write_jina_checkpoint(
    folder: Path,
    *,
    dim: int,
    seed: int = 0,
    head_seed: int | None = None,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    markers: bool = True,
) -> Path:
    """Write one repository: config.json, tokenizer.json, model.safetensors with backbone, pooler and head."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_xlmr_tokenizer(folder / "tokenizer.json", markers=markers)
    sizes = {"vocabulary": vocabulary, "hidden": hidden, "layers": layers, "inner": 2 * hidden}
    tensors = jina_tensors(**sizes, seed=seed)
    generator = torch.Generator().manual_seed(dim if head_seed is None else head_seed)
    tensors["linear.weight"] = torch.randn(dim, hidden, generator=generator)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(jina_config(**sizes, heads=heads)), encoding="utf-8")
    return folder
