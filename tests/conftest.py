"""What holds for every test."""

import fcntl
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
import triton_interpreter

STARTS_RAY = {"test_ray_engine.py", "test_ray_signals.py", "test_slurm_script.py"}

# Workers of pytest-xdist share the machine: each of them, and what it starts, computes with one thread.
# They are given the size of a terminal, which they are not in.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for size in ("COLUMNS", "LINES"):
        os.environ.pop(size, None)

# Without a GPU, Triton interprets its kernels. It reads this switch when it is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        triton_interpreter.mend()


@pytest.fixture(scope="module", autouse=True)
def _one_file_at_a_time_starts_ray(request):
    """Ray's tests look at shared memory and processes: workers of pytest-xdist take turns with them."""
    if Path(request.node.fspath).name not in STARTS_RAY:
        yield
        return
    with (Path(tempfile.gettempdir()) / f"evalkit-tests-ray-{os.getuid()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def _forget_the_loaded_model():
    """`evalkit run` keeps its model for the next cell of a sweep; no test may get another test's model."""
    yield
    if loaded := sys.modules.get("evalkit.run.loaded"):
        loaded._held = None
