"""Draw the GPU bench's figures: rates of exact search with the GEMM rate, and of encoding with its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from summary import read


def draw(folder: Path) -> Path:
    """Write gpu.png to the folder of the figures; sections without figures are left out."""
    figures = read(folder)
    panels = [panel for panel in (search_rates(figures), encoding_rates(figures)) if panel[1]]
    heights = [1 + len(bars) for _, bars, _ in panels] or [1]
    drawn, axes = plt.subplots(
        len(heights), 1, figsize=(10, 1 + 0.25 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axis, (title, bars, ceiling) in zip(axes[:, 0], panels, strict=False):
        axis.barh([name for name, _ in bars], [rate for _, rate in bars], color="#3b6ea5")
        if ceiling:
            axis.axvline(ceiling, color="#c0392b", linewidth=1)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
    drawn.suptitle(str(figures.get("machine", {}).get("gpu", "no GPU: toy sizes, no figures")), fontsize=11)
    drawn.tight_layout()
    path = folder / "gpu.png"
    drawn.savefig(path, dpi=120)
    plt.close(drawn)
    return path


Panel = tuple[str, list[tuple[str, float]], "float | None"]


def search_rates(figures: dict[str, Any]) -> Panel:
    """Return each contender's TFLOP/s by dim, document length and number of queries."""
    bars = [
        (f"{section.removeprefix('search ')} · {name}", value["TFLOP/s"])
        for section, entries in figures.items()
        if section.startswith("search d=")
        for name, value in entries.items()
        if isinstance(value, dict) and "TFLOP/s" in value
    ]
    return "Exact MaxSim, TFLOP/s (line: fp16 GEMM)", bars, figures.get("ceilings", {}).get("float16 GEMM TFLOP/s")


def encoding_rates(figures: dict[str, Any]) -> Panel:
    """Return each contender's tokens per second."""
    entries = figures.get("encoding", {})
    bars = [
        (name, value["tokens/s"]) for name, value in entries.items() if isinstance(value, dict) and "tokens/s" in value
    ]
    return "Encoding, tokens/s (line: floor at the GEMM rate)", bars, entries.get("floor, tokens/s at the GEMM rate")
