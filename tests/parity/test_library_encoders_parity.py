"""evalkit's encoder against the vectors that Stanford ColBERT and PyLate made of the same BERT weights.

The fixtures are written by scripts/parity_stanford.py and scripts/parity_pylate.py, each in its own environment.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_checkpoint import DIM, DOCUMENT_TOKENS, TEXTS, write_checkpoint
from peers.checkpoints import QUERY_TOKENS
from shared_material import minilm

from evalkit.config.compose import compose
from evalkit.models.encoder import checkpoints, load_encoders

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    minilm()
    return write_checkpoint(tmp_path_factory.mktemp("parity"))


def encoder_of(folder, skiplist):
    config = compose(
        [
            "model=colbertv2",
            f"model.checkpoints={{{DIM}: {{path: '{folder}'}}}}",
            f"model.query.max_tokens={QUERY_TOKENS}",
            f"model.document.max_tokens={DOCUMENT_TOKENS}",
            f"model.skiplist={skiplist}",
        ]
    ).model
    config = type(config)(**{**vars(config), "checkpoints": {str(DIM): config.checkpoints[str(DIM)]}})
    (encoder,) = load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))
    return encoder


@pytest.mark.parametrize("library", ["stanford", "pylate"])
def test_vectors_equal_those_of_the_library(folder, library):
    theirs = np.load(FIXTURES / f"{library}.npz")
    encoder = encoder_of(folder, library)
    worst = 0.0
    for side, texts, documents in (
        ("query", encoder.tokenize_queries(TEXTS), False),
        ("document", encoder.tokenize_documents(TEXTS), True),
    ):
        vectors, counts = encoder.vectors(encoder.batch(texts, skip_punctuation=documents))[DIM]
        for place, ours in enumerate(vectors.split(counts.tolist())):
            wanted = torch.from_numpy(theirs[f"{side}_{place}"])
            assert ours.shape == wanted.shape, (side, TEXTS[place])
            worst = max(worst, float((ours - wanted).abs().max()))
    print(f"max |Δ| against {', '.join(theirs['made_with'])}: {worst:.2e}")
    assert worst < 1e-5


def test_token_ids_equal_stanfords(folder):
    theirs = np.load(FIXTURES / "stanford.npz")
    encoder = encoder_of(folder, "stanford")
    for side, texts in (("query", encoder.tokenize_queries(TEXTS)), ("document", encoder.tokenize_documents(TEXTS))):
        assert [text.ids for text in texts] == [theirs[f"{side}_ids_{place}"].tolist() for place in range(len(TEXTS))]
