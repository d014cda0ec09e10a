"""MaxSim by its definition, for one query and one document, in float64: every kernel is tested against it.

Shapes: L query vectors, T document vectors, D dim.
"""

from __future__ import annotations

from torch import Tensor


def maxsim(query_LD: Tensor, document_TD: Tensor) -> float:
    """Return the sum, over query vectors, of each one's largest dot product with any document vector.

    >>> import torch
    >>> maxsim(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.75]]))
    1.75
    """
    return float((query_LD.double() @ document_TD.double().T).amax(1).sum())
