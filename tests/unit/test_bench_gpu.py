"""The GPU bench runs on any machine at toy sizes, so that the one command works when there is a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "gpu"


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def figures_of(section, out, *, budget_s=900):
    done = run(FOLDER / f"{section}.py", "--smoke", "--out", out, "--budget-s", budget_s)
    assert done.returncode == 0, done.stderr
    return json.loads((out / f"{section}.json").read_text())


@pytest.mark.parametrize(
    ("section", "groups"),
    [
        ("ceilings", {"paths", "ceilings"}),
        ("encoding", {"encoding"}),
        ("search", {"search d=96 Ld=ragged Q=8", "search d=128 Ld=80 Q=8", "search end to end", "tilings"}),
        ("fused", {"fused"}),
    ],
)
def test_every_section_runs_at_toy_sizes_and_nothing_of_it_fails(section, groups, tmp_path):
    figures = figures_of(section, tmp_path)
    assert groups <= figures.keys()
    assert "errors" not in figures
    assert "left out" not in figures
    text = json.dumps(figures)
    assert '"sound": false' not in text
    assert ", failed" not in text


def test_what_does_not_fit_the_budget_is_listed_and_the_summary_says_so(tmp_path):
    figures = figures_of("search", tmp_path, budget_s=0)
    assert "search d=128 Ld=ragged" in figures["left out"]
    done = run(FOLDER / "summary.py", tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["targets"]["encoding tokens/s"] == {"wanted": 750_000, "measured": None}
    assert "every tiling" in summary["left out"]
    assert (tmp_path / "gpu.png").stat().st_size > 2_000


BROKEN = """
import sys
import torch
from shared import Bench, run_section

def measure(bench):
    with bench.attempt("group", "one"):
        raise ValueError("it has no head")
    bench.record("group", "two", 2)
    with bench.attempt("group", "three"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    bench.record("group", "four", 4)

run_section("broken", measure)
"""


def test_a_configuration_that_fails_loses_no_other_but_a_cuda_error_ends_its_process(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}:{FOLDER}", "TRITON_INTERPRET": "1"}
    done = run(script, "--smoke", "--out", tmp_path, **environment)
    assert done.returncode == 1
    figures = json.loads((tmp_path / "broken.json").read_text())
    assert figures["group"] == {
        "one, failed": "ValueError: it has no head",
        "two": 2,
        "three, failed": "RuntimeError: CUDA error: an illegal memory access was encountered",
    }


def test_weights_travel_without_the_rows_that_no_text_needs_and_arrive_whole(tmp_path):
    words, folder = "embeddings.word_embeddings.weight", tmp_path / "minilm"
    folder.mkdir()
    packed = {words: torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half(), "other": torch.ones(1)}
    save_file({**packed, "rows": torch.tensor([1, 3]), "count": torch.tensor([5])}, folder / "packed.safetensors")
    done = run(FOLDER / "carry.py", "--unpack", "--into", tmp_path)
    assert done.returncode == 0, done.stderr
    whole = load_file(folder / "model.safetensors")
    assert sorted(whole) == [words, "other"]
    assert whole[words].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_it_wants():
    done = run(FOLDER / "ceilings.py")
    assert done.returncode == 1
    assert "no CUDA device is here; wanted one, or --smoke" in done.stderr


def test_targets_are_read_from_what_the_sections_write(tmp_path):
    searches = {
        f"search d={dim} Ld=80 Q=256": {
            "evalkit": {"ms": ms, "TFLOP/s": rate},
            "evalkit is times late-interaction-kernels, padded": 2.5,
        }
        for dim, ms, rate in ((128, 10.0, 360.0), (96, 7.5, 350.0))
    }
    (tmp_path / "search.json").write_text(json.dumps(searches))
    encoding = {"evalkit, 32768 tokens a batch": {"tokens/s": 760_000}, "evalkit is times padded arrival order": 3.1}
    (tmp_path / "encoding.json").write_text(json.dumps({"encoding": encoding}))
    (tmp_path / "fused.json").write_text(json.dumps({"fused": {"GPU busy over four small shards": {"share": 0.93}}}))
    assert run(FOLDER / "summary.py", tmp_path).returncode == 0
    targets = json.loads((tmp_path / "summary.json").read_text())["targets"]
    assert targets["search d=128 TFLOP/s, 256 queries"]["measured"] == {"d=128 Ld=80 Q=256": 360.0}
    assert targets["search times late-interaction-kernels"]["measured"]["d=96 Ld=80 Q=256, padded"] == 2.5
    assert targets["search d=96 time over d=128's, at most"]["measured"] == {"d=96 Ld=80 Q=256": 0.75}
    assert targets["encoding tokens/s"]["measured"] == 760_000
    assert targets["encoding times padded arrival order"]["measured"] == 3.1
    assert targets["GPU busy share"]["measured"] == 0.93
    assert targets["three dims over one, at most"]["measured"] is None
