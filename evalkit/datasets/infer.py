"""Infer the config of a BEIR-format folder: its split from the file names, its counts from a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from evalkit.config.settings import DatasetConfig
from evalkit.datasets.folder import load_folder
from evalkit.datasets.survey import survey
from evalkit.errors import DatasetError

SPLITS: Final = ("test", "dev", "validation", "train")
"""If a folder has judgements of several splits, the first of these is chosen, or else the first by name."""
UNKNOWN: Final = "unknown"
"""The language, if it is not given."""


class Fact(NamedTuple):
    """One setting's value and its source; the source is empty if the value is assumed."""

    value: Any
    source: str = ""


def infer(folder: Path, *, name: str, language: str | None = None, split: str | None = None) -> dict[str, Fact]:
    """Return a folder's settings, inferred from its file names; no file is read.

    Raises DatasetError if the folder has no judgements, or none of `split`.
    """
    root = folder.expanduser().absolute()
    found = sorted({path.name.partition(".")[0] for path in root.glob("qrels/*.tsv*")})
    if not found:
        there = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else ["no such folder"]
        msg = f"{root}: got {', '.join(there) or 'an empty folder'}, wanted a BEIR-format folder: corpus.jsonl"
        raise DatasetError(f"{msg}, queries.jsonl and qrels/SPLIT.tsv, each plain or gzipped")
    chosen = split or next((known for known in SPLITS if known in found), found[0])
    if chosen not in found:
        msg = f"{root}: got judgements of {', '.join(found)}, wanted those of split {chosen!r}"
        raise DatasetError(f"{msg}; choose one of them")
    others = [other for other in found if other != chosen]
    read = f"qrels/{chosen}.tsv" + (f"; also there: {', '.join(others)}" if others else "")
    return {
        "name": Fact(name, "as you said" if name != root.name else "the folder's name"),
        "sources": Fact(["folder"], "the folder"),
        "path": Fact(str(root), "the folder"),
        "split": Fact(chosen, read),
        "language": Fact(UNKNOWN) if language is None else Fact(language, "as you said"),
        "drop_self": Fact(value=False),
        "main_metric": Fact("ndcg@10"),
    }


def measured(facts: Mapping[str, Fact], *, cache_dir: Path) -> dict[str, Fact]:
    """Read the data once; return the settings with counts, checksum, lengths and overlapping ids added.

    Raises DatasetError if a file is missing or malformed.
    """
    settings = {name: fact.value for name, fact in facts.items()}
    config = DatasetConfig(**{**settings, "sources": ("folder",)})
    dataset = load_folder(config)
    characters, asked, own = 0, {query.id for query in dataset.queries}, 0
    for document in dataset.corpus.documents():
        characters += len(document.joined())
        own += document.id in asked
    judged = frozenset(document_id for grades in dataset.qrels.values() for document_id in grades)
    found = survey(
        dataset.corpus,
        shard_tokens=64_000_000,
        max_document_tokens=300,
        cache_dir=cache_dir,
        name=dataset.name,
        judged_ids=judged,
    )
    overlap = f"assumed; {own} of the query ids are document ids too, and true drops such hits" if own else ""
    counts = {
        "documents": found.documents,
        "queries": len(dataset.queries),
        "judgements": sum(map(len, dataset.qrels.values())),
        **({"missing": len(found.missing)} if found.missing else {}),
    }
    return {
        **facts,
        "drop_self": Fact(value=False, source=overlap or "no query id is a document id"),
        "counts": Fact(counts, "counted"),
        "checksum": Fact(found.checksum, "XXH3 of ids, titles and texts in order"),
        "mean_characters": Fact(round(characters / found.documents), "counted; for forecasts"),
    }


def lines(facts: Mapping[str, Fact]) -> list[str]:
    """Return one line with the settings that were read and one with those that were assumed."""
    shown = [(key, fact) for key, fact in facts.items() if key not in ("name", "sources")]
    read = [f"{key} {_shown(fact.value)} ({fact.source})" for key, fact in shown if fact.source]
    assumed = [f"{key} {_shown(fact.value)}" for key, fact in shown if not fact.source]
    return [f"read: {', '.join(read)}", f"assumed (no file says so): {', '.join(assumed) or 'nothing'}"]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number:,} {name}" for name, number in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
