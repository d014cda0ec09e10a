"""What holds for every test."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import triton_interpreter

STARTS_RAY = {"test_ray_engine.py", "test_ray_signals.py", "test_slurm_script.py"}

# Workers of pytest-xdist share the machine: each of them, and what it starts, computes with one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton interprets its kernels. It reads this switch when it is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        triton_interpreter.mend()


def pytest_collection_modifyitems(items):
    """Keep a file's tests in one worker, for they share fixtures, and all tests that start Ray in one other."""
    for item in items:
        file = Path(item.fspath).name
        item.add_marker(pytest.mark.xdist_group("ray" if file in STARTS_RAY else item.nodeid.split("::")[0]))


@pytest.fixture(autouse=True)
def _forget_the_loaded_model():
    """`evalkit run` keeps its model for the next cell of a sweep; no test may get another test's model."""
    yield
    if loaded := sys.modules.get("evalkit.run.loaded"):
        loaded._held = None
