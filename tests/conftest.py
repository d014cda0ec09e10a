"""What holds for every test."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import triton_interpreter

# Without a GPU, Triton interprets its kernels. It reads this switch when it is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        triton_interpreter.mend()


@pytest.fixture(autouse=True)
def _forget_the_loaded_model():
    """`evalkit run` keeps its model for the next cell of a sweep; no test may get another test's model."""
    yield
    if loaded := sys.modules.get("evalkit.run.loaded"):
        loaded._held = None
