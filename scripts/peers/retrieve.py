"""Run a library's job (`job.py`) in its environment, print its stages, and report a failure in one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from peers import environments
from peers.environments import PeerError

LOG, FACTS = "log.txt", "peer.json"
STAGE, REFUSED = "stage: ", "refused: "
"""The beginnings of a job's lines that name its next stage, or why it stops (`job.py`)."""
FILES = ("run.trec.gz", "sample.npz", FACTS)
QUOTED_CHARACTERS = 300
"""Characters of a library's last line that an error quotes."""


def retrieve(library: str, words: Sequence[str], out: Path, *, python: Path, script: Path | None = None) -> Path:
    """Run a library's job and return its output folder. Raises PeerError.

    Files of an earlier job in that folder are removed first, so that they cannot be mistaken for this job's.
    """
    if not python.exists():
        msg = f"{library}: got no {python}, wanted its environment; python scripts/peer.py install {library}"
        raise PeerError(msg)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, LOG):
        (out / name).unlink(missing_ok=True)
    code_of = ["-m", f"peers.retrieve_{environments.module_name(library)}"] if script is None else [str(script)]
    # -P: a module of this folder must not shadow one of the library's.
    code, stage, refusal, last = _followed(library, [str(python), "-P", *code_of, *words], out)
    if refusal is not None:
        msg = f"{library}: {refusal}; nothing of it can be scored"
        raise PeerError(msg)
    if code != 0 or not (out / FACTS).is_file():
        quoted = f": {last[:QUOTED_CHARACTERS]}" if last else ""
        msg = f"{library} stopped at {stage} (exit {code}){quoted}; nothing of it can be scored, see {out / LOG}"
        raise PeerError(msg)
    return out


def _followed(library: str, command: Sequence[str], out: Path) -> tuple[int, str, str | None, str]:
    """Run a job; return its exit code, its last stage, why it refused, and its last line. The log gets its output.

    The job's working folder is `out`, so that files that a library creates stay there.
    """
    stage, refusal, last = "start", None, ""
    environment = {**os.environ, "PYTHONPATH": str(environments.FOLDER.parent)}
    with (
        (out / LOG).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=out,
            env=environment,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if line.startswith(STAGE):
                stage = line.removeprefix(STAGE).strip()
                print(f"{library}: {stage}", flush=True)
            elif line.startswith(REFUSED):
                refusal = line.removeprefix(REFUSED).strip()
            elif line.strip():
                last = line.strip()
    return process.returncode, stage, refusal, last
