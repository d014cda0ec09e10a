"""Measure what a sweep saves because it keeps the loaded model from one cell to the next.

    python scripts/bench_kept_model.py --out results/bench/kept-model.json

Each model is loaded twice, as two cells do, in its own process: the checkpoint is read and verified, the encoder is
built, the canary is run. The medians of --rounds processes go to --out. It takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = (("model=demo", "dim=[128,96,64]"), ("model=demo", "dim=128"), ("model=all-minilm-l6-v2-late",))


def main() -> None:
    """Measure every model in rounds and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    found: list[dict[str, Any]] = []
    for words in MODELS:
        rounds = [_round(words) for _ in range(chosen.rounds)]
        middle = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
        found.append({"words": " ".join(words), **middle, "load average": round(os.getloadavg()[0], 1)})
        print(json.dumps(found[-1]), flush=True)
    figures = {
        "what": "seconds of loading a model for a cell, and for the next cell of the same sweep; medians",
        "command": "python scripts/bench_kept_model.py --out results/bench/kept-model.json",
        "rounds": chosen.rounds,
        "processors": os.cpu_count(),
        "models": found,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _round(words: tuple[str, ...]) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--load", *words], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def load(words: list[str]) -> None:
    """Load a model twice, as two cells of a sweep do, and print the seconds of both."""
    import torch

    from evalkit.config.compose import compose
    from evalkit.config.settings import EncoderConfig
    from evalkit.models.encoder import checkpoints
    from evalkit.run import loaded

    config = compose(words)
    assert isinstance(config.model, EncoderConfig)
    dims = [dim for dim in config.dims if dim is not None]
    seconds = []
    with loaded.kept():
        for _ in range(2):
            started = time.perf_counter()
            found = checkpoints(config.model, dims)
            loaded.encoders(config.model, found, device=torch.device("cpu"), engine=config.engine)
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"first_s": seconds[0], "kept_s": seconds[1]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(sys.argv[2:])
    else:
        main()
