"""What can be run and what has been run, as tables for a terminal."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from evalkit import datasets
from evalkit.bm25.analyzers import ANALYZERS, LUCENE_DEPARTURES
from evalkit.config.compose import all_settings
from evalkit.config.settings import CheckpointSource, DatasetConfig, configs_dir, from_mapping, group_names
from evalkit.errors import ConfigError, nearest
from evalkit.models.checkpoint import on_disk
from evalkit.report.table import ABSENT, rows, terminal
from evalkit.storage import results

LISTINGS = ("models", "datasets", "analyzers", "engines", "rerankers", "experiments", "settings", "runs")

CHARACTERS_PER_TOKEN = {"ja": 1.6, "ko": 2.0, "zh": 1.6}
"""A rough yield of a multilingual subword vocabulary; 4 for alphabets. For estimates in a list, nothing else."""


def estimated_tokens(documents: int, mean_characters: int, language: str, *, max_document_tokens: int = 300) -> float:
    """Return a rough number of tokens of a corpus, from MTEB's mean lengths.

    >>> estimated_tokens(1000, 400, "en")
    100000.0
    """
    return documents * min(mean_characters / CHARACTERS_PER_TOKEN.get(language, 4), max_document_tokens)


def listing(what: str, *, results_dir: Path) -> Table:
    """Return the list that `evalkit ls WHAT` prints. Raises ConfigError when there is no such list."""
    if what not in LISTINGS:
        msg = f"ls {what!r} unknown; {nearest(what, LISTINGS)}"
        raise ConfigError(msg)
    if what == "runs":
        return terminal(rows(results.read_all(results_dir)))
    if what == "settings":
        return _settings()
    made: dict[str, Callable[[], Table]] = {
        "models": _models,
        "datasets": _datasets,
        "analyzers": _analyzers,
        "engines": _engines,
    }
    return made[what]() if what in made else _group(what.removesuffix("s"))


def _group(group: str) -> Table:
    shown = {
        "reranker": ("parameters", "max_tokens", "dtype", "licence"),
        "experiment": (),
    }[group]
    table = Table("name", *shown, box=None, pad_edge=False)
    for name in group_names(group):
        values = yaml.safe_load((configs_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        table.add_row(name, *(_short(values.get(key)) for key in shown))
    return table


def _models() -> Table:
    """Return every system; those with checkpoints by dim give a revision and a status for each, in the dims' order."""
    columns = (
        "system",
        "kind",
        "dims",
        "parameters",
        "query tokens",
        "document tokens",
        "dtype",
        "revision",
        "on disk",
        "licence",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for name in group_names("model"):
        values: dict[str, Any] = yaml.safe_load((configs_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
        found: dict[int, dict[str, str]] = values.get("checkpoints", {})
        sources = [CheckpointSource(**source) for source in found.values()]
        cells = (
            ", ".join(map(str, found)),
            f"{values['parameters'] / 1e6:,.1f} M" if values.get("parameters") else "",
            _length(values.get("query")),
            _length(values.get("document")),
            values.get("dtype"),
            ", ".join(_revision(source) for source in sources),
            ", ".join("yes" if on_disk(source) else "no" for source in sources),
            values.get("licence"),
        )
        table.add_row(name, values["kind"], *(cell or "–" for cell in cells))
    return table


def _datasets() -> Table:
    """Return every dataset with its official counts; tokens are estimated from MTEB's mean lengths, cut at 300."""
    columns = ("name", "documents", "queries", "language", "metric", "tokens, about", "on disk", "licence")
    table = Table(*columns, box=None, pad_edge=False)
    for name in group_names("dataset"):
        values = yaml.safe_load((configs_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8"))
        if values["sources"] == ["folder"]:
            table.add_row(name, "–", "–", values["language"], values["main_metric"], "–", "wants dataset.path", "–")
            continue
        config: DatasetConfig = from_mapping(DatasetConfig, values, where="dataset")
        documents = config.counts.documents or (config.demo.documents if config.demo else None)
        queries = config.counts.queries or (config.demo.queries if config.demo else None)
        tokens = None
        if documents and config.mean_characters:
            tokens = estimated_tokens(documents, config.mean_characters, config.language)
        cells = (_short(documents), _short(queries), config.language, config.main_metric)
        table.add_row(
            name,
            *cells,
            "–" if tokens is None else f"{tokens / 1e6:,.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:,.0f} k",
            datasets.on_disk(config) or "no",
            config.licence,
        )
    return table


def _analyzers() -> Table:
    """Return what BM25 can analyse texts with, and where that is not what Lucene does."""
    table = Table("analyzer", "departure from Lucene", box=None, pad_edge=False)
    for name in ANALYZERS:
        table.add_row(name, LUCENE_DEPARTURES[name])
    return table


def _engines() -> Table:
    """Return the engines with what they run on, and what has to be installed for them."""
    table = Table("name", "device", "batch_tokens", "workers", "installed", "what it is", box=None, pad_edge=False)
    for name in group_names("engine"):
        text = (configs_dir() / "engine" / f"{name}.yaml").read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        there = name != "ray" or importlib.util.find_spec("ray") is not None
        table.add_row(
            name,
            *(_short(values.get(key)) for key in ("device", "batch_tokens")),
            "one process" if name == "local" else _short(values.get("workers")).replace(ABSENT, "all"),
            "yes" if there else f"no: pip install 'evalkit[{name}]'",
            text.partition("\n")[0].removeprefix("# "),
        )
    return table


def _length(rules: dict[str, Any] | None) -> str:
    """Show a side's length in tokens, or the shortest and the longest where datasets differ."""
    lengths = (rules or {}).get("max_tokens", "")
    return f"{min(lengths.values())}–{max(lengths.values())}" if isinstance(lengths, dict) else str(lengths)


def _revision(source: CheckpointSource) -> str:
    if source.repo is None:
        return "in the package" if source.package else "a folder"
    return source.revision[:8] if source.revision else "not pinned"


def _short(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:,}" for name, number in value.items() if number is not None)
    return str(value)


def _settings() -> Table:
    table = Table("setting", "takes", box=None, pad_edge=False)
    for key, takes in all_settings().items():
        table.add_row(key, takes)
    return table
