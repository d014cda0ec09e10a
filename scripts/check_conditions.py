"""Run the tests under named conditions of the machine; print for each how many passed, failed and were skipped.

    python scripts/check_conditions.py --list
    python scripts/check_conditions.py c-locale no-home              # one after the other
    python scripts/check_conditions.py one-thread+c-locale           # both at once
    python scripts/check_conditions.py numba-off --small             # a few files only
    python scripts/check_conditions.py random-order --tests tests/unit/test_trec.py

The output is a table in Markdown, as in tests/README.md, which also lists how long conditions took (2 to 38 minutes).
Needs the dev extra. `user` needs root, because it runs the tests as nobody, who can write to one temporary folder only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FAST = ("tests/unit", "tests/property", "tests/parity")
SMALL = (
    *("tests/unit/test_trec.py", "tests/unit/test_metrics.py", "tests/unit/test_config.py"),
    *("tests/unit/test_shard_files.py", "tests/unit/test_linear.py"),
    *("tests/unit/test_maxsim_simd.py", "tests/unit/test_attention_kernel.py"),
)
"""A few files that depend on the processor, files and text: for conditions that are too slow to try on everything."""
KERNELS = (
    *("tests/unit/test_attention_kernel.py", "tests/unit/test_maxsim_simd.py", "tests/unit/test_demo_collection.py"),
    *("tests/unit/test_encode.py", "tests/property/test_exact_search.py", "tests/e2e/test_command_line.py"),
)


class Condition(NamedTuple):
    """The settings of a condition, and the tests that run under it."""

    why: str
    variables: Mapping[str, str] = {}
    unset: Sequence[str] = ()
    before: Sequence[str] = ()
    """A command prefix, before the interpreter that runs pytest."""
    tests: Sequence[str] = FAST
    busy: bool = False
    """Whether another process keeps one core busy during the tests."""
    nobody: bool = False
    shuffled: bool = False


CONDITIONS: Mapping[str, Condition] = {
    "plain": Condition("the machine as it is", tests=()),
    "one-core": Condition("taskset -c 0", before=("taskset", "-c", "0"), tests=()),
    "aten-default": Condition("torch without vector units", {"ATEN_CPU_CAPABILITY": "default"}, tests=()),
    "busy": Condition("another process keeps one core busy", busy=True, tests=()),
    "one-thread": Condition("one thread for BLAS", {"OMP_NUM_THREADS": "1"}),
    "aten-avx2": Condition("torch with AVX2 alone", {"ATEN_CPU_CAPABILITY": "avx2"}),
    "numba-generic": Condition("numba compiles for any processor", {"NUMBA_CPU_NAME": "generic"}),
    "numba-off": Condition("numba compiles nothing", {"NUMBA_DISABLE_JIT": "1"}, tests=KERNELS),
    "onednn-avx2": Condition("oneDNN and MKL as on AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}),
    "c-locale": Condition("no UTF-8 locale", {"LC_ALL": "C"}),
    "time-zone": Condition("a zone of 5:45 h", {"TZ": "Asia/Kathmandu"}),
    "no-home": Condition("HOME is not set", unset=("HOME",)),
    "user": Condition("a user who may write nowhere else", unset=("HOME",), nobody=True),
    "random-order": Condition("tests in random order", shuffled=True),
    "no-shared": Condition("no real data beside the checkout", {"EVALKIT_SHARED": os.devnull}),
}


def named(word: str) -> Condition:
    """Return a condition by its name, or several at once by their names with `+` between. Raises KeyError.

    The tests of several conditions are those of the first.
    """
    first, *others = (CONDITIONS[name] for name in word.split("+"))
    both = first
    for other in others:
        both = Condition(
            f"{both.why}; {other.why}",
            {**both.variables, **other.variables},
            (*both.unset, *other.unset),
            (*both.before, *other.before),
            both.tests,
            both.busy or other.busy,
            both.nobody or other.nobody,
            both.shuffled or other.shuffled,
        )
    return both


class Outcome(NamedTuple):
    """The result of a test run."""

    passed: int
    failed: int
    skipped: int
    seconds: float


def measured(condition: Condition, tests: Sequence[str], *, show: bool) -> Outcome:
    """Run tests under a condition; `show` prints pytest's output. Raises OSError if the condition cannot be set up."""
    inherited = {name: value for name, value in os.environ.items() if name not in condition.unset}
    environment = {**inherited, **condition.variables}
    with ExitStack() as left:
        folder = Path(left.enter_context(tempfile.TemporaryDirectory()))
        report, tree, before = folder / "report.xml", ROOT, [*condition.before]
        if condition.nobody:
            tree, before = _as_nobody(folder, environment)
            report = folder / "writable" / "report.xml"
        paths = [str(tree), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if condition.busy:
            spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            left.callback(spinning.wait)
            left.callback(spinning.kill)
        command = [
            *before,
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *tests,
        ]
        if condition.shuffled:
            seed = random.SystemRandom().randrange(1 << 31)
            print(f"random-order: -p randomly --randomly-seed={seed}", file=sys.stderr, flush=True)
            command += ["-p", "randomly", f"--randomly-seed={seed}"]
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=tree, env=environment, check=False, text=True, stdout=None if show else subprocess.PIPE
        )
        seconds = time.monotonic() - started
        if not report.exists():
            raise OSError(f"pytest ended with {done.returncode} and no report: {done.stdout or 'see above'}")
        if not show:
            lines = (done.stdout or "").splitlines()
            kept = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            print("\n".join(kept), end="\n" if kept else "", file=sys.stderr)
        return Outcome(*_counts(report), seconds)


