"""Inject faults into evalkit and write the outcomes to results/faults/README.md and faults.json; a seed repeats them.

    python scripts/faults/run.py --seed 1 --minutes 60                # all faults; full disks need root
    python scripts/faults/run.py --only kills,flips --minutes 10      # some; the figures of the others are kept
    python scripts/faults/fuzz.py --minutes 60                        # the long fuzzing, with atheris

A trial passes if no data is lost, no number is wrong without a warning, and every error is one line. If a trial fails,
README.md lists it and the exit code is 1. --minutes is the time for all faults together; only `load` takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import clocks
import disks
import flips
import kills
import load
import scrambled
import together
from trials import COMMANDS, Base, Trials, base, imported

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = tuple(COMMANDS)
Attack = Callable[[Base, Trials, random.Random], None]
KINDS: Mapping[str, Mapping[str, Attack]] = {
    "kills": {
        "kill -9 at every write by name and stage": lambda base, trials, _: kills.at_every_write(base, trials),
        "kill -9 of separately started commands at random moments": kills.at_random,
    },
    "flips": {f"a flipped bit in {name}": partial(flips.bits, name=name) for name in flips.KINDS},
    "disks": {"a full disk, at every size": disks.full},
    "folders": {
        "read-only cache or results": disks.read_only,
        "a folder that vanishes during a run": disks.vanishing,
    },
    "clock": {"a clock that goes back": clocks.back},
    "together": {"two to four runs at once, some killed": together.at_once},
    "load": {"100,000 documents; 10,000 queries; a million tokens": load.small, "1,000,000 documents": load.large},
    "scrambled": {"changed bytes for every reader": lambda _, trials, draw: scrambled.scrambled(trials, draw)},
}


def main() -> None:
    """Inject the chosen faults, each for its share of the minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--systems", default=",".join(COMMANDS), help=f"some of {','.join(COMMANDS)}")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all faults together; load may take longer")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "faults")
    chosen = parser.parse_args()
    kinds = chosen.only.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        sys.exit(f"kind {unknown[0]!r} unknown; wanted some of {','.join(KINDS)}")
    if unknown := [system for system in chosen.systems.split(",") if system not in COMMANDS]:
        sys.exit(f"system {unknown[0]!r} unknown; wanted some of {','.join(COMMANDS)}")
    for system in set(COMMANDS) - {*chosen.systems.split(",")}:
        del COMMANDS[system]
    with TemporaryDirectory(prefix="faults-") as scratch:
        made = Base(Path(scratch), Path(scratch), {})
        if {*kinds} != {"scrambled"}:  # it runs no command
            imported()
            made = base(Path(scratch), seed=chosen.seed)
        found = []
        for kind in kinds:
            for name, attack in KINDS[kind].items():
                seconds = 60 * chosen.minutes / len(kinds) / len(KINDS[kind])
                command = f"run.py --seed {chosen.seed} --only {kind} --minutes {chosen.minutes / len(kinds):.3g}"
                command += "" if len(COMMANDS) == len(SYSTEMS) else f" --systems {','.join(COMMANDS)}"
                trials = Trials(name, command, time.monotonic() + seconds)
                started = time.monotonic()
                attack(made, trials, random.Random(f"{chosen.seed} {name}"))
                print(f"{name}: {trials.tried:,} tried, {dict(trials.outcomes)} {trials.note}", flush=True)
                for line in trials.wrong:
                    print(f"  BROKEN {line}", flush=True)
                found.append(figures(kind, trials, seconds=time.monotonic() - started))
                write(chosen.out, found)
    if any(one["broken"] for one in found):
        sys.exit(1)


def figures(kind: str, trials: Trials, *, seconds: float) -> dict[str, Any]:
    """Return the entry of a fault in faults.json."""
    return {
        "kind": kind,
        "fault": trials.fault,
        "tried": trials.tried,
        "outcomes": dict(trials.outcomes),
        "broken": trials.wrong,
        "note": trials.note,
        "seconds": round(seconds, 1),
        "command": trials.command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }


def write(out: Path, found: list[dict[str, Any]]) -> None:
    """Write the figures, replacing earlier ones of the same faults, and the table."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "faults.json"
    known = {one["fault"]: one for one in (json.loads(path.read_text("utf-8")) if path.exists() else [])}
    known |= {one["fault"]: one for one in found}
    order = [name for attacks in KINDS.values() for name in attacks]
    rows = sorted(known.values(), key=lambda one: order.index(one["fault"]) if one["fault"] in order else len(order))
    path.write_text(f"{json.dumps(rows, indent=1, ensure_ascii=False)}\n", "utf-8")
    fuzzed = out / "fuzz.json"
    fuzz = json.loads(fuzzed.read_text("utf-8")) if fuzzed.exists() else None
    (out / "README.md").write_text(table(rows, fuzz), "utf-8")


def table(rows: list[dict[str, Any]], fuzz: dict[str, Any] | None) -> str:
    """Return README.md: the faults, how often they were tried, and the outcomes."""
    lines = [
        "# Faults",
        "",
        "The faults that `scripts/faults` injected, and the outcomes. A trial passes if no data is lost, no number is",
        "wrong without a warning, and every error is one line. `faults.json` and `fuzz.json` have the figures.",
        "Commands are listed without `python scripts/faults/`.",
        "",
        "| fault | tried | outcome | command | date |",
        "| --- | --: | --- | --- | --- |",
    ]
    for row in rows:
        outcome = "; ".join(
            f"{count:,} {name}" for name, count in sorted(row["outcomes"].items(), key=lambda one: -one[1])
        )
        note = f" ({row['note']})" if row["note"] else ""
        shown = f"{outcome or 'not tried'}{note}"
        lines.append(f"| {row['fault']} | {row['tried']:,} | {shown} | `{row['command']}` | {row['date']} |")
    known = {row["fault"] for row in rows}
    for kind, attacks in KINDS.items():
        lines += [f"| {name} | 0 | not run yet | `run.py --only {kind}` | – |" for name in attacks if name not in known]
    lines += ["", f"Machine: {'; '.join(sorted({row['machine'] for row in rows}))}, shared with other work.", ""]
    broken = [f"- {row['fault']}: {line}" for row in rows for line in row["broken"]]
    lines += ["## Failed", "", *(broken or ["No trial failed."]), ""]
    if fuzz is not None:
        lines += [
            "## Fuzzing with atheris",
            "",
            f"{fuzz['inputs']:,} inputs in {fuzz['hours']:.2f} hours (`fuzz.py`, {fuzz['date']}). Cheap readers",
            "get most inputs: the number of inputs says nothing about coverage.",
            "",
            "| reader | inputs | minutes | faults found |",
            "| --- | --: | --: | --- |",
        ]
        for name, one in fuzz["readers"].items():
            places = "; ".join(finding["where"] for finding in one["findings"]) or "–"
            lines.append(f"| {name} | {one['inputs']:,} | {one['seconds'] / 60:.1f} | {places} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
