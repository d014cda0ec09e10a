"""Measure the peak memory of a whole run at two corpus sizes, a factor of ten apart; it must not grow with the corpus.

    python scripts/bench_memory.py --model demo --documents 5000 --out results/bench/memory.json

Each size runs in its own process and writes to a temporary folder; the peak is the process's maximum resident size.
Shards are small enough that the smaller corpus fills several: less than one full shard would need less memory. The
figures are printed, and written to --out if it is given. The demo takes about 4 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys
from rich.console import Console
from evalkit.config import compose
from evalkit.run import pipeline
pipeline.run(compose.compose(sys.argv[1:]), console=Console(quiet=True))
print(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def peak_mib(model: str, documents: int, queries: int, shard_tokens: int) -> float:
    """Return the peak resident memory, in MiB, of one run on a demo collection of this size."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"model={model}",
            *(["dim=128"] if model == "demo" else []),
            f"dataset.demo.documents={documents}",
            f"dataset.demo.queries={queries}",
            f"store.shard_tokens={shard_tokens}",
            f"results_dir={folder}/results",
            f"cache_dir={folder}/cache",
        ]
        done = subprocess.run([sys.executable, "-c", CHILD, *words], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_kib"]) / 1024


def main() -> None:
    """Measure both sizes and write the figures with their conditions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--documents", type=int, default=5000, help="the smaller size; the larger is ten times it")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--shard-tokens", type=int, default=40_000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    sizes = (chosen.documents, 10 * chosen.documents)
    peaks = {size: peak_mib(chosen.model, size, chosen.queries, chosen.shard_tokens) for size in sizes}
    small, large = (peaks[size] for size in sizes)
    figures = {
        "command": " ".join(["python", "scripts/bench_memory.py", *sys.argv[1:]]),
        "machine": {"platform": platform.platform(), "processor": _processor(), "page_size": resource.getpagesize()},
        "model": chosen.model,
        "shard_tokens": chosen.shard_tokens,
        "peak_mib": {str(size): round(peak, 1) for size, peak in peaks.items()},
        "growth_mib": round(large - small, 1),
        "ratio": round(large / small, 3),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(f"{text}\n", encoding="utf-8")


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.processor()


if __name__ == "__main__":
    main()
