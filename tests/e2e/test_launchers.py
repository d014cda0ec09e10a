"""Sweeps under Hydra's launchers: each combination in a process of its own, one table at the end, failures named."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra evalkit[joblib] is not installed")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra evalkit[slurm] is not installed")

SWEEP = ["model=bm25,bm25s", "dataset.demo.documents=60", "dataset.demo.queries=8"]


def evalkit(folder, *words, **variables):
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache"]
    command = [sys.executable, "-m", "evalkit", "run", *words, *places]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_under_a_launcher_ends_in_one_table(tmp_path, launcher):
    done = evalkit(tmp_path, "-m", *SWEEP, f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    assert lines == [["bm25", "–", "demo"], ["bm25s", "–", "demo"]]
    assert len(list((tmp_path / "results" / "runs").glob("*/scores.json"))) == 2


def test_a_combination_that_fails_in_another_process_is_said_at_once_and_named_at_the_end(tmp_path):
    done = evalkit(tmp_path, "-m", *SWEEP, "search.depth=100,7", "hydra/launcher=joblib")
    assert done.returncode == 1
    problem = "search.depth=7: wanted 100 or more, because recall@100 is reported"
    said = [line.removeprefix("evalkit: ") for line in done.stderr.splitlines() if line.startswith("evalkit: ")]
    assert sorted(said[:2]) == [f"model={model} search.depth=7: {problem}" for model in ("bm25", "bm25s")]
    assert said[2] == (
        "2 of the combinations failed (model=bm25 search.depth=7; model=bm25s search.depth=7); the same command runs "
        "only what is missing"
    )
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["bm25", "bm25s"]


SBATCH = """#!/bin/sh
cp "$1" "{folder}/batch.sh"
for task in 0 1; do
  SLURM_JOB_ID=4$task SLURM_ARRAY_JOB_ID=42 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
  SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=localhost sh "$1" >/dev/null 2>&1 &
done
echo "Submitted batch job 42"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do
  case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""
SACCT = """#!/bin/sh
printf 'JobID|State|NodeList\\n42_0|RUNNING|localhost\\n42_1|RUNNING|localhost\\n'
"""


def test_a_sweep_under_slurm_submits_a_job_for_each_cell(tmp_path):
    """Slurm's commands are played by scripts that run what they are given; the batch file is submitit's own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"sbatch": SBATCH.replace("{folder}", str(tmp_path)), "srun": SRUN, "sacct": SACCT}.items():
        (tools / name).write_text(text)
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpus", "hydra.launcher.gpus_per_node=8"]
    done = evalkit(tmp_path, "-m", *SWEEP, *words, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["bm25", "bm25s"]
    batch = (tmp_path / "batch.sh").read_text().splitlines()
    assert any(line.startswith("#SBATCH --array=0-1") for line in batch)
    for line in ("#SBATCH --partition=gpus", "#SBATCH --gpus-per-node=8"):
        assert line in batch


def test_a_launcher_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    from evalkit.config import compose
    from evalkit.errors import ConfigError

    monkeypatch.setitem(compose.LAUNCHERS, "submitit_slurm", ("hydra_plugins.not_there", "slurm"))
    with pytest.raises(ConfigError) as caught:
        compose.hand_to_hydra(
            ["-m", "hydra/launcher=submitit_slurm"], lambda _: {}, complain=print, make_folder=print, write=print
        )
    assert str(caught.value) == "hydra/launcher=submitit_slurm is not installed; pip install 'evalkit[slurm]'"
    assert list(Path(tmp_path).iterdir()) == []


def test_an_experiment_runs_its_sweeps_one_after_the_other(tmp_path):
    done = evalkit(tmp_path, "-m", "experiment=card", *SWEEP[1:], "model=bm25", "dataset=demo")
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    assert rows == [["bm25", "–", "demo"]]  # of its sweeps some name dims, which BM25 ignores: one cell, said once
