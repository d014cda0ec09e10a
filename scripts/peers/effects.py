"""Measure the effect on NDCG@10 of each difference that `parity.py` found.

evalkit runs with the settings that imitate one difference at a time, and then with all of them, which should give the
library's own score. The base is evalkit with the settings that it infers from the checkpoint.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.environments import PeerError
from peers.job import FACTS

METRIC = "ndcg@10"
STORED = {("store.dtype=float32",): "stored embeddings (evalkit rounds them to fp16, the library keeps fp32)"}
"""A difference that a sample cannot show, because its vectors are compared before they are stored."""
OWN = "evalkit.json"
"""The file with evalkit's own score, seconds and memory on a checkpoint and a dataset."""


def measure(out: Path, checkpoint: Path, words: Sequence[str], work: Path) -> list[str]:
    """Measure each difference, write OUT/effects.json, return a line for each. Raises PeerError without parity.json.

    `words` select the dataset. Runs and shards go to `work`, which several libraries with one checkpoint can share.
    """
    path = out / "parity.json"
    if not path.is_file():
        msg = f"{path}: is not there, wanted the differences; python scripts/peer.py parity {out} CHECKPOINT DATA"
        raise PeerError(msg)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    facts: dict[str, Any] = json.loads((out / FACTS).read_text(encoding="utf-8"))
    by_words = STORED | {
        tuple(one["words"]): f"{one['name']} ({one['side']})" for one in report["differences"] if one["words"]
    }
    base = score(checkpoint, words, (), work)
    found: list[dict[str, Any]] = [{"what": "evalkit", "words": [], METRIC: base, "delta": 0.0}]
    for changed, what in by_words.items():
        value = score(checkpoint, words, changed, work)
        found.append({"what": what, "words": list(changed), METRIC: value, "delta": value - base})
    if len(by_words) > 1:
        every = tuple(word for changed in by_words for word in changed)
        value = score(checkpoint, words, every, work)
        found.append({"what": "all of them", "words": list(every), METRIC: value, "delta": value - base})
    (out / "effects.json").write_text(
        json.dumps({"system": facts["system"], "effects": found}, indent=2) + "\n", encoding="utf-8"
    )
    return [
        f"{one['what']}: {one[METRIC]:.5f} ({one['delta']:+.5f}) {' '.join(one['words'])}".rstrip() for one in found
    ]


def score(checkpoint: Path, words: Sequence[str], changed: Sequence[str], work: Path) -> float:
    """Return evalkit's score of a checkpoint with changed settings, which may contradict the checkpoint's own."""
    import evalkit
    from evalkit.config.settings import CONFIGS
    from evalkit.operations import own_configs

    allowed = ("model.verify=false",) if changed else ()
    named, configs = own_configs.with_temporary_configs(
        [f"model={checkpoint.resolve()}", *words], say=lambda _line: None
    )
    os.environ[CONFIGS] = str(configs)
    (cell,) = evalkit.run(*named, *changed, *allowed, *_places(work))
    return float(cell.metrics[METRIC])


def measure_evalkit(checkpoint: Path, words: Sequence[str], work: Path) -> str:
    """Run evalkit in a new process, write WORK/evalkit.json, and return a line. Raises PeerError."""
    from evalkit.storage import results

    before = {cell.run_id for cell in results.read_all(work / "results")}
    command = [sys.executable, "-m", "evalkit", "run", f"model={checkpoint.resolve()}", *words, *_places(work)]
    if subprocess.run(command, check=False).returncode:
        msg = f"evalkit failed on {checkpoint}; its message is above"
        raise PeerError(msg)
    new = [cell for cell in results.read_all(work / "results") if cell.run_id not in before]
    if len(new) != 1:
        msg = f"{work}: got {len(new)} new runs, wanted one; give a --work folder without runs of this checkpoint"
        raise PeerError(msg)
    (cell,) = new
    facts = {
        "system": f"evalkit:{cell.model}",
        "dim": cell.dim,
        "dataset": cell.dataset,
        METRIC: cell.metrics[METRIC],
        "document_vectors": cell.counts.get("document_vectors"),
        "seconds": dict(cell.wall_s),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
        **{name: cell.environment.get(name) for name in ("threads", "processor", "evalkit", "packages")},
    }
    (work / OWN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return f"{facts['system']}: {METRIC} {facts[METRIC]:.5f}, {facts['seconds']}, peak {facts['peak_mib']:,.0f} MiB"


def _places(work: Path) -> tuple[str, ...]:
    return f"results_dir={work / 'results'}", f"cache_dir={work / 'cache'}"
