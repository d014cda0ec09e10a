"""Fuzz every reader of outside data with atheris (libFuzzer) for a given time.

    ENV/bin/pip install atheris==3.0.0     # ENV has evalkit's dependencies; Python 3.11 to 3.13
    ENV/bin/python scripts/faults/fuzz.py --minutes 60 --out results/faults/fuzz.json

Each reader runs in its own process for its share of the time. Inputs start from the reader's seeds and are mutated to
reach new code of evalkit; --corpus keeps the inputs that did. A fault is recorded with its input, and fuzzing goes on.
Faults that end at the same line of code count as one. Figures are added to those in --out, so that the command can be
repeated; `inputs` is the number that libFuzzer reports as executed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FEWEST_S = 5
SLOW_S = 2.0
"""CPU seconds. An input that takes longer is a finding, because none is larger than LARGEST_BYTES."""
HANG_S = 60
MEMORY_MB = 4096
LARGEST_BYTES = 4096
SHARES = {"words": 0.2, "bundle": 0.5, "parquet": 0.5, "inferred-model": 0.5}
"""Shares of the time for readers whose inputs take milliseconds; others have 1. With `--only` all have 1."""
EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main() -> None:
    """Fuzz the chosen readers one after the other; with the internal option `--reader`, fuzz one in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all readers together")
    parser.add_argument("--only", default="", help="readers, comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/faults/fuzz.json"))
    parser.add_argument("--corpus", type=Path, default=None, help="where interesting inputs are kept between calls")
    parser.add_argument("--reader", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    if chosen.reader is not None:
        fuzz_one(chosen.reader, chosen.found, chosen.corpus, seed=chosen.seed, seconds=round(60 * chosen.minutes))
    else:
        fuzz_all(chosen)


def fuzz_all(chosen: argparse.Namespace) -> None:
    """Fuzz each reader for its share of the time in its own process; write the figures after each."""
    names = chosen.only.split(",") if chosen.only else list_readers()
    share = {name: 1.0 if chosen.only else SHARES.get(name, 1.0) for name in names}
    from readers import in_memory_folder

    with TemporaryDirectory() as scratch, TemporaryDirectory(prefix="faults-", dir=in_memory_folder()) as held:
        os.environ["FAULTS_SCRATCH"] = held  # libFuzzer exits without cleaning up
        corpora = chosen.corpus or Path(scratch)
        for name in names:
            seconds = max(FEWEST_S, round(60 * chosen.minutes * share[name] / sum(share.values())))
            (corpora / name).mkdir(parents=True, exist_ok=True)
            found = Path(scratch) / f"{name}.jsonl"
            started = time.monotonic()
            command = [sys.executable, __file__, "--reader", name, "--minutes", str(seconds / 60)]
            command += ["--seed", str(chosen.seed), "--corpus", str(corpora / name), "--found", str(found)]
            done = subprocess.run(command, capture_output=True, check=False, cwd=scratch, errors="replace")
            executed = EXECUTED.search(done.stderr)
            findings = [json.loads(line) for line in found.read_text("utf-8").splitlines()] if found.exists() else []
            if done.returncode or executed is None:  # a hang, too much memory, a crash of native code
                tail = done.stderr[-2000:]
                left = [path.read_bytes() for path in Path(scratch).glob("*-*") if path.is_file() and path.stem != name]
                findings.append(
                    {"where": "the process", "error": tail, "input": base64.b64encode(b"".join(left)).decode()}
                )
            for path in Path(scratch).glob("*-[0-9a-f]*"):
                path.unlink()
            inputs = int(executed[1]) if executed else 0
            print(
                f"{name}: {inputs:,} inputs in {time.monotonic() - started:.0f} s, {len(findings)} findings", flush=True
            )
            add(chosen.out, name, inputs=inputs, seconds=time.monotonic() - started, findings=findings)


def list_readers() -> list[str]:
    """Return the names of all readers."""
    from readers import readers

    return list(readers())


def add(path: Path, name: str, *, inputs: int, seconds: float, findings: list[dict[str, Any]]) -> None:
    """Add a reader's figures to those of earlier calls."""
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {"readers": {}}
    known = figures["readers"].setdefault(name, {"inputs": 0, "seconds": 0.0, "findings": []})
    known["inputs"] += inputs
    known["seconds"] = round(known["seconds"] + seconds, 1)
    places = {finding["where"] for finding in known["findings"]}
    known["findings"] += [finding for finding in findings if finding["where"] not in places]
    figures["inputs"] = sum(one["inputs"] for one in figures["readers"].values())
    figures["hours"] = round(sum(one["seconds"] for one in figures["readers"].values()) / 3600, 3)
    figures["date"] = datetime.now(UTC).date().isoformat()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(figures, indent=1)}\n", "utf-8")


def fuzz_one(name: str, found: Path, corpus: Path, *, seed: int, seconds: int) -> None:
    """Fuzz one reader until its time is over. Does not return."""
    import logging

    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["evalkit"]):
        from readers import readers

        reader = readers()[name]
        for data in reader.seeds:
            reader.check(data)  # imports the reader's modules while instrumentation is on
    places: set[str] = set()

    def note(where: str, error: str, data: bytes) -> None:
        if where not in places:
            places.add(where)
            with found.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"where": where, "error": error, "input": base64.b64encode(data).decode()}) + "\n"
                )

    def one(data: bytes) -> None:
        started = time.process_time()
        try:
            reader.check(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (panics of Rust code derive from BaseException)
            note(place_of(error), f"{type(error).__name__}: {error}"[:500], data)
        if (took := time.process_time() - started) > SLOW_S:
            note("slow", f"{took:.1f} s", data)

    for number, data in enumerate(reader.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LARGEST_BYTES}", "-print_final_stats=1"]
    options += [f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={Path.cwd()}/", "-verbosity=0"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def place_of(error: BaseException) -> str:
    """Return the type of an error and the last line of evalkit in its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "evalkit" in frame.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} {last.name}"


if __name__ == "__main__":
    main()
