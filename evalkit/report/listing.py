"""The tables of `evalkit ls`: models, datasets, settings and other names, and finished cells."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit import datasets
from evalkit.bm25.analyzers import ANALYZERS, LUCENE_DEPARTURES
from evalkit.config.compose import all_settings
from evalkit.config.files import settings_in, used
from evalkit.config.settings import (
    LISTING,
    CheckpointSource,
    DatasetConfig,
    configs_dir,
    from_mapping,
    group_files,
    named,
)
from evalkit.errors import ConfigError, nearest
from evalkit.models.checkpoint import on_disk
from evalkit.operations.rates import corpus_tokens
from evalkit.report.grid import Column, Grid, Line
from evalkit.report.rounding import ABSENT, count, grouped
from evalkit.report.table import rows, terminal
from evalkit.scoring import reruns
from evalkit.storage import results

LISTINGS = ("models", "datasets", "analyzers", "engines", "searches", "rerankers", "experiments", "settings", "runs")


def listing(what: str, *, results_dir: Path, wide: bool = False) -> Grid:
    """Return the table that `evalkit ls WHAT` prints. Raises ConfigError for an unknown list."""
    if what not in LISTINGS:
        msg = f"ls {what!r} unknown; {nearest(what, LISTINGS)}"
        raise ConfigError(msg)
    tables: dict[str, Callable[[], Grid]] = {
        "models": lambda: _models(wide=wide),
        "datasets": lambda: _datasets(wide=wide),
        "analyzers": _analyzers,
        "engines": _engines,
        "experiments": _experiments,
        "settings": _settings,
        "runs": lambda: _runs(results_dir, wide=wide),
    }
    return tables[what]() if what in tables else _group(next(group for group, name in LISTING.items() if name == what))


def _runs(results_dir: Path, *, wide: bool) -> Grid:
    """Return all finished cells, with the verdicts that a report gives."""
    cells = results.read_all(results_dir)
    return terminal(rows(cells, deviations=reruns.measure(cells, results_dir)[0]), wide=wide)


def _experiments() -> Grid:
    """Return every experiment with its description: the comments at the top of its file, up to the command."""
    lines = []
    for name, path in group_files("experiment").items():
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        about = itertools.takewhile(lambda line: not line.startswith("evalkit "), comments)
        lines.append(Line((name, " ".join(line for line in about if not line.startswith("@")))))
    return Grid((Column("name", "name"), Column("what it is", "text")), lines)


def _group(group: str) -> Grid:
    """Return the configs of a group with their main settings."""
    shown = {
        "reranker": ("parameters", "max_tokens", "dtype", "licence"),
        "search": ("nbits", "n_ivf_probe", "n_full_scores", "kmeans_iterations", "seed"),
    }[group]
    lines = []
    for name, path in group_files(group).items():
        values = settings_in(path, group)
        lines.append(Line((name, *(_short(values.get(key)) for key in shown))))
    return Grid((Column("name", "name"), *(Column(key, moves=1) for key in shown)), lines)


def _models(*, wide: bool) -> Grid:
    """Return all systems; with several checkpoints, revision and status of each are listed in the order of the dims."""
    columns = (
        *(Column("system", "name"), Column("kind"), Column("dims"), Column("parameters", "number", moves=1)),
        Column("on disk"),
        *(Column(name, moves=3, wide=True) for name in ("query tokens", "document tokens", "dtype", "revision")),
        Column("licence", moves=2, wide=True),
        Column("config", moves=4, wide=not _has_own_configs("model")),
    )
    lines = []
    for name, path in group_files("model").items():
        values = settings_in(path, "model")
        with used(path, "model"):
            lines.append(_model(name, values, _config(path, wide=wide)))
    return Grid(columns, lines, wide)


def _model(name: str, values: Mapping[str, Any], config: str) -> Line:
    found: dict[int, dict[str, Any]] = values.get("checkpoints", {})
    sources = [CheckpointSource(**source) for source in found.values()]
    cells = (
        ", ".join(map(str, found)),
        f"{grouped(values['parameters'] / 1e6, 1)} M" if values.get("parameters") else "",
        _on_disk(sources),
        _length(values.get("query")),
        _length(values.get("document")),
        values.get("dtype"),
        ", ".join(_revision(source) for source in sources),
        values.get("licence"),
        config,
    )
    return Line((name, values["kind"], *(cell or ABSENT for cell in cells)))


def _on_disk(sources: Sequence[CheckpointSource]) -> str:
    """Return for each checkpoint whether it is on disk; one word if all have the same status."""
    found = ["yes" if on_disk(source) else "no" for source in sources]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def _datasets(*, wide: bool) -> Grid:
    """Return all datasets with official counts; tokens are estimated from MTEB's mean lengths, at most 300 each."""
    columns = (
        *(Column("name", "name"), Column("documents", "number"), Column("queries", "number")),
        *(Column("language", moves=2), Column("metric", moves=3), Column("tokens, about", "number", moves=1)),
        *(Column("on disk"), Column("licence", moves=4, wide=True)),
        Column("config", moves=5, wide=not _has_own_configs("dataset")),
    )
    lines = []
    for name, path in group_files("dataset").items():
        values = settings_in(path, "dataset")
        with used(path, "dataset"):
            lines.append(_dataset(name, values, _config(path, wide=wide)))
    return Grid(columns, lines, wide)


