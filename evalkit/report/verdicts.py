"""The verdicts on a run file, given the settings of its dataset and those that the user declares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evalkit.analysis import comparability
from evalkit.config.settings import DatasetConfig, EncoderConfig, RunConfig
from evalkit.models import weights
from evalkit.report.rounding import fixed, signed
from evalkit.report.table import verdict_text
from evalkit.scoring import published
from evalkit.storage import cell_config, keys, results
from evalkit.types import Dataset

DECIDED_BY_SCORING = ("split", "drop_self", "first_stage")
"""The published settings that scoring itself decides. Other settings count only if the user declares them.

A run file counts as the result of a search by the named system, without a first stage.
"""


def lines(
    config: RunConfig | None,
    dataset: Dataset | DatasetConfig,
    means: Mapping[str, float],
    *,
    declared: Collection[str] = (),
    self_hits: int | None = None,
    deviations: Sequence[str] = (),
) -> list[str]:
    """Return one line per published score of a system on this dataset; without a system, name the published systems.

    `declared` names the settings of `config` that the user declares for the run. `self_hits` counts the file's hits
    whose id is the query's own. A file without any may be the result of a rule that drops them, so
    a published score without that rule is then PROTOCOL-DIFFERS. So is every score on a dataset with `deviations`.
    """
    if config is None:
        found = {score.system for score in published.published_scores() if score.dataset == dataset.name}
        if not found:
            return ["no scores are published for this dataset"]
        systems = ", ".join(sorted(found))
        return [f"scores are published for {systems}; name the run's system for a verdict (model=NAME, dim=N)"]
    name = config.model.name
    protocol = {**cell_config.plain(config.model), "drop_self": dataset.drop_self}
    stated = {key: value for key, value in results.flat(protocol).items() if _is_known(key, declared)}
    kept_none = self_hits if not dataset.drop_self else None
    verdict_lines = []
    for dim in config.dims:
        for metric, value in means.items():
            for score in published.find(name, dim, dataset.name, metric):
                settings = {key: wanted for key, wanted in score.settings.items() if _is_known(key, declared)}
                checkable = score._replace(settings=settings)
                settings_differ = published.differing(checkable, protocol, dataset.split, self_hits=kept_none)
                changed = comparability.edited_settings(
                    stated, score, system=name, dataset=dataset.name, language=dataset.language
                )
                differs = (*deviations, *_other_system(config, dim), *settings_differ, *changed)
                verdict = published.verdict(value, score, declared_loss=score.index_loss, differs=differs)
                printed = f"{score.version or score.source} {fixed(score.value, score.digits)}"
                delta = signed(value - score.value, 4)
                verdict_lines.append(
                    f"{metric}\t{verdict_text(verdict)} ({printed} for {keys.label(name, dim)}, Δ {delta})"
                )
    return verdict_lines or [f"nothing is published for {name} on {dataset.name}"]


def _other_system(config: RunConfig, dim: int | None) -> tuple[str, ...]:
    """Return declared settings that make the run that of another system: a re-ranker, or other weights."""
    reranked = () if config.reranker is None else (f"re-ranked by {config.reranker.name}, published without",)
    model = config.model
    source = model.checkpoints.get(str(dim)) if isinstance(model, EncoderConfig) else None
    return (*reranked, *weights.declared_otherwise(model.name, dim, source))


def _is_known(setting: str, declared: Collection[str]) -> bool:
    """Whether a setting is decided by scoring or declared, by its own name or that of its group."""
    return setting in DECIDED_BY_SCORING or any(f"{setting}.".startswith(f"{name}.") for name in declared)
