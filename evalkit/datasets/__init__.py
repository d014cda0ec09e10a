"""Datasets: a config goes in; documents, queries, judgements and rules come out, checked against published counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from evalkit.config import DatasetConfig
from evalkit.datasets.folder import judgement_line, load_folder
from evalkit.datasets.irds import load_ir_datasets
from evalkit.datasets.survey import Survey
from evalkit.errors import DatasetError
from evalkit.types import Dataset

__all__ = ["SOURCES", "check", "judged_ids", "load"]


def _load_demo(config: DatasetConfig) -> Dataset:
    from evalkit.datasets.demo import load_demo

    if config.demo is None:
        msg = f"dataset {config.name}: got no size for the demo, wanted documents, queries and seed"
        raise DatasetError(f"{msg}; set dataset.demo.documents, .queries and .seed")
    return load_demo(config.demo, name=config.name, split=config.split)


SOURCES: Final[Mapping[str, Callable[[DatasetConfig], Dataset]]] = {
    "folder": load_folder,
    "ir_datasets": load_ir_datasets,
    "demo": _load_demo,
}
"""Where a dataset comes from: `dataset.source` → the function that loads it."""


def load(config: DatasetConfig) -> Dataset:
    """Load a dataset's queries, judgements and rules; its documents stay where they are until asked for.

    A folder given by `config.path` comes before any other source. What can be checked without the corpus is checked:
    that every judged query is there, and the published numbers of queries and judgements.

    Raises:
        DatasetError: The dataset cannot be had or read, or (unless `config.verify` is false) deviates.

    """
    dataset = SOURCES["folder" if config.path else config.source](config)
    _accept(config, _deviations(config, dataset, None))
    return dataset


def judged_ids(dataset: Dataset) -> frozenset[str]:
    """Return the id of every document that is judged for any query."""
    return frozenset(document_id for judged in dataset.qrels.values() for document_id in judged)


def check(dataset: Dataset, survey: Survey, config: DatasetConfig) -> tuple[str, ...]:
    """Return every way in which a dataset deviates from its published counts or from itself, one line each.

    Raises:
        DatasetError: There is one and `config.verify` is true; a deviation is only recorded when it was asked for.

    """
    return _accept(config, _deviations(config, dataset, survey))


def _accept(config: DatasetConfig, deviations: Iterator[str]) -> tuple[str, ...]:
    found = []
    for deviation in deviations:
        if config.verify:
            msg = f"{deviation}; repair the data, or accept and record the deviation with dataset.verify=false"
            raise DatasetError(msg)
        found.append(deviation)
    return tuple(found)


def _deviations(config: DatasetConfig, dataset: Dataset, survey: Survey | None) -> Iterator[str]:
    """Yield deviations; those of documents only once the corpus has been surveyed."""
    known = {query.id for query in dataset.queries}
    if unknown := [query_id for query_id in dataset.qrels if query_id not in known]:
        where = _where(config, dataset, unknown[0], next(iter(dataset.qrels[unknown[0]])))
        yield (
            f"dataset {dataset.name}: got judgements of {len(unknown)} unknown queries (the first is {unknown[0]!r}, "
            f"{where}), wanted every judged query among the queries"
        )
    if survey and survey.missing:
        missing = frozenset(survey.missing)
        query_id, document_id = next(
            (query_id, document_id)
            for query_id, judged in dataset.qrels.items()
            for document_id in judged
            if document_id in missing
        )
        yield (
            f"dataset {dataset.name}: got judgements of {len(missing)} documents that the corpus has not (the first is "
            f"{document_id!r}, {_where(config, dataset, query_id, document_id)}), wanted every judged document in it"
        )
    judgements = sum(map(len, dataset.qrels.values()))
    for measured, published, what in (
        (len(dataset.queries), config.counts.queries, "queries with judgements"),
        (judgements, config.counts.judgements, "judgements"),
        (survey.documents if survey else None, config.counts.documents, "documents"),
    ):
        if measured is not None and published is not None and measured != published:
            yield f"dataset {dataset.name}: got {measured:,} {what}, wanted {published:,} as published"


def _where(config: DatasetConfig, dataset: Dataset, query_id: str, document_id: str) -> str:
    """Say where a judgement stands: its line in a folder's file, else its query."""
    if config.path:
        return judgement_line(Path(config.path).expanduser(), dataset.split, query_id, document_id)
    return f"judged for query {query_id!r}"
