"""The output of a stage: a JSON file with its conditions, and a table on the terminal."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def conditions(load: Sequence[float]) -> dict[str, Any]:
    """Return the conditions of the figures: the command, the machine, and its load before."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "command": " ".join(["python", "scripts/bench.py", *shown(sys.argv[1:])]),
        "platform": platform.platform(),
        "date": datetime.now(tz=UTC).date().isoformat(),
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def shown(words: Sequence[str]) -> list[str]:
    """Return a command line's words; of absolute paths only the last part, so that the figures name no machine."""
    return [Path(word).name if word.startswith(("/", "~")) else word for word in words]


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Print a stage's table and write its figures."""
    for name, case in content["cases"].items():
        relative = case[f"{case['reference']} is times"]
        print(f"\n{content['stage']} {name} ({case['unit']}); {case['reference']} is … times the others")
        for contender, of in sorted(case["contenders"].items(), key=lambda item: -item[1]["rate"]):
            share = f"{of['share_of_ceiling']:7.1%} of GEMM" if "share_of_ceiling" in of else ""
            times = f"{relative[contender]:7.2f}×" if contender in relative else " " * 8
            print(f"  {contender:32} {of['rate']:10.2f} {times} {share}")
        for contender, reason in case["not measured"].items():
            print(f"  {contender:32} not measured: {reason}")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.move(temporary, path)
