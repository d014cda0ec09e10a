"""The plot of quality against storage, with the systems that no other beats in both joined by a line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from evalkit.compare import storage
from evalkit.errors import ConfigError, ScoreError
from evalkit.paths import write_whole
from evalkit.results import CellScores

FORMATS = (".svg", ".png", ".pdf")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points (bytes, quality) that none beats in both, by bytes.

    >>> front([(256, 0.60), (128, 0.59), (192, 0.58)])
    [1, 0]
    """
    best, kept = float("-inf"), []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if points[place][1] > best:
            best = points[place][1]
            kept.append(place)
    return kept


def draw(cells: Sequence[CellScores], path: Path) -> None:
    """Write the plot, one panel per dataset; the same runs give the same bytes.

    Raises ConfigError for another format, ScoreError when no run has counted its vectors.
    """
    if path.suffix not in FORMATS:
        msg = f"plot {path}: got format {path.suffix!r}, wanted one of {', '.join(FORMATS)}"
        raise ConfigError(msg)
    sized = [(cell, size) for cell in cells if (size := storage(cell)) is not None and size.per_passage is not None]
    if not sized:
        msg = "no run among these counted its vectors; wanted one with dims, run by this evalkit (evalkit run model=…)"
        raise ScoreError(msg)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    datasets = sorted({cell.dataset for cell, _ in sized})
    with mpl.rc_context({"svg.hashsalt": "evalkit", "font.size": 9}):
        figure, axes = plt.subplots(1, len(datasets), figsize=(4.6 * len(datasets), 3.6), squeeze=False)
        for axis, dataset in zip(axes[0], datasets, strict=True):
            here = [
                (size.per_passage / 1000, cell.metrics[cell.main_metric], cell)
                for cell, size in sized
                if cell.dataset == dataset and size.per_passage is not None
            ]
            points = [(kilobytes, quality) for kilobytes, quality, _ in here]
            best = front(points)
            axis.plot([points[place][0] for place in best], [points[place][1] for place in best], color="#1f5f8b")
            axis.scatter(*zip(*points, strict=True), color="#1f5f8b", zorder=3)
            for kilobytes, quality, cell in here:
                label = f"{cell.model}-{cell.dim}"
                axis.annotate(label, (kilobytes, quality), textcoords="offset points", xytext=(6, 5))
            axis.set(title=dataset, xlabel="kB per passage", ylabel=here[0][2].main_metric)
            axis.margins(0.25)
            axis.grid(alpha=0.3)
        figure.tight_layout()
        data = io.BytesIO()
        figure.savefig(
            data,
            format=path.suffix[1:],
            metadata={".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix),
        )
        plt.close(figure)
    write_whole(path, data.getvalue())
