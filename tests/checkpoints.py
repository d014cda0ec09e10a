"""Small random checkpoints in exactly the layouts of the real repositories."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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
    """Return the config.json of jinaai/jina-colbert-v2, whose model_type is xlm-roberta."""
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


REVISION = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"hidden": 24, "layers": 2, "inner": 48}
HEADS = 3
"""Not a power of two, so that ALiBi's rule for such head counts is tested."""


class Draw:
    """Random tensors in a fixed order from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def linear(self, name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str, size: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + self(size), f"{name}.bias": self(size)}


def write_bert_tokenizer(path: Path) -> int:
    """Write a BERT-like tokenizer.json with [PAD], ColBERT's unused tokens as markers, and words; return its size."""
    words = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "!"]
    words += ["hello", "world", "the", *"abcdefg", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(path))
    return tokenizer.get_vocab_size()


def bert_config(model_type: str, vocabulary: int, **more: object) -> dict[str, object]:
    """Return a config.json of BERT's family."""
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": SIZES["hidden"],
        "num_hidden_layers": SIZES["layers"],
        "num_attention_heads": HEADS,
        "intermediate_size": SIZES["inner"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 400,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        **more,
    }


def embedding_tensors(
    draw: Draw, prefix: str, vocabulary: int, *, positions: int, types: int
) -> dict[str, torch.Tensor]:
    """Return the embedding layer of BERT's family; `positions` 0 leaves absolute positions out."""
    hidden = SIZES["hidden"]
    tensors = {
        f"{prefix}embeddings.word_embeddings.weight": draw(vocabulary, hidden, scale=1.0),
        f"{prefix}embeddings.token_type_embeddings.weight": draw(types, hidden),
        **draw.norm(f"{prefix}embeddings.LayerNorm", hidden),
    }
    if positions:
        tensors[f"{prefix}embeddings.position_embeddings.weight"] = draw(positions, hidden)
    return tensors


def attention_tensors(draw: Draw, prefix: str) -> dict[str, torch.Tensor]:
    """Return one layer's attention under BERT's keys."""
    hidden = SIZES["hidden"]
    tensors: dict[str, torch.Tensor] = {}
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        tensors |= draw.linear(f"{prefix}attention.{name}", hidden, hidden)
    return tensors | draw.norm(f"{prefix}attention.output.LayerNorm", hidden)


