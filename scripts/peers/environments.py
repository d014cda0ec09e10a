"""Create a virtual environment for each peer.

For the benchmark, the packages are those of the PEP 723 block at the top of the peer's script. For the libraries that
encode and search a dataset (`LIBRARIES`) they are those of a pinned requirements file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
OURS = ("evalkit", "torch")
"""Contenders that run in the benchmark's own environment."""
LIBRARIES = ("pylate", "sentence-transformers", "colbert-ai", "ragatouille")
"""Libraries that search a dataset with a checkpoint and write a run (`scripts/peer.py run`)."""
DEFAULT = Path("build/peers")


class PeerError(Exception):
    """Raised if a peer cannot do what was asked; the message is one line."""


def script(contender: str) -> Path:
    """Return a contender's script.

    >>> script("maxsim-cpu").name
    'with_maxsim_cpu.py'
    """
    return FOLDER / f"with_{contender.replace('-', '_')}.py"


def peers() -> list[str]:
    """Return the contenders that need their own environment."""
    names = (path.stem.removeprefix("with_").replace("_", "-") for path in sorted(FOLDER.glob("with_*.py")))
    return [name for name in names if name not in OURS]


def python(contender: str, environments: Path) -> Path:
    """Return the path of a contender's interpreter; it need not exist."""
    return Path(sys.executable) if contender in OURS else environments / contender / "bin" / "python"


def block(contender: str) -> dict[str, Any]:
    """Return the PEP 723 block of a contender's script; empty if it has none.

    >>> block("maxsim-cpu")["dependencies"]
    ['maxsim-cpu==0.1.0', 'numpy']
    """
    text = script(contender).read_text(encoding="utf-8")
    found = re.search(r"^# /// script$\n((?:^#(?: .*)?$\n)+?)^# ///$", text, re.MULTILINE)
    if found is None:
        return {}
    return tomllib.loads("".join(line[2:] for line in found.group(1).splitlines(keepends=True)))


def install(contender: str, environments: Path) -> None:
    """Create a contender's environment with venv and pip. Raises CalledProcessError if either fails."""
    home = environments / contender
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in ([sys.executable, "-m", "venv", str(home)], [*pip, *block(contender)["dependencies"]]):
        subprocess.run(command, check=True)


def module_name(library: str) -> str:
    """Return the name of a library's Python module.

    >>> module_name("sentence-transformers")
    'sentence_transformers'
    """
    return library.replace("-", "_")


def requirements(library: str) -> Path:
    """Return the file of a library's pinned packages."""
    return FOLDER / "requirements" / f"{library}.txt"


def install_pinned(library: str, environments: Path) -> Path:
    """Create a library's environment from its pinned requirements, and return its interpreter. Raises PeerError."""
    home = environments / library
    interpreter = home / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(home)], [*pip, "-r", str(requirements(library))]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
            msg = f"{library} cannot be installed into {home}: {reason}"
            raise PeerError(msg)
    return interpreter
