"""Compare the sections' figures with the targets and list what failed; write summary.json.

python scripts/gpu/summary.py OUT                                # on the GPU machine, after all sections
python scripts/gpu/summary.py --card results/bench/gpu/CARD      # elsewhere: also writes card.json and gpu.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SECTIONS = ("ceilings", "encoding", "search", "fused")
TARGETS = {
    "search d=128 TFLOP/s, 256 queries": 350,
    "search times late-interaction-kernels": 2,
    "search d=96 time over d=128's, at most": 0.8,
    "encoding tokens/s": 750_000,
    "encoding times padded arrival order": 3,
    "three dims over one, at most": 1.1,
    "GPU busy share": 0.9,
    "embeddings kept, times top-k alone, at most": 1.03,
}


def read(folder: Path) -> dict[str, Any]:
    """Return the figures of all sections in one mapping; sections without a file are left out."""
    figures: dict[str, Any] = {}
    for section in SECTIONS:
        with suppress(FileNotFoundError):
            found = json.loads((folder / f"{section}.json").read_text(encoding="utf-8"))
            for group, values in found.items():
                if isinstance(values, dict):
                    figures.setdefault(group, {}).update(values)
                else:
                    figures.setdefault(group, []).extend(values)
    return figures


def measured(figures: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each target's name and its measured value, or None if it was not measured."""
    searches = {
        name.removeprefix("search "): values
        for name, values in figures.items()
        if name.startswith("search d=") and name.endswith("Q=256")
    }
    rates = {name: values["evalkit"] for name, values in searches.items() if "evalkit" in values}
    at_128 = {name: facts["TFLOP/s"] for name, facts in rates.items() if name.startswith("d=128")}
    peer = "evalkit is times late-interaction-kernels"
    times = {
        f"{name}, {key.rpartition(', ')[2]}": value
        for name, values in searches.items()
        for key, value in values.items()
        if key.startswith(peer)
    }
    narrower = {
        name: round(facts["ms"] / rates[wide]["ms"], 3)
        for name, facts in rates.items()
        if name.startswith("d=96") and (wide := name.replace("d=96", "d=128")) in rates
    }
    encoding, fused = figures.get("encoding", {}), figures.get("fused", {})
    fastest = [
        facts["tokens/s"] for name, facts in encoding.items() if name.startswith("evalkit, ") and "tokens/s" in facts
    ]
    busy = fused.get("GPU busy over four small shards", encoding.get("GPU busy", {})).get("share")
    values = (
        *(at_128 or None, times or None, narrower or None),
        *(max(fastest, default=None), encoding.get("evalkit is times padded arrival order")),
        *(encoding.get("three dims over one"), busy, fused.get("embeddings kept, times top-k alone")),
    )
    yield from zip(TARGETS, values, strict=True)


def failures(figures: object, path: str = "") -> Iterator[str]:
    """Yield the names of all unsound checks and of all failed configurations."""
    if isinstance(figures, dict):
        for name, value in figures.items():
            if (name == "sound" and value is False) or name.endswith(", failed"):
                yield f"{path} / {name}"
            yield from failures(value, f"{path} / {name}" if path else str(name))


def rates(figures: dict[str, Any]) -> dict[str, Any] | None:
    """Return a card's rates for `evalkit plan` (evalkit/operations/device_rates.py), or None if one is missing."""
    machine = figures.get("machine", {})
    wanted = dict(measured(figures))
    search = list((wanted["search d=128 TFLOP/s, 256 queries"] or {}).values())
    if "gpu" not in machine or not search or wanted["encoding tokens/s"] is None:
        return None
    return {
        "format": 1,
        "gpu": machine["gpu"],
        "model": "jina-colbert-v2",
        "weights": "random, of its shape",
        "tokens_per_s": wanted["encoding tokens/s"],
        "search_flop_per_s": min(search) * 1e12,
        "query_vectors": 32,
        "made with": machine,
    }


def main() -> None:
    """Write and print summary.json; with --card, also write gpu.png and, from a card's own figures, card.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--card", action="store_true", help="also write card.json, for `evalkit plan`, and gpu.png")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    figures = read(folder)
    summary = {
        "machine": figures.get("machine", {}),
        "targets": {name: {"wanted": TARGETS[name], "measured": value} for name, value in measured(figures)},
        "failed": list(failures(figures)),
        "left out": figures.get("left out", []),
    }
    with suppress(FileNotFoundError):
        summary["runs failed"] = json.loads((folder / "runs.json").read_text(encoding="utf-8")).get("failed", [])
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))
    if not chosen.card:
        return
    if (card := rates(figures)) is not None:
        (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    import plot

    plot.draw(folder)


if __name__ == "__main__":
    main()
