"""Token pooling against the libraries that have it: PyLate's own figures, and sentence-transformers' module."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.analysis.compressed import FACTORS, pooled, pooled_count

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "parity" / "pylate_pooling.npz")
"""Made by scripts/parity_pylate_pooling.py."""
DOCUMENTS = [torch.from_numpy(FIGURES[f"document_{place}"]) for place in range(5)]


def test_pooling_gives_pylates_vectors():
    assert json.loads(FIGURES["facts"].tobytes())["pylate"] == "1.6.0"
    for place, document in enumerate(DOCUMENTS):
        for factor, vectors in zip(FACTORS, pooled(document, FACTORS), strict=True):
            wanted = FIGURES[f"pooled_{place}_{factor}"]
            assert len(vectors) == len(wanted) == pooled_count(len(document), factor)
            np.testing.assert_allclose(vectors.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_pooling_gives_sentence_transformers_vectors(normalized):
    from sentence_transformers.multi_vector_encoder.modules.token_pooling import HierarchicalTokenPooling

    for factor in FACTORS:
        module = HierarchicalTokenPooling(factor, normalize_embeddings=normalized)
        for document, wanted in zip(DOCUMENTS, module.pool(DOCUMENTS), strict=True):
            (vectors,) = pooled(document, [factor], normalized=normalized)
            torch.testing.assert_close(vectors, wanted, atol=1e-6, rtol=0)
