# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["pylate==1.6.0", "torch", "safetensors", "numpy<3"]
# ///
"""Save small random checkpoints with PyLate, and PyLate's vectors of a few texts, as fixtures of a parity test.

The cases differ in what a checkpoint can set: architecture, Dense modules, prefixes, prompts, expansion, skiplist. It
needs its own environment, because PyLate 1.6 pins transformers below 5.4:

    uv run scripts/parity_pylate_layouts.py tests/fixtures/parity/pylate_layouts
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pylate import models
from sentence_transformers.models import Transformer
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as token_models
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedTokenizerFast

TEXTS = [
    "hello world",
    "  the cat, the hat: a (b) [c]; d! e?  ",
    "hello, " * 30,
    "",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def tokenizer(*, first: str | None, last: str, pad: str, mask: str | None, unknown: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words and letters that adds the given first and last token to a text."""
    specials = list(dict.fromkeys(name for name in (first, pad, last, unknown, mask) if name))
    words = [*specials, "hello", "world", "the", "cat", "hat", *LETTERS, *(f"##{letter}" for letter in LETTERS), *SIGNS]
    tokens = Tokenizer(token_models.WordPiece({word: place for place, word in enumerate(words)}, unk_token=unknown))
    tokens.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokens.decoder = decoders.WordPiece()
    tokens.add_special_tokens(specials)
    around = f"{first} $A {last}" if first else f"$A {last}"
    ids = [(name, tokens.token_to_id(name)) for name in (first, last) if name]
    tokens.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    names = {"cls_token": first, "sep_token": last, "eos_token": last, "pad_token": pad, "mask_token": mask}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no annotation here
        tokenizer_object=tokens, unk_token=unknown, **{name: token for name, token in names.items() if token}
    )


BERT = {"first": "[CLS]", "last": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unknown": "[UNK]"}
XLM_R = {"first": "<s>", "last": "</s>", "pad": "<pad>", "mask": "<mask>", "unknown": "<unk>"}
QWEN = {"first": None, "last": "<|endoftext|>", "pad": "<|endoftext|>", "mask": None, "unknown": "<unk>"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
CASES: dict[str, dict[str, Any]] = {
    "modernbert": {
        "tokens": BERT,
        "shape": {**SIZES, "local_attention": 8, "global_attn_every_n_layers": 2},
        "settings": {"embedding_size": 16},
    },
    "bert": {
        "tokens": BERT,
        "shape": SIZES,
        "dense": [(32, 48, True, nn.GELU(), True), (48, 16, True, nn.Identity(), False)],
        "settings": {
            "query_prefix": "[unused0]",
            "document_prefix": "[unused1]",
            "query_length": 20,
            "document_length": 24,
            "attend_to_expansion_tokens": True,
            "skiplist_words": ["hello", ",", "notoken"],
            "prompts": {"query": "the cat: ", "document": "the hat: "},
        },
    },
    "xlm-roberta": {
        "tokens": XLM_R,
        "shape": {**SIZES, "max_position_embeddings": 200},
        "settings": {"embedding_size": 16, "do_query_expansion": False, "query_prefix": "", "document_prefix": ""},
    },
    "qwen3": {
        "tokens": QWEN,
        "shape": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
        "settings": {"embedding_size": 16, "query_length": 12, "document_length": 30},
    },
}


def write_base(folder: Path, kind: str, case: dict[str, Any]) -> None:
    """Write a random model and its tokenizer as transformers saves them."""
    tokens = tokenizer(**case["tokens"])
    ids = {f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in ("pad", "cls", "sep", "eos")}
    ids["bos_token_id"] = ids["cls_token_id"]
    config_class: Any = CONFIG_MAPPING[kind]
    shape = config_class(vocab_size=len(tokens), **case["shape"], **ids)
    torch.manual_seed(len(kind))
    model_class: Any = MODEL_MAPPING[type(shape)]
    model = model_class(shape)
    for name, weight in model.named_parameters():  # with initial weights of .02 all vectors would be similar
        if weight.ndim > 1:
            nn.init.normal_(weight, std=1.0 if "embed" in name else 0.2)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def main(out: Path) -> None:
    """Write every case's checkpoint and vectors, and print the versions of the packages."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("pylate", "transformers", "torch")]
    for kind, case in CASES.items():
        settings = dict(case["settings"])
        with tempfile.TemporaryDirectory() as base:
            write_base(Path(base), kind, case)
            torch.manual_seed(1)
            if "dense" in case:
                layers = [
                    models.Dense(
                        in_features=width_in,
                        out_features=width_out,
                        bias=bias,
                        activation_function=activation,
                        use_residual=residual,
                    )
                    for width_in, width_out, bias, activation, residual in case["dense"]
                ]
                settings["modules"] = [Transformer(base), *layers]
                model = models.ColBERT(device="cpu", **settings)
            else:
                model = models.ColBERT(base, device="cpu", **settings)
            folder = out / kind
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(str(folder), create_model_card=False)
        model = models.ColBERT(str(folder), device="cpu")
        arrays: dict[str, np.ndarray] = {"made_with": np.array(versions)}
        for side in ("query", "document"):
            named = {"prompt_name": side} if model.prompts.get(side) else {}
            vectors = model.encode(TEXTS, is_query=side == "query", show_progress_bar=False, **named)
            arrays |= {f"{side}_{place}": np.asarray(found, dtype=np.float32) for place, found in enumerate(vectors)}
        np.savez_compressed(out / f"{kind}.npz", **arrays)  # type: ignore[arg-type]  # the same stubs as in parity_pylate.py
        print(kind, json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8")))
    print(", ".join(versions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
