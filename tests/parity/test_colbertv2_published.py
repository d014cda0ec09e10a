"""ColBERTv2.0's own weights, where they are in the Hub's cache, against figures that others measured with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from shared_material import SHARED

from evalkit.config.compose import compose
from evalkit.config.settings import EncoderConfig
from evalkit.maxsim.reference import maxsim
from evalkit.models.checkpoint import on_disk
from evalkit.models.encoder import Encoder, checkpoints, load_encoders
from evalkit.run import published_vectors
from evalkit.run.finding import vectors_of


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = compose(["model=colbertv2", "model.dtype=float32"]).model
    assert isinstance(config, EncoderConfig)
    if not on_disk(config.checkpoints["128"]):
        pytest.skip("colbert-ir/colbertv2.0 is not on disk: evalkit fetch model=colbertv2")
    (loaded,) = load_encoders(config, checkpoints(config, [128]), device=torch.device("cpu"))
    return loaded


def test_hello_world_has_the_published_vectors(encoder: Encoder) -> None:
    (published,) = (one for one in published_vectors.packaged() if one.model == "colbertv2")
    assert published_vectors.deviation(encoder, published) <= published.atol


def test_one_query_scores_four_sentences_as_pylate_does(encoder: Encoder) -> None:
    path = SHARED / "reference" / "colbertv2_red_planet.json"
    if not path.is_file():
        pytest.skip(f"the sentences are not here ({path}); set EVALKIT_SHARED to the folder that holds reference/")
    wanted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    queries, documents = encoder.tokenize_queries([wanted["query"]]), encoder.tokenize_documents(wanted["documents"])
    (query_LD,) = vectors_of(encoder, queries, documents=False)[128]
    found = [
        float(maxsim(query_LD, document_TD)) for document_TD in vectors_of(encoder, documents, documents=True)[128]
    ]
    assert found == pytest.approx(wanted["maxsim"], rel=1e-3, abs=1e-3)
