"""The GPU benchmark runs on any machine at toy sizes, so that the one command works when there is a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
LEAN = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set(sys.argv[1:]):
            raise ModuleNotFoundError(f"No module named {name!r}: not among the benchmark's packages")
sys.meta_path.insert(0, Refused())
import evalkit.run.encode, evalkit.maxsim.choice, evalkit.kernels.gpu.tensor_core
import evalkit.models.attention, evalkit.run.search
"""


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_section_runs_at_toy_sizes_and_no_check_fails(tmp_path):
    done = run("scripts/bench_gpu.py", "--smoke", OUT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["summary"]["checks that failed"] == []
    assert "errors" not in figures
    assert "left out" not in figures
    assert {"correctness", "ceilings", "encoding", "search d=96 Ld=ragged", "search end to end"} <= figures.keys()
    assert (tmp_path / "gpu.png").stat().st_size > 10_000


def test_what_does_not_fit_the_budget_is_listed(tmp_path):
    done = run("scripts/bench_gpu.py", "--smoke", "--budget-s", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["left out"] == [f"section {name}" for name in ("correctness", "ceilings", "search", "encoding")]
    assert figures["summary"]["targets"]["encoding tokens/s"] == {"wanted": 750_000, "measured": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_it_wants():
    done = run("scripts/bench_gpu.py")
    assert done.returncode == 1
    assert "no CUDA device is here; wanted one, or --smoke" in done.stderr


def test_what_it_imports_needs_none_of_the_other_dependencies():
    others = ["hydra", "omegaconf", "ranx", "pandas", "scipy", "datasets", "pyarrow", "ir_datasets"]
    others += ["xxhash", "typer", "rich", "jinja2", "regex", "matplotlib"]
    done = run("-c", LEAN, *others)
    assert done.returncode == 0, done.stderr
