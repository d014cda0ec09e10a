"""The batch script of scripts/cluster, with Slurm's commands played by scripts: two nodes of this machine, one run."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra evalkit[ray] is not installed")
pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster" / "evalkit.sbatch"
SIZE = ["model=demo", "dim=64", "dataset.demo.documents=120", "dataset.demo.queries=8", "store.shard_tokens=4000"]
TOOLS = {
    "srun": """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
""",
    "scontrol": "#!/bin/sh\necho one\necho two\n",
    "hostname": "#!/bin/sh\necho 127.0.0.1\n",
    "evalkit": '#!/bin/sh\nexec "{python}" -m evalkit "$@"\n',
}


def test_the_batch_script_runs_a_cell_on_every_node_of_its_allocation(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in TOOLS.items():
        (tools / name).write_text(text.replace("{python}", sys.executable))
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)

    def places(name):
        return [f"results_dir={tmp_path}/{name}/results", f"cache_dir={tmp_path}/{name}/cache"]

    alone = [sys.executable, "-m", "evalkit", "run", *SIZE, *places("alone")]
    subprocess.run(alone, check=True, capture_output=True, timeout=600)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_NODELIST": "[one-two]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *SIZE, *places("slurm")],
        env={**os.environ, **slurm, "PATH": path, "EVALKIT_RAY_PORT": "26379"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wanted,) = (tmp_path / "alone").rglob("run.trec.gz")
    (got,) = (tmp_path / "slurm").rglob("run.trec.gz")
    assert got.read_bytes() == wanted.read_bytes()
    (scores,) = (tmp_path / "slurm").rglob("scores.json")
    assert '"nodes": 2' in scores.read_text(encoding="utf-8")
