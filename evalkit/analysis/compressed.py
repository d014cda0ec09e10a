"""Smaller forms of stored document vectors: fewer bits for each value, and fewer vectors for each document.

Shapes: T vectors of a document, P protected ones among them, K clusters of the others, X vectors of several documents,
D dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

Width: TypeAlias = Literal["float32", "float16", "int8", "int4", "binary"]
"""How a value of a document vector is stored; query vectors keep their dtype."""
WIDTHS: tuple[Width, ...] = get_args(Width)
FACTORS = (1, 2, 3, 4)
"""Pooling factors: a document keeps about 1/factor of its vectors. 1 means no pooling."""
PROTECTED = 1
"""The number of first vectors of a document that pooling does not change, in PyLate and in sentence-transformers."""
SCALE_BYTES = 2
"""Each int8 or int4 vector has its own scale, one fp16 number."""
LEVELS = {"int8": 127, "int4": 7}
"""The largest code of a value; codes are symmetric about 0."""


def bytes_per_vector(dim: int, width: Width) -> int:
    """Return the bytes of one stored vector, its scale included.

    >>> [bytes_per_vector(128, width) for width in WIDTHS]
    [512, 256, 130, 66, 16]
    """
    if width in LEVELS:
        return math.ceil(dim * (8 if width == "int8" else 4) / 8) + SCALE_BYTES
    return math.ceil(dim * {"float32": 32, "float16": 16, "binary": 1}[width] / 8)


def narrowed(vectors_XD: Tensor, width: Width) -> Tensor:
    """Return vectors [X, D] after a round trip through storage of a width: fp16 for float16, otherwise fp32.

    int8 and int4 have one scale per vector: its greatest absolute value divided by 127 or 7. binary keeps the signs (0
    counts as negative, as in sentence-transformers' `quantize_embeddings`) and reads them back as a vector of norm 1.

    >>> [round(value, 2) for value in narrowed(torch.tensor([[1.0, -0.5, 0.0]]), "int8")[0].tolist()]
    [1.0, -0.5, 0.0]
    >>> narrowed(torch.tensor([[0.9, -0.1, 0.3, 0.0]]), "binary")[0].tolist()
    [0.5, -0.5, 0.5, -0.5]
    """
    if width == "float32":
        return vectors_XD.float()
    if width == "float16":
        return vectors_XD.half()
    if width == "binary":
        one = 1 / math.sqrt(vectors_XD.shape[1])
        return torch.where(vectors_XD > 0, one, -one)
    most = LEVELS[width]
    rows_XD = vectors_XD.float()
    scale_X1 = (rows_XD.abs().amax(dim=1, keepdim=True) / most).clamp_min(torch.finfo(torch.float16).tiny)
    code_XD = (rows_XD / scale_X1).round().clamp(-most, most).to(torch.int8)
    return code_XD.float() * scale_X1.half().float()


def pooled_count(vectors: int, factor: int) -> int:
    """Return the number of a document's vectors after pooling: the protected ones, and 1/`factor` of the others.

    If clusters are equally far apart, `pooled` can return fewer.

    >>> [pooled_count(11, factor) for factor in FACTORS], pooled_count(1, 4), pooled_count(3, 4)
    ([11, 6, 4, 3], 1, 2)
    """
    rest = vectors - PROTECTED
    return vectors if rest < 1 else PROTECTED + max(rest // factor, 1)


def pooled(rows_TD: Tensor, factors: Sequence[int], *, normalized: bool = False) -> list[Tensor]:
    """Return a document's vectors [T, D] after hierarchical token pooling, one tensor for each factor, in fp32.

    The algorithm is PyLate's `pool_embeddings_hierarchical` and sentence-transformers' `HierarchicalTokenPooling`:
    Ward linkage on cosine distances, cut into T // factor clusters, each replaced by its mean; the first vector is
    protected. PyLate keeps the mean as it is; `normalized` gives every vector norm 1 again, as sentence-transformers
    does by default. The tree is computed once for all factors.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    rows_TD = rows_TD.float()
    protected_PD, rest_TD = rows_TD[:PROTECTED], rows_TD[PROTECTED:]
    tree: np.ndarray | None = None
    found = []
    for factor in factors:
        clusters, kept_TD = pooled_count(len(rows_TD), factor) - PROTECTED, rows_TD
        if 0 < clusters < len(rest_TD):
            if tree is None:
                distance_TT = (1 - rest_TD @ rest_TD.T).clamp(0, 2).numpy()
                tree = hierarchy.linkage(squareform(distance_TT, checks=False), method="ward")
            labels = hierarchy.fcluster(tree, t=clusters, criterion="maxclust")
            _, cluster_T = np.unique(labels, return_inverse=True)
            size_K = torch.from_numpy(np.bincount(cluster_T))
            sum_KD = torch.zeros(len(size_K), rows_TD.shape[1]).index_add_(0, torch.from_numpy(cluster_T), rest_TD)
            kept_TD = torch.cat([protected_PD, sum_KD / size_K.unsqueeze(1)])
        found.append(torch.nn.functional.normalize(kept_TD, dim=1) if normalized else kept_TD)
    return found
