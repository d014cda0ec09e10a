"""The wheel carries everything: installed away from the checkout, it runs from any folder."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_installed_wheel_runs_the_demo_from_any_folder(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True,
        timeout=600,
    )
    (wheel,) = tmp_path.glob("evalkit-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, timeout=600)
    # The dependencies are borrowed: a path in a .pth file is searched, but the editable install's own .pth is not read.
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = [python, "-c", "import evalkit; print(evalkit.__file__)"]
    imported = subprocess.run(where, cwd=elsewhere, check=True, capture_output=True, text=True, timeout=600).stdout
    assert str(ROOT) not in imported.replace(str(tmp_path), "")
    words = ["dataset.demo.documents=200", "dataset.demo.queries=20", f"cache_dir={tmp_path}/cache"]
    command = [tmp_path / "env" / "bin" / "evalkit", "run", *words]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    scores = [json.loads(path.read_text("utf-8")) for path in (elsewhere / "results" / "runs").glob("*/scores.json")]
    assert sorted(cell["dim"] for cell in scores) == [64, 96, 128]
    listed = subprocess.run(  # noqa: PLW1510 (what it prints is asserted)
        [tmp_path / "env" / "bin" / "evalkit", "ls", "datasets"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "miracl/sw" in listed.stdout
