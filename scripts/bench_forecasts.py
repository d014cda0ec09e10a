"""Compare the forecast of `evalkit plan --probe` with the wall time of the same run.

    python scripts/bench_forecasts.py --nfcorpus DIR --out results/bench      # DIR is a BEIR-format nfcorpus

Each run starts with empty folders, and its time is that of the whole command. The probe reads about a thousand of the
dataset's documents just before the run. The script writes OUT/forecasts.json after each run. All four runs took about
10 minutes with one thread, their probes not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "forecasts.json"
DEMO = ("model=demo", "dim=64", "dataset.demo.documents=20000")
BM25 = ("model=bm25", "dataset=beir/nfcorpus", "dataset.verify=false")
MINILM = ("model=all-minilm-l6-v2-late", "dataset=beir/nfcorpus", "dataset.verify=false")
SINGLE = ("model=all-minilm-l6-v2", "dataset=beir/nfcorpus", "dataset.verify=false")


def main() -> None:
    """Measure every run and write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nfcorpus", type=Path, help="without it, only the demo is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    runs: list[tuple[str, ...]] = [DEMO]
    if chosen.nfcorpus is not None:
        where = f"dataset.path={chosen.nfcorpus.resolve()}"
        runs += [(*words, where) for words in (BM25, SINGLE, MINILM)]
    figures: dict[str, Any] = {
        "what": "evalkit plan --probe's forecast for one worker beside the wall time of the same run",
        "command": "python scripts/bench_forecasts.py --nfcorpus DIR --out results/bench",
        "machine": f"{chosen.threads} thread, {os.cpu_count()} cores",
        "pairs": [],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    for words in runs:
        pair = measured(words, chosen.threads)
        print(json.dumps(pair), flush=True)
        figures["pairs"].append(pair)
        (chosen.out / NAME).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measured(words: Sequence[str], threads: int) -> dict[str, Any]:
    """Return a run's forecast, its wall time and the machine's load."""
    folder = Path(tempfile.mkdtemp(prefix="evalkit-forecast-"))
    places = [f"results_dir={folder}/results", f"cache_dir={folder}/cache", f"engine.threads={threads}"]
    load = round(os.getloadavg()[0], 1)
    try:
        probed = subprocess.run(
            [sys.executable, __file__, "--forecast", *words, *places], check=True, capture_output=True, text=True
        )
        forecast_s = float(probed.stdout.splitlines()[-1])
        started = time.monotonic()
        command = [sys.executable, "-m", "evalkit", "run", *words, *places]
        subprocess.run(command, check=True, capture_output=True)
        took_s = time.monotonic() - started
    finally:
        shutil.rmtree(folder)
    shown = ["dataset.path=DIR" if word.startswith("dataset.path=") else word for word in words]
    return {
        "run": " ".join(["evalkit run", *shown]),
        "forecast_s": round(forecast_s, 1),
        "measured_s": round(took_s, 1),
        "forecast over measured": round(forecast_s / took_s, 3),
        "load average before and after": [load, round(os.getloadavg()[0], 1)],
    }


def forecast(words: Sequence[str]) -> None:
    """Print the wall time that a probe forecasts for one worker, in seconds."""
    from evalkit.config import compose
    from evalkit.operations import forecast as forecasts
    from evalkit.operations import outlook
    from evalkit.operations.probe import Loader, probe

    config = compose.compose(list(words))
    planned = forecasts.forecast_cells(config, (), probed=probe(config, Loader()))
    print(outlook.total(planned).wall_s[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--forecast"]:
        forecast(sys.argv[2:])
    else:
        main()
