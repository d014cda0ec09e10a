"""The GPU bench runs on any machine at toy sizes, so that the one command works when there is a GPU."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton_interpreter
from checkpoints import write_bert_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "gpu"


@pytest.fixture(autouse=True)
def beside_the_sections(monkeypatch):
    """Sections are scripts beside each other, of one thread where Triton's kernels are interpreted."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(ROOT)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(script, *words):
    """Run a script in this process, which has imported torch; return its exit code."""
    before, sys.argv = sys.argv, [str(script), *map(str, words)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    finally:
        sys.argv = before
    return 0


def process(*words):
    """Run a script as a process, without what conftest.py sets for Triton."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "TRITON_INTERPRET": ""}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def figures_of(section, out, *, budget_s=900):
    assert run(FOLDER / f"{section}.py", "--smoke", "--out", out, "--budget-s", budget_s) == 0
    return json.loads((out / f"{section}.json").read_text())


@pytest.mark.parametrize(
    ("section", "groups"),
    [
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


def test_a_section_that_is_a_process_asks_for_the_interpreter_itself(tmp_path):
    done = process(FOLDER / "ceilings.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "ceilings.json").read_text())
    assert figures["ceilings"].keys() == {
        "bfloat16 GEMM TFLOP/s",
        "float16 GEMM TFLOP/s",
        "copy GB/s, read and written",
    }
    assert figures["paths"]["MaxSim at 96 numbers"] == "Triton's kernel"


def test_what_does_not_fit_the_budget_is_listed_and_the_summary_says_so(tmp_path):
    figures = figures_of("search", tmp_path, budget_s=0)
    assert "search d=128 Ld=ragged, 8 queries" in figures["left out"]
    assert run(FOLDER / "summary.py", "--card", tmp_path) == 0
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
    assert run(script, "--smoke", "--out", tmp_path) == 1
    figures = json.loads((tmp_path / "broken.json").read_text())
    assert figures["group"] == {
        "one, failed": "ValueError: it has no head",
        "two": 2,
        "three, failed": "RuntimeError: CUDA error: an illegal memory access was encountered",
    }


def test_the_hosts_share_is_measured_without_a_model_or_a_kernel(tmp_path):
    out = tmp_path / "share.json"
    assert run(ROOT / "scripts" / "bench_host_share.py", "--out", out, "--tokens", 2000, "--queries", 8) == 0
    (shard,) = json.loads(out.read_text())["shards"]
    assert shard["documents"] == 2000 // 85
    parts = ("encode host s", "first shard, search host s", "later shard, search host s", "first shard, merge s")
    assert all(shard[part] >= 0 for part in parts)


def test_what_the_metrics_need_is_compiled_before_the_runs(capsys):
    assert run(FOLDER / "runs.py", "--warm") == 0
    assert "'ndcg@10': 0.8" in capsys.readouterr().out  # of two queries, one has its document second


def test_weights_travel_without_the_rows_that_no_text_needs_and_arrive_whole(tmp_path):
    words, folder = "embeddings.word_embeddings.weight", tmp_path / "minilm"
    folder.mkdir()
    packed = {words: torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half(), "other": torch.ones(1)}
    save_file({**packed, "rows": torch.tensor([1, 3]), "count": torch.tensor([5])}, folder / "packed.safetensors")
    assert run(FOLDER / "carry.py", "--unpack", "--into", tmp_path) == 0
    whole = load_file(folder / "model.safetensors")
    assert sorted(whole) == [words, "other"]
    assert whole[words].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0]]


def test_rows_are_those_of_whole_texts_whatever_the_tokenizer_cuts_at(tmp_path):
    write_bert_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    found = runpy.run_path(str(FOLDER / "carry.py"))["ids_of"](tokenizer, ["hello world the", "a"])
    words = ["hello", "world", "the", "a", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert found == set(map(tokenizer.token_to_id, words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_it_wants():
    done = process(FOLDER / "ceilings.py")
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
    assert run(FOLDER / "summary.py", tmp_path) == 0
    targets = json.loads((tmp_path / "summary.json").read_text())["targets"]
    assert targets["search d=128 TFLOP/s, 256 queries"]["measured"] == {"d=128 Ld=80 Q=256": 360.0}
    assert targets["search times late-interaction-kernels"]["measured"]["d=96 Ld=80 Q=256, padded"] == 2.5
    assert targets["search d=96 time over d=128's, at most"]["measured"] == {"d=96 Ld=80 Q=256": 0.75}
    assert targets["encoding tokens/s"]["measured"] == 760_000
    assert targets["encoding times padded arrival order"]["measured"] == 3.1
    assert targets["GPU busy share"]["measured"] == 0.93
    assert targets["three dims over one, at most"]["measured"] is None


STUB = """#!/usr/bin/env bash
case "$*" in
    *numpy*|*xdist*) exit 1 ;;
    *ceilings.py*|*encoding.py*|*search.py*|*fused.py*|*"runs.py --out"*|*summary.py*)
        [[ "$*" = *runs.py* ]] && touch "$OUT_FOLDER/runs.log"
        name=$(basename "${1%.py}"); echo {} > "$OUT_FOLDER/$name.json"; echo "did $name" ;;
    *"-m pytest"*) echo "did tests" ;;
esac
[[ "$*" != *search.py* ]]
"""


def test_one_command_does_every_step_whichever_fails_and_leaves_as_many_files_as_a_machine_sends_back(tmp_path):
    stub, out = tmp_path / "python", tmp_path / "out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {"PYTHON": str(stub), "SITE": str(tmp_path / "site"), "OUT_FOLDER": str(out), "REHEARSE": "1"}
    done = subprocess.run(
        ["bash", FOLDER / "prove.sh", out],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = (out / "log.txt").read_text()
    assert done.returncode == 1
    steps = ["ceilings", "tests", "runs", "encoding", "search", "fused", "summary"]
    assert [line[4:] for line in said.splitlines() if line.startswith("did ")] == steps
    assert "==== 1 steps failed" in said
    assert said.strip().endswith("s: c: search")
    kept = {"log.txt", "runs.log", *(f"{step}.json" for step in steps if step != "tests")}
    assert {path.name for path in out.rglob("*")} == kept
    assert len(kept) <= 8


def test_triton_36s_interpreter_reads_a_loops_bounds_from_an_array_of_one(monkeypatch):
    class Number:
        handle = SimpleNamespace(data=np.array([3]))

    def patch(tensor, scope):
        scope.set_attr(tensor, "__index__", lambda self: int(np.array([[0, 1]])))

    interpreter = SimpleNamespace(_patch_lang_tensor=patch)
    monkeypatch.setattr(triton.runtime, "interpreter", interpreter, raising=False)
    monkeypatch.setitem(sys.modules, "triton.runtime.interpreter", interpreter)
    for version, mended in (("3.7.1", False), ("3.6.0", True)):
        monkeypatch.setattr(triton_interpreter.metadata, "version", lambda _name, version=version: version)
        triton_interpreter.mend()
        interpreter._patch_lang_tensor(Number, SimpleNamespace(set_attr=setattr))
        if mended:
            assert list(range(Number())) == [0, 1, 2]
        else:
            with pytest.raises(TypeError):
                range(Number())
