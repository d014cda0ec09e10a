"""Collect the output of several libraries: a JSON file for each, and one Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.effects import METRIC
from peers.environments import PeerError
from peers.job import FACTS

PARTS = ("parity.json", "effects.json")
NOT_KEPT = ("run_sha256",)


def gather(outs: Sequence[Path], results_dir: Path, to: Path) -> str:
    """Write TO/SYSTEM.json for each folder and return the table. Raises PeerError for a run that was not scored."""
    from evalkit.storage import results
    from evalkit.texts import in_path

    cells = {cell.model: cell for cell in results.read_all(results_dir)}
    to.mkdir(parents=True, exist_ok=True)
    rows = []
    for out in outs:
        facts: dict[str, Any] = json.loads((out / FACTS).read_text(encoding="utf-8"))
        system = facts["system"]
        if system not in cells:
            msg = (
                f"{results_dir}: got no run of {system}, wanted one; evalkit score {out}/run.trec.gz --system {system}"
            )
            raise PeerError(msg)
        metrics = {name: round(value, 5) for name, value in cells[system].metrics.items()}
        parts = {
            name.removesuffix(".json"): json.loads((out / name).read_text(encoding="utf-8"))
            for name in PARTS
            if (out / name).is_file()
        }
        kept = {name: value for name, value in facts.items() if name not in NOT_KEPT}
        text = json.dumps({**kept, "metrics": metrics, **parts}, indent=2, ensure_ascii=False)
        (to / f"{in_path(system)}.json").write_text(text + "\n", encoding="utf-8")
        rows.append(row(facts, metrics[METRIC]))
    return "\n".join([HEAD, RULE, *rows])


HEAD = "| system | dim | vectors | NDCG@10 | encode s | search s | peak MiB |"
RULE = "| --- | --: | --: | --: | --: | --: | --: |"


def row(facts: Mapping[str, Any], score: float) -> str:
    """Return a system's line of the table.

    >>> row({"system": "a:b", "dim": 4, "seconds": {"encode_documents": 2, "search": 1}, "peak_mib": 9.6}, 0.5)
    '| a:b | 4 | – | 0.50000 | 2.0 | 1.0 | 10 |'
    """
    seconds = facts["seconds"]
    encode = sum(seconds.get(name, 0.0) for name in ("encode_documents", "encode_queries"))
    search = seconds.get("search", 0.0) + seconds.get("index", 0.0)
    vectors = facts.get("document_vectors")
    shown = "–" if vectors is None else f"{vectors:,}"
    return (
        f"| {facts['system']} | {facts['dim']} | {shown} | {score:.5f} | {encode:.1f} | {search:.1f} | "
        f"{facts['peak_mib']:,.0f} |"
    )
