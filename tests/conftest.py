"""Settings and fixtures of all tests."""

import fcntl
import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import triton_interpreter

STARTS_RAY = {"test_ray_engine.py", "test_ray_signals.py", "test_slurm_script.py"}

# Workers of pytest-xdist share the machine, so they and their child processes compute with one thread.
# xdist also passes them the size of a terminal, though their output is no terminal.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for size in ("COLUMNS", "LINES"):
        os.environ.pop(size, None)

# A shell ignores SIGINT in what it starts in the background, and every child process of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where nothing but the temporary folder can be written: ir_datasets and Triton keep their files there, hypothesis none.
if not os.access(Path("~").expanduser(), os.W_OK):
    elsewhere = Path(tempfile.gettempdir()) / f"evalkit-tests-{os.getuid()}"
    os.environ.setdefault("IR_DATASETS_HOME", str(elsewhere / "ir_datasets"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(elsewhere / "triton"))
if not os.access(Path(__file__).parents[1], os.W_OK):
    hypothesis.settings.register_profile("nothing-written", database=None)
    hypothesis.settings.load_profile("nothing-written")

# Without a GPU, Triton interprets its kernels. It reads this variable when it is first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        triton_interpreter.mend()


@pytest.fixture(scope="module", autouse=True)
def _one_file_at_a_time_starts_ray(request):
    """Ray's tests count shared memory and processes, so workers of pytest-xdist must not run them at the same time."""
    if Path(request.node.fspath).name not in STARTS_RAY:
        yield
        return
    with (Path(tempfile.gettempdir()) / f"evalkit-tests-ray-{os.getuid()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def _forget_the_loaded_model():
    """`evalkit run` keeps its model for the next cell of a sweep; a test must not get another test's model."""
    yield
    if loaded := sys.modules.get("evalkit.run.loaded"):
        loaded._held = None
