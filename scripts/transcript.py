"""Run every evalkit command of README.md in a terminal of 80 columns and write what it shows.

    python scripts/transcript.py --nfcorpus DIR [--columns 80] [--only PATTERN] [--out results/transcript.txt]

DIR is nfcorpus in BEIR's format. The commands run in a new folder without a network, so commands that need the Hub show
their error. Finished runs of nfcorpus are copied from results/, so that none is computed again; only the demo runs. A
command may take 15 minutes. Needs Linux.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

TREE = Path(__file__).parents[1]
ESCAPE = re.compile(r"\x1b(\[[0-9;?]*([A-Za-z])|\][^\x07]*\x07|[()][A-Z0-9])")
MOST_S = 900
MORE = ("datasets", "analyzers", "engines", "rerankers", "experiments", "settings", "runs")


def commands(text: str) -> list[str]:
    """Return the evalkit commands of a document's shell blocks, without their comments, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    found = list(dict.fromkeys(line for line in lines if line.startswith("evalkit ")))
    if "evalkit ls models" in found:
        place = found.index("evalkit ls models") + 1
        found[place:place] = [f"evalkit ls {name}" for name in MORE]
    return found


def screen(raw: str) -> str:
    r"""Return what a terminal shows after some output, with overwritten lines and without escape sequences.

    >>> screen("10 %\r20 %\nend\n\x1b[1A\x1b[2Kdone\n")
    '20 %\ndone\n'
    """
    lines, row, column, place = [""], 0, 0, 0
    while place < len(raw):
        if (found := ESCAPE.match(raw, place)) is not None:
            steps = int(found[1][1:-1] or 1) if found[1][1:-1].isdigit() or found[1] == f"[{found[2]}" else 1
            if found[2] == "A":
                row = max(0, row - steps)
            elif found[2] == "K":
                lines[row] = "" if "2" in found[1] else lines[row][:column]
            place = found.end()
            continue
        character = raw[place]
        place += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif character >= " " or character == "\t":
            lines[row] = f"{lines[row][:column].ljust(column)}{character}{lines[row][column + 1 :]}"
            column += 1
    return "\n".join(line.rstrip() for line in lines)


def run(command: str, *, cwd: Path, environment: dict[str, str], columns: int) -> tuple[str, int]:
    """Run a command in a pseudo-terminal; return what it shows and its exit code."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    words = [sys.executable, "-m", "evalkit", *shlex.split(command)[1:]]
    process = subprocess.Popen(words, cwd=cwd, env=environment, stdin=other, stdout=other, stderr=other)
    os.close(other)
    raw, end = b"", time.monotonic() + MOST_S
    while time.monotonic() < end:
        if select.select([main], [], [], 0.2)[0]:
            try:
                piece = os.read(main, 65536)
            except OSError:  # the terminal's other side is closed: the process has ended
                break
            raw += piece
            if not piece:
                break
        elif process.poll() is not None:
            break
    if process.poll() is None and time.monotonic() >= end:
        process.kill()
    os.close(main)
    return screen(raw.decode(errors="replace")), process.wait()


def prepared(folder: Path, nfcorpus: Path) -> dict[str, str]:
    """Write what the commands refer to (`results`, `run.trec.gz`, runs of nfcorpus, DIR); return their environment."""
    shutil.copytree(TREE / "results", folder / "results", ignore=shutil.ignore_patterns("site", "bench"))
    for run_folder in (folder / "results" / "runs").glob("beir-nfcorpus.*"):
        shutil.copytree(run_folder, folder / "evalkit-results" / "runs" / run_folder.name)
        if ".bm25." in run_folder.name:
            shutil.copy(run_folder / "run.trec.gz", folder / "run.trec.gz")
    (folder / "DIR").symlink_to(nfcorpus.absolute())
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "EVALKIT_RESULTS")}
    places = {name: str(folder / name.lower()) for name in ("EVALKIT_CACHE", "HF_HOME", "IR_DATASETS_HOME")}
    paths = {"PYTHONPATH": str(TREE), "TERM": "xterm", "HF_HUB_OFFLINE": "1"}
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    proxies |= {name.lower(): value for name, value in proxies.items()}
    return {**kept, **places, **paths, **proxies}


def main() -> None:
    """Run the commands and write the transcript."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfcorpus", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--only", default="", help="run only the commands that contain this text")
    parser.add_argument("--out", type=Path, default=TREE / "results" / "transcript.txt")
    given = parser.parse_args()
    shown = [
        f"# every evalkit command of README.md at {given.columns} columns, by scripts/transcript.py; network off\n"
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepared(folder, given.nfcorpus)
        for command in commands((TREE / "README.md").read_text(encoding="utf-8")):
            if given.only in command:
                text, code = run(command, cwd=folder, environment=environment, columns=given.columns)
                text = text.replace(str(folder), "~/work").replace(str(given.nfcorpus.absolute()), "DIR")
                text = text.replace(f"{TREE}/", "").replace(f"{socket.gethostname()} ", "host ")
                shown.append(f"$ {command}\n{text.rstrip()}\n" + (f"(exit code {code})\n" if code else ""))
                print(f"{code} {command}", flush=True)
    given.out.write_text("\n".join(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