def _dataset(name: str, values: Mapping[str, Any], where: str) -> Line:
    lacking = {"folder": "path", "ir_datasets": "ir_datasets_id"}.get(" ".join(values["sources"]))
    if lacking is not None and not values.get("path") and not values.get(lacking):
        known = (values["language"], values["main_metric"], ABSENT, f"wants dataset.{lacking}", ABSENT, where)
        return Line((name, ABSENT, ABSENT, *known))
    config: DatasetConfig = from_mapping(DatasetConfig, named(values), where="dataset")
    documents = config.counts.documents or (config.demo.documents if config.demo else None)
    queries = config.counts.queries or (config.demo.queries if config.demo else None)
    tokens = ABSENT
    if documents and config.mean_characters:
        tokens = _millions(corpus_tokens(documents, config.mean_characters, config.language))
    what = (name, _short(documents), _short(queries), config.language, config.main_metric, tokens)
    return Line((*what, datasets.on_disk(config) or "no", config.licence or ABSENT, where))


def _millions(tokens: float) -> str:
    return f"{grouped(tokens / 1e6, 1)} M" if tokens >= 1e6 else f"{count(tokens / 1e3)} k"


def _analyzers() -> Grid:
    """Return the analyzers of BM25 and how each departs from Lucene's."""
    columns = (Column("analyzer"), Column("departure from Lucene", "text", moves=1))
    return Grid(columns, [Line((name, LUCENE_DEPARTURES[name] or "none")) for name in ANALYZERS])


def _has_own_configs(group: str) -> bool:
    """Whether the user has configs of this group in addition to evalkit's; their files are then always listed."""
    return any(not path.is_relative_to(configs_dir()) for path in group_files(group).values())


def _config(path: Path, *, wide: bool) -> str:
    """Return the file of the user's own config; for one of evalkit's, "evalkit" if `wide`, else a dash."""
    if path.is_relative_to(configs_dir()):
        return "evalkit" if wide else ABSENT
    return str(path)


def _engines() -> Grid:
    """Return the engines, what they run on, and what must be installed."""
    columns = (
        *(Column("name", "name"), Column("device", moves=2), Column("batch tokens", "number", moves=3)),
        *(Column("workers", moves=1), Column("installed"), Column("what it is", "text", moves=4)),
    )
    lines = []
    for name, path in group_files("engine").items():
        values = settings_in(path, "engine")
        there = name != "ray" or importlib.util.find_spec("ray") is not None
        cells = (
            *(_short(values.get(key)) for key in ("device", "batch_tokens")),
            "one process" if name == "local" else _short(values.get("workers")).replace(ABSENT, "all"),
            "yes" if there else f"no: pip install 'evalkit[{name}]'",
            path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "),
        )
        lines.append(Line((name, *cells)))
    return Grid(columns, lines)


def _length(rules: dict[str, Any] | None) -> str:
    """Return a side's length in tokens; if it depends on the dataset, the shortest and the longest."""
    lengths = (rules or {}).get("max_tokens", "")
    return f"{min(lengths.values())}–{max(lengths.values())}" if isinstance(lengths, dict) else str(lengths)


def _revision(source: CheckpointSource) -> str:
    if source.repo is None:
        return "in the package" if source.package else "a folder"
    return source.revision[:8] if source.revision else "not pinned"


def _short(value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items() if number is not None)
    return str(value)


def _settings() -> Grid:
    """Return every setting of the command line with the values that it takes."""
    lines = [Line((key, takes)) for key, takes in all_settings().items()]
    return Grid((Column("setting"), Column("takes", "text", moves=1)), lines)