def _as_nobody(folder: Path, environment: dict[str, str]) -> tuple[Path, list[str]]:
    """Copy the tree to a folder that the user nobody can read but not write, and create one folder it can write."""
    if os.geteuid() != 0:
        raise OSError("the condition needs root, to run the tests as the user nobody")
    tree, writable = folder / "tree", folder / "writable"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "build", ".hypothesis")
    shutil.copytree(ROOT, tree, ignore=ignored)
    writable.mkdir()
    shutil.chown(writable, "nobody")
    folder.chmod(0o755)
    environment |= {"TMPDIR": str(writable), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("EVALKIT_SHARED", str(ROOT.parent / "shared"))
    before = ["setpriv", "--reuid", "nobody", "--regid", "65534", "--clear-groups"]
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    # Start Python twice: the interpreter started by setpriv can still enter any folder, its child cannot.
    if subprocess.run([*before, sys.executable, "-c", again], check=False, capture_output=True).returncode != 0:
        raise OSError(f"nobody cannot start {sys.executable}; use a Python outside root's home")
    return tree, before


def _counts(report: Path) -> tuple[int, int, int]:
    """Return how many tests passed, failed (including errors) and were skipped."""
    suite = next(ET.parse(report).getroot().iter("testsuite")).attrib  # noqa: S314 (the report is written by pytest, above)
    total, skipped = int(suite["tests"]), int(suite["skipped"])
    failed = int(suite["failures"]) + int(suite["errors"])
    return total - failed - skipped, failed, skipped


def _shown(tests: Sequence[str]) -> str:
    """Return test files and folders in short, as in tests/README.md."""
    if tests == SMALL:
        return "small"
    return ", ".join(test.removeprefix("tests/").removesuffix(".py") for test in tests) or "all"


def main() -> None:
    """Run the conditions given on the command line and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help=", ".join(CONDITIONS))
    parser.add_argument("--list", action="store_true", help="list the conditions and their tests")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--tests", nargs="+", help="run these tests instead of the condition's")
    chosen.add_argument("--small", action="store_const", dest="tests", const=SMALL, help="run a few files instead")
    parser.add_argument("--show", action="store_true", help="print pytest's output")
    asked = parser.parse_args()
    names = [name for word in asked.conditions for name in word.split("+")]
    if unknown := [name for name in names if name not in CONDITIONS]:
        parser.error(f"condition {unknown[0]!r} unknown; valid: {', '.join(CONDITIONS)}")
    if asked.list or not asked.conditions:
        for name, condition in CONDITIONS.items():
            print(f"{name:14} {condition.why:36} {' '.join(condition.tests) or 'all tests'}")
        return
    print("| condition | tests | passed | failed | skipped | seconds |\n|---|---|---:|---:|---:|---:|", flush=True)
    failed = False
    for name in asked.conditions:
        condition = named(name)
        try:
            outcome = measured(condition, asked.tests or condition.tests, show=asked.show)
        except OSError as error:
            print(f"{name} was not run: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        passed, wrong, skipped, seconds = outcome
        shown = _shown(asked.tests or condition.tests)
        print(f"| `{name}` | {shown} | {passed} | {wrong} | {skipped} | {seconds:.0f} |", flush=True)
        failed = failed or wrong > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
