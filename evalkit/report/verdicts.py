"""The verdicts on a run file whose settings are not known, beyond the dataset it was scored on."""

from __future__ import annotations

from collections.abc import Mapping

from evalkit import published
from evalkit.config import RunConfig
from evalkit.report.sheets import fixed
from evalkit.report.table import said, signed
from evalkit.types import Dataset

KNOWN = ("split", "drop_self")
"""The published settings that scoring itself decides; the others are those of whoever made the run."""


def lines(config: RunConfig | None, dataset: Dataset, means: Mapping[str, float]) -> list[str]:
    """Return a line per published score of a system on this dataset; without a system, who has published any."""
    if config is None:
        found = {score.system for score in published.published_scores() if score.dataset == dataset.name}
        known = f": {', '.join(sorted(found))}" if found else " of nobody"
        return [f"published here are scores{known}; name the run's system for a verdict (model=NAME, dim=N)"]
    name = config.model.name
    said_of = []
    for dim in config.dims:
        for metric, value in means.items():
            for score in published.find(name, dim, dataset.name, metric):
                settings = {key: wanted for key, wanted in score.settings.items() if key in KNOWN}
                asked = score._replace(settings=settings)
                differs = published.differing(asked, {"drop_self": dataset.drop_self}, dataset.split)
                verdict = published.verdict(value, score, declared_loss=score.index_loss, differs=differs)
                system = name if dim is None else f"{name} at dim {dim}"
                said_of.append(
                    f"{metric}\t{said(verdict)} ({score.source} {fixed(score.value, score.digits)} for {system}, "
                    f"Δ {signed(value - score.value, 4)})"
                )
    return said_of or [f"nothing is published for {name} on {dataset.name}"]