def bert_tensors(vocabulary: int, *, prefix: str = "bert.", seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under BERT's keys, including the pooler and the constant `position_ids` of old exports."""
    draw, hidden, inner = Draw(seed), SIZES["hidden"], SIZES["inner"]
    tensors = embedding_tensors(draw, prefix, vocabulary, positions=400, types=2)
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(400).unsqueeze(0)
    tensors |= draw.linear(f"{prefix}pooler.dense", hidden, hidden)
    for layer in range(SIZES["layers"]):
        at = f"{prefix}encoder.layer.{layer}."
        tensors |= attention_tensors(draw, at)
        tensors |= draw.linear(f"{at}intermediate.dense", inner, hidden)
        tensors |= draw.linear(f"{at}output.dense", hidden, inner)
        tensors |= draw.norm(f"{at}output.LayerNorm", hidden)
    return tensors


def jina_bert_tensors(vocabulary: int, *, prefix: str = "bert.", seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under the keys of jinaai/jina-bert-implementation."""
    draw, hidden, inner = Draw(seed), SIZES["hidden"], SIZES["inner"]
    tensors = embedding_tensors(draw, prefix, vocabulary, positions=0, types=2)
    tensors |= draw.linear(f"{prefix}pooler.dense", hidden, hidden)
    for layer in range(SIZES["layers"]):
        at = f"{prefix}encoder.layer.{layer}."
        tensors |= attention_tensors(draw, at)
        tensors[f"{at}mlp.gated_layers.weight"] = draw(2 * inner, hidden)
        tensors |= draw.linear(f"{at}mlp.wo", hidden, inner)
        tensors |= draw.norm(f"{at}mlp.layernorm", hidden)
    return tensors


def xmod_tensors(vocabulary: int, languages: tuple[str, ...], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors under the keys of antoinelouis/colbert-xm: XLM-R's, and adapters by language."""
    draw, hidden, inner = Draw(seed), SIZES["hidden"], SIZES["inner"]
    tensors = embedding_tensors(draw, "roberta.", vocabulary, positions=400, types=1)
    tensors |= draw.linear("roberta.pooler.dense", hidden, hidden)
    for layer in range(SIZES["layers"]):
        at = f"roberta.encoder.layer.{layer}."
        tensors |= attention_tensors(draw, at)
        tensors |= draw.linear(f"{at}intermediate.dense", inner, hidden)
        tensors |= draw.linear(f"{at}output.dense", hidden, inner)
        tensors |= draw.norm(f"{at}output.LayerNorm", hidden)
        for language in languages:
            tensors |= draw.linear(f"{at}output.adapter_modules.{language}.dense1", hidden // 2, hidden)
            tensors |= draw.linear(f"{at}output.adapter_modules.{language}.dense2", hidden, hidden // 2)
    return tensors


def head_tensor(dim: int) -> dict[str, torch.Tensor]:
    """Return a head under the key that Stanford ColBERT uses."""
    return {"linear.weight": Draw(dim)(dim, SIZES["hidden"], scale=1.0)}


def write_files(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor], **metadata: object) -> Path:
    """Write config.json, the weights and, for ColBERT's family, artifact.metadata."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    if metadata:
        (folder / "artifact.metadata").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


def write_colbertv2(folder: Path, *, dim: int = 128) -> Path:
    """Write the layout of colbert-ir/colbertv2.0."""
    size = write_bert_tokenizer(folder / "tokenizer.json")
    config = bert_config("bert", size, architectures=["HF_ColBERT"])
    metadata = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 32,
        "doc_maxlen": 300,
        "dim": dim,
        "attend_to_mask_tokens": False,
        "mask_punctuation": True,
        "similarity": "cosine",
    }
    return write_files(folder, config, bert_tensors(size) | head_tensor(dim), **metadata)


def write_jina_colbert_v1(folder: Path, *, dim: int = 128) -> Path:
    """Write the layout of jinaai/jina-colbert-v1-en."""
    size = write_bert_tokenizer(folder / "tokenizer.json")
    more = {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}
    config = bert_config("bert", size, architectures=["HF_ColBERT"], **more)
    metadata = {"query_maxlen": 32, "doc_maxlen": 300, "dim": dim, "attend_to_mask_tokens": False}
    return write_files(folder, config, jina_bert_tensors(size) | head_tensor(dim), **metadata)


def write_jina_embeddings_v2(folder: Path) -> Path:
    """Write the layout of jinaai/jina-embeddings-v2-base-*, saved with its masked-language head."""
    size = write_bert_tokenizer(folder / "tokenizer.json")
    more = {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
    head = Draw(5).linear("cls.predictions.transform.dense", SIZES["hidden"], SIZES["hidden"])
    return write_files(folder, bert_config("bert", size, **more), jina_bert_tensors(size) | head)


def qk_norm_tensors(tensors: dict[str, torch.Tensor], *, outer_norms: bool) -> dict[str, torch.Tensor]:
    """Return JinaBERT's tensors with normalised queries and keys; with outer norms under the newer code's names."""
    draw, hidden = Draw(21), SIZES["hidden"]
    changed = dict(tensors)
    for layer in range(SIZES["layers"]):
        at = f"bert.encoder.layer.{layer}."
        for side in "qk":
            changed |= draw.norm(f"{at}attention.self.layer_norm_{side}", hidden)
        if outer_norms:
            changed[f"{at}mlp.up_gated_layer.weight"] = changed.pop(f"{at}mlp.gated_layers.weight")
            for part in ("weight", "bias"):
                changed[f"{at}mlp.down_layer.{part}"] = changed.pop(f"{at}mlp.wo.{part}")
                changed[f"{at}layer_norm_2.{part}"] = changed.pop(f"{at}mlp.layernorm.{part}")
            changed |= draw.norm(f"{at}layer_norm_1", hidden)
    return changed


def write_qk_norm(folder: Path, *, outer_norms: bool) -> Path:
    """Write the layout of jina-embeddings-v2-base-* with normalised queries and keys, with or without outer norms."""
    size = write_bert_tokenizer(folder / "tokenizer.json")
    more = {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "emb_pooler": "mean"}
    tensors = qk_norm_tensors(jina_bert_tensors(size), outer_norms=outer_norms)
    return write_files(folder, bert_config("bert", size, **more), tensors)


CLIP_HIDDEN = 192
"""Three heads of 64, the width that the loader knows jina-clip-v1's text tower by."""


def write_jina_clip(folder: Path, **text_config: object) -> Path:
    """Write the layout of jinaai/jina-clip-v1: the text tower under flash-attention's names, and another tower."""
    size, hidden, inner, draw = write_bert_tokenizer(folder / "tokenizer.json"), CLIP_HIDDEN, 96, Draw(8)
    at = "text_model.transformer."
    tensors = {
        f"{at}embeddings.word_embeddings.weight": draw(size, hidden, scale=1.0),
        f"{at}embeddings.token_type_embeddings.weight": draw(2, hidden),
        **draw.norm(f"{at}emb_ln", hidden),
        **draw.linear("vision_model.patch_embed.proj", 4, 4),
        "logit_scale": torch.tensor(2.6),
    }
    for layer in range(SIZES["layers"]):
        block = f"{at}encoder.layers.{layer}."
        for name, rows in (("mixer.Wqkv", 3 * hidden), ("mixer.out_proj", hidden)):
            tensors[f"{block}{name}.weight"] = draw(rows, hidden, scale=0.1)
            tensors[f"{block}{name}.bias"] = draw(rows)
        tensors[f"{block}mlp.gated_layers.weight"] = draw(2 * inner, hidden, scale=0.1)
        tensors |= draw.linear(f"{block}mlp.wo", hidden, inner)
        for name in ("norm1", "norm2"):
            tensors |= draw.norm(f"{block}{name}", hidden)
    text = {"embed_dim": hidden, "pooler_type": "mean_pooler", "proj_type": None, **text_config}
    return write_files(folder, {"model_type": "jina_clip", "add_projections": False, "text_config": text}, tensors)


def write_colbert_xm(folder: Path, *, dim: int = 128, languages: tuple[str, ...] = ("en_XX", "de_DE")) -> Path:
    """Write the layout of antoinelouis/colbert-xm, whose tokenizer has no marker tokens."""
    size = write_xlmr_tokenizer(folder / "tokenizer.json", markers=False)
    more = {
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "languages": list(languages),
        "default_language": "en_XX",
        "pre_norm": False,
        "adapter_reduction_factor": 2,
        "adapter_layer_norm": False,
        "adapter_reuse_layer_norm": True,
        "ln_before_adapter": True,
    }
    config = bert_config("xmod", size, architectures=["HF_ColBERT"], **more)
    metadata = {"query_maxlen": 32, "doc_maxlen": 256, "dim": dim, "attend_to_mask_tokens": True}
    return write_files(folder, config, xmod_tensors(size, languages) | head_tensor(dim), **metadata)


def write_mdpr(folder: Path) -> Path:
    """Write the layout of castorini/mdpr-tied-pft-msmarco: BERT without a prefix, its weights a pickle file."""
    size = write_bert_tokenizer(folder / "tokenizer.json")
    write_files(folder, bert_config("bert", size), tensors := bert_tensors(size, prefix=""))
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def write_jina_reranker(folder: Path) -> Path:
    """Write the layout of jinaai/jina-reranker-v2-base-multilingual: XLM-R under flash-attention's names."""
    folder.mkdir(parents=True, exist_ok=True)
    size = write_xlmr_tokenizer(folder / "tokenizer.json", markers=False)
    hidden, draw = SIZES["hidden"], Draw(11)
    tensors = jina_tensors(vocabulary=size, **SIZES, seed=3)
    tensors = {name: tensor for name, tensor in tensors.items() if ".pooler." not in name}
    tensors["roberta.embeddings.position_embeddings.weight"] = draw(140, hidden)
    tensors |= draw.linear("classifier.dense", hidden, hidden) | draw.linear("classifier.out_proj", 1, hidden)
    more = {"pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 140, "layer_norm_eps": 1e-5}
    return write_files(folder, bert_config("xlm-roberta", size, **more), tensors)


def publish(cache: Path, repo: str, write: Callable[[Path], object], *, revision: str = REVISION) -> Path:
    """Write a repository to a Hugging Face cache as a download does: refs, blobs, and a snapshot of links to them."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot, blobs, refs = root / "snapshots" / revision, root / "blobs", root / "refs"
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True, exist_ok=True)
    write(snapshot)
    for path in list(snapshot.iterdir()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / blob.name)
    (refs / "main").write_text(revision, encoding="utf-8")
    return snapshot


DIM = 16
"""The dim of the late-interaction models in `FAMILIES`; the others have their hidden size."""
FAMILIES: Mapping[str, Callable[[Path], Path]] = {
    "jina-colbert-v2": lambda folder: write_jina_checkpoint(folder, dim=DIM),
    "jina-colbert-v1-en": lambda folder: write_jina_colbert_v1(folder, dim=DIM),
    "colbertv2": lambda folder: write_colbertv2(folder, dim=DIM),
    "colbert-xm": lambda folder: write_colbert_xm(folder, dim=DIM),
    "mdpr": write_mdpr,
    "jina-embeddings-v2-base-en": write_jina_embeddings_v2,
}
"""Functions that write a small checkpoint of each architecture, by the configured model that reads it."""
