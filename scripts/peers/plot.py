"""Draw the benchmark: a panel per case, a bar per contender, evalkit's in colour; with machine, dates and spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

OURS, PEER = "#1b6ca8", "#b8b8b8"
TITLES = {
    "maxsim: uniform": "MaxSim over documents of one length",
    "maxsim: ragged": "MaxSim over documents of many lengths",
    "encode": "Encoding passages",
    "host": "Encoding without the model: tokens, batches, vectors",
    "end-to-end": "nfcorpus from text to scores",
    "checkpoint": "What checkpoints cost",
    "dims: demo": "Three dims in one pass, the demo model",
    "dims: full size": "Three dims in one pass, a model of full size",
}
"""The title of each case."""
FEW = ("documents", "tokens", "document vectors", "queries", "dim", "model")
"""The inputs that a panel lists, in this order."""


class Panel(NamedTuple):
    """A case with its title and conditions."""

    title: str
    case: dict[str, Any]
    conditions: Mapping[str, Any]


def panels(folder: Path, stages: Sequence[str]) -> list[Panel]:
    """Return a panel for every measured case, in the order of the stages."""
    found = []
    for stage in stages:
        path = folder / f"{stage}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, case in content.get("cases", {}).items():
            title = f"{stage}: {name}" if name != stage else stage
            found.append(Panel(TITLES.get(title, title), case, content.get("conditions", {})))
    return [panel for panel in found if panel.case["contenders"]]


def draw(folder: Path, stages: Sequence[str], out: Path) -> None:
    """Draw the results in the folder's JSON files and save the image; do nothing if there are none."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    shown = panels(folder, stages)
    if not shown:
        return
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(14, 1.7 + 3.3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, (title, case, _) in zip(axes.flat, shown, strict=False):
        names = sorted(case["contenders"], key=lambda name: case["contenders"][name]["rate"])
        rates = [case["contenders"][name]["rate"] for name in names]
        slower = [rate - slowest(case["contenders"][name]) for name, rate in zip(names, rates, strict=True)]
        bars = axis.barh(names, rates, color=[OURS if name.startswith("evalkit") else PEER for name in names])
        axis.errorbar(rates, names, xerr=[slower, [0.0] * len(names)], fmt="none", ecolor="#333333", capsize=3)
        axis.bar_label(bars, [_label(case, name) for name in names], padding=5, fontsize=8)
        axis.set_xlim(0, max(rates) * 1.6)
        axis.set_title(f"{title}\n", loc="left", fontsize=10.5)
        axis.text(0, 1.02, inputs(case), transform=axis.transAxes, fontsize=8, color="#555555")
        axis.set_xlabel(f"{case['unit']}, more is better", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("\n".join(heading(shown)), fontsize=9.5, x=0.01, ha="left")
    legend = [Patch(color=OURS, label="evalkit"), Patch(color=PEER, label="others")]
    figure.legend(handles=legend, loc="upper right", fontsize=9, ncols=2, frameon=False)
    figure.savefig(out, dpi=88, metadata={"Software": None})
    plt.close(figure)


def slowest(figures: Mapping[str, Any]) -> float:
    """Return the rate of a contender's slowest round."""
    seconds = figures.get("seconds", [])
    return float(figures["rate"]) * min(seconds) / max(seconds) if seconds else float(figures["rate"])


def inputs(case: Mapping[str, Any]) -> str:
    """Return a line with a case's inputs and its number of rounds."""
    known = case.get("inputs", {})
    parts = [_input(name, known[name]) for name in FEW if name in known]
    counts = sorted({len(of.get("seconds", [0])) for of in case["contenders"].values()})
    rounds = "1 round" if counts == [1] else f"{' or '.join(map(str, counts))} rounds"
    return ", ".join([*parts, rounds])


def _input(name: str, value: Any) -> str:
    if name in ("dim", "model"):
        return f"{name} {value}" if name == "dim" else str(value)
    return f"{value:,} {name}"


def heading(shown: Sequence[Panel]) -> list[str]:
    """Return the lines of the heading: machine and date of the figures, and how to read a bar.

    >>> panel = Panel("t", {}, {"processor": "Xeon", "processors": 2, "date": "2026-11-26"})
    >>> heading([panel])[0]
    'Xeon, 2 processors; measured 2026-11-26'
    """
    machines = dict.fromkeys(
        f"{one.conditions.get('processor', 'unknown processor')}, {one.conditions.get('processors', '?')} processors"
        for one in shown
    )
    dates = sorted({str(one.conditions["date"]) for one in shown if "date" in one.conditions})
    committed = sorted({str(one.conditions["committed"]) for one in shown if "committed" in one.conditions})
    when = [f"measured {_span(dates)}"] if dates else []
    when += [f"figures committed {_span(committed)}"] if committed else []
    where = " and ".join(machines)
    return [
        f"{where}; {', '.join(when) or 'date not recorded'}",
        "Bar: fastest round. Whisker: down to the slowest round. GEMM: the machine's own matrix product, same rounds.",
    ]


def _span(dates: Sequence[str]) -> str:
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def _label(case: dict[str, Any], name: str) -> str:
    figures = case["contenders"][name]
    parts = [f"{figures['rate']:,.0f}" if figures["rate"] >= 100 else f"{figures['rate']:.3g}"]
    if "share_of_ceiling" in figures:
        parts.append(f"{figures['share_of_ceiling']:.0%} of GEMM")
    if "ndcg@10" in figures:
        parts.append(f"NDCG@10 {figures['ndcg@10']:.4f}, {figures['peak_tree_mib'] / 1024:.2f} GiB")
    return " · ".join(parts)
