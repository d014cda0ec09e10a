"""A figure of the benchmark's results: one panel per case, one bar per contender, evalkit's in colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS, PEER = "#1b6ca8", "#b8b8b8"


def panels(folder: Path, stages: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the title and figures of every measured case, in the order of the stages."""
    found = []
    for stage in stages:
        path = folder / f"{stage}.json"
        cases = json.loads(path.read_text(encoding="utf-8")).get("cases", {}) if path.exists() else {}
        found += [(f"{stage}: {name}" if name != stage else stage, case) for name, case in cases.items()]
    return [(title, case) for title, case in found if case["contenders"]]


def draw(folder: Path, stages: Sequence[str], out: Path) -> None:
    """Draw the results in the folder's JSON files and save the image; do nothing if there are none."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = panels(folder, stages)
    if not shown:
        return
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(14, 0.6 + 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (title, case) in zip(axes.flat, shown, strict=False):
        names = sorted(case["contenders"], key=lambda name: case["contenders"][name]["rate"])
        rates = [case["contenders"][name]["rate"] for name in names]
        bars = axis.barh(names, rates, color=[OURS if name.startswith("evalkit") else PEER for name in names])
        axis.bar_label(bars, [_label(case, name) for name in names], padding=3, fontsize=8)
        axis.set_xlim(0, max(rates) * 1.6)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel(case["unit"], fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _label(case: dict[str, Any], name: str) -> str:
    figures = case["contenders"][name]
    parts = [f"{figures['rate']:,.0f}" if figures["rate"] >= 100 else f"{figures['rate']:.3g}"]
    if "share_of_ceiling" in figures:
        parts.append(f"{figures['share_of_ceiling']:.0%} of GEMM")
    if "ndcg@10" in figures:
        parts.append(f"NDCG@10 {figures['ndcg@10']:.4f}, {figures['peak_tree_mib'] / 1024:.2f} GiB")
    return " · ".join(parts)
