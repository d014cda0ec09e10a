"""The wheel carries everything: installed away from the checkout, it runs from any folder."""

import ast
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_installed_wheel_runs_the_demo_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it could name the checkout
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
    scores = [
        json.loads(path.read_text("utf-8")) for path in (elsewhere / "evalkit-results" / "runs").glob("*/scores.json")
    ]
    assert sorted(cell["dim"] for cell in scores) == [64, 96, 128]
    listed = subprocess.run(
        [tmp_path / "env" / "bin" / "evalkit", "ls", "datasets"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "miracl/sw" in listed.stdout


def test_every_module_that_the_package_imports_is_declared_and_the_optional_ones_wait_until_they_are_asked_for():
    """The wheel's test borrows its dependencies, so it would not miss one that pyproject.toml forgets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {distribution(line) for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    optional = {distribution(line) for name in extras.keys() - {"dev"} for line in extras[name]}
    imports = {}
    for path in sorted((ROOT / "evalkit").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imports[module] = list(imported(ast.parse(path.read_text("utf-8"))))
    begun = set()  # the modules that are loaded when a verb begins, whatever it finds installed
    waiting = [name for name, _ in imports["evalkit.cli"]]
    while waiting:
        module = waiting.pop()
        if module in imports and module not in begun:
            begun.add(module)
            waiting += [name for name, lazily in imports[module] if not lazily]
    assert {"evalkit.run.pipeline", "evalkit.maxsim.choice", "evalkit.models.attention"} <= begun
    distributions = packages_distributions()
    wrong = []
    for module, found in imports.items():
        for name, lazily in found:
            top = name.partition(".")[0]
            owners = {distribution(owner) for owner in distributions.get(top, [top])}
            if top in sys.stdlib_module_names or top == "evalkit" or owners & declared:
                continue
            if not owners & optional or (module in begun and not lazily):
                wrong.append(f"{module} imports {top} ({', '.join(sorted(owners))})")
    assert wrong == []
    seen = {name.partition(".")[0] for found in imports.values() for name, _ in found}
    assert {"yaml", "markupsafe", "llvmlite", "triton", "flash_attn"} <= seen


def distribution(requirement):
    """Return the normal form of the name that a requirement begins with."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported(tree, *, lazily=False):
    """Yield what a module imports, and whether only when a function of it runs."""
    for node in ast.iter_child_nodes(tree):
        inside = lazily or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module, inside
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield node.args[0].value, inside
        yield from imported(node, lazily=inside)
