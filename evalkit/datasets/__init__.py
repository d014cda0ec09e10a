"""Load a dataset by its config: documents, queries, judgements and rules, verified against published counts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from evalkit.config.files import settings_in
from evalkit.config.settings import DatasetConfig, SourceName, configs_dir, from_mapping, group_files
from evalkit.datasets import hub, irds
from evalkit.datasets.folder import judgement_line, load_folder, qrels_file
from evalkit.datasets.judged import other_spelling
from evalkit.datasets.learned import Learned
from evalkit.datasets.survey import Survey
from evalkit.errors import ChangedError, DatasetError, DeviationError, Tried
from evalkit.types import Corpus, Dataset, Document

__all__ = ["SOURCES", "check", "judged_ids", "load", "load_read", "on_disk", "source_names"]

log = logging.getLogger(__name__)

Read = TypeVar("Read")

GRADES: Final = range(-10, 101)
"""Valid relevance grades. TREC's go from -2 to 4; a number outside this range comes from another column."""


def _load_demo(config: DatasetConfig) -> Dataset:
    from evalkit.datasets.demo import load_demo

    if config.demo is None:
        msg = f"dataset {config.name}: got no size for the demo, wanted documents, queries and seed"
        raise DatasetError(f"{msg}; set dataset.demo.documents, .queries and .seed")
    return load_demo(config.demo, name=config.name, split=config.split)


def _load_mirror(config: DatasetConfig) -> Dataset:
    if config.mirror is None:
        msg = f"dataset {config.name}: got no mirror, wanted repo, corpus, queries and qrels of a copy on the Hub"
        raise DatasetError(f"{msg}; set dataset.mirror, or choose other dataset.sources")
    dataset = hub.load_hub(dataclasses.replace(config, hub=config.mirror))
    return dataclasses.replace(dataset, source=dataset.source.replace("hub ", "mirror ", 1))


SOURCES: Final[Mapping[str, Callable[[DatasetConfig], Dataset]]] = {
    "folder": load_folder,
    "ir_datasets": irds.load_ir_datasets,
    "hub": hub.load_hub,
    "mirror": _load_mirror,
    "demo": _load_demo,
}
"""The function that loads a dataset from each source of `dataset.sources`."""


def load(config: DatasetConfig, *, with_corpus: bool = True) -> Dataset:
    """Load a dataset's queries, judgements and rules. Its documents are read only when they are needed.

    A folder given by `config.path` is the only source. Otherwise `config.sources` are tried in order, and a failure is
    logged with its reason. With `with_corpus`, a source also fails if its documents can be neither found nor fetched;
    scoring a run file needs no documents. The parts that need no corpus are verified: all judged queries exist, grades
    are valid, and the numbers of queries and judgements are the published ones. A source that can be read but deviates
    raises an error, because trying the next one would hide the difference.

    Raises:
        DatasetError: The dataset cannot be obtained or read, or (unless `config.verify` is false) deviates.

    """
    several = len(source_names(config)) > 1
    return load_read(config, lambda dataset: dataset.corpus.fingerprint() if with_corpus and several else None)[0]


def load_read(config: DatasetConfig, read: Callable[[Dataset], Read]) -> tuple[Dataset, Read]:
    """Load a dataset as `load` does, and call `read` with it; return the dataset and the result of `read`.

    If `read` raises DatasetError because the documents of a source are damaged, the next source is tried.

    Raises:
        DatasetError: As `load` does, and if `read` raises it for the last source.

    """
    names = source_names(config)
    reasons: list[DatasetError] = []
    unlogged: dict[SourceName, DatasetError] = {}
    for name in names:
        try:
            _refuse_relabelled(config, name)
            dataset = SOURCES[name](config)
            for failed, reason in unlogged.items():  # if every source fails, the error names the reasons
                log.warning("dataset %s: source %s failed, the next one is tried: %s", config.name, failed, reason)
            unlogged.clear()
            if config.template == "text":
                dataset = dataclasses.replace(dataset, corpus=TitlelessCorpus(dataset.corpus))
            _accept(config, dataset, _deviations(config, dataset, None))
            return dataset, read(dataset)
        except (DeviationError, ChangedError):
            raise
        except DatasetError as error:
            reasons.append(error)
            unlogged[name] = error
    if len(reasons) == 1:
        raise reasons[0]
    tried = [error.tried for error in reasons if error.tried is not None]
    if len(tried) == len(reasons):
        whys = dict.fromkeys(one.why for one in tried)
        what = f"dataset {config.name}: {', then '.join(one.what for one in tried)}"
        raise DatasetError.unobtainable(
            Tried(what, "; ".join(whys), f"{tried[-1].remedy} (also: evalkit fetch --bundle)")
        )
    msg = f"dataset {config.name}: got it from none of its sources, wanted one of {', '.join(names)}"
    raise DatasetError(f"{msg}; {'; '.join(f'{name}: {reason}' for name, reason in zip(names, reasons, strict=True))}")


def _refuse_relabelled(config: DatasetConfig, source: SourceName) -> None:
    """Raise DatasetError if only the name of the split was changed, and the source would give the same judgements."""
    path = group_files("dataset").get(config.name)
    if path is None or source not in ("hub", "mirror", "demo"):
        return
    own = settings_in(path, "dataset")
    copy = getattr(config, source)
    fixed = source == "demo" or (copy is not None and copy.split and copy.split == (own.get(source) or {}).get("split"))
    if fixed and config.split != own.get("split"):
        msg = f"dataset {config.name}: got split {config.split!r}, wanted {own.get('split')!r}, its only one"
        other = "" if source == "demo" else f", or set dataset.{source}.split too"
        raise DatasetError(f"{msg}; remove dataset.split{other}")


@dataclasses.dataclass(frozen=True)
class TitlelessCorpus:
    """A corpus without its titles, for datasets whose template is `text`."""

    corpus: Corpus

    def fingerprint(self) -> str:
        """Return the corpus's fingerprint, marked as one without titles."""
        return f"{self.corpus.fingerprint()}-titleless"

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield the documents with empty titles."""
        return (document._replace(title="") for document in self.corpus.documents(start, stop))

    def where(self, index: int) -> str:
        """Return the place of the document at this index, for messages."""
        return self.corpus.where(index)


def source_names(config: DatasetConfig) -> tuple[SourceName, ...]:
    """Return the sources of a dataset in the order in which they are tried."""
    return ("folder",) if config.path else config.sources


def on_disk(config: DatasetConfig) -> SourceName | None:
    """Return the first source that has all documents on disk, or None. Nothing is fetched or read."""
    for name in source_names(config):
        found = {
            "folder": config.path is not None and Path(config.path).is_dir(),
            "ir_datasets": config.ir_datasets_id is not None and irds.stored(config.ir_datasets_id),
            "hub": config.hub is not None and hub.stored(config.hub, config.split),
            "mirror": config.mirror is not None and hub.stored(config.mirror, config.split),
            "demo": True,
        }
        if found[name]:
            return name
    return None


def judged_ids(dataset: Dataset) -> frozenset[str]:
    """Return the ids of all judged documents."""
    return frozenset(document_id for judged in dataset.qrels.values() for document_id in judged)


def deviations(
    dataset: Dataset, survey: Survey | None, config: DatasetConfig, *, learned: Learned | None = None
) -> tuple[str, ...]:
    """Return a line for each deviation of a dataset from its published counts and checksum, and for each contradiction.

    Contradictions are, for example, judgements of unknown queries. Without a survey, nothing is said of the documents.
    `learned` is the checksum of the corpus's first complete read; it is used if the config has no checksum. What the
    command line says in place of published facts is accepted, but proves nothing: where a dataset has the name of a
    published one, deviations from that one's own facts are returned too.

    Raises:
        DatasetError: There is a deviation from the config's own facts, and `config.verify` is true; with false, these
            are only returned, as are those from the published dataset of this name.

    """
    found = _accept(config, dataset, _deviations(config, dataset, survey, learned))
    return (*found, *(line for line in _from_published(config, dataset, survey) if line not in found))


def _from_published(config: DatasetConfig, dataset: Dataset, survey: Survey | None) -> Iterator[str]:
    """Yield the deviations from the facts of the published dataset with this name, if there is one.

    These facts are those of its packaged config, like the weights of a system.
    """
    path = configs_dir() / "dataset" / f"{config.name}.yaml"
    if not path.is_file():
        return
    values = settings_in(path, "dataset")
    if "counts" not in values:  # the demo, and the configs for data of one's own
        return
    published: DatasetConfig = from_mapping(DatasetConfig, values, where="dataset")
    names = ["template", "language"]
    if dataset.source.startswith("ir_datasets ") and config.split == published.split:
        names.append("ir_datasets_id")
    for name in names:
        got, wanted = getattr(config, name), getattr(published, name)
        if got != wanted:
            yield f"dataset {dataset.name}: got {name} {got!r}, wanted {wanted!r} as published"
    if config.split == published.split:  # another split has other queries, judgements and so missing documents
        counts = dataclasses.replace(published.counts, missing=config.counts.missing)
    else:
        counts = dataclasses.replace(config.counts, documents=published.counts.documents)
    facts = dataclasses.replace(config, counts=counts, checksum=published.checksum)
    if facts != config:
        yield from (deviation.text for deviation in _deviations(facts, dataset, survey))


class _Deviation(NamedTuple):
    text: str
    remedy: str = ""
    """A remedy for this deviation, in addition to those that apply to every deviation."""


def _accept(config: DatasetConfig, dataset: Dataset, deviations: Iterator[_Deviation]) -> tuple[str, ...]:
    """Return the texts of deviations. Raises DeviationError for the first one if `config.verify` is true."""
    used = dataset.source.partition(" ")[0]
    others = ",".join(name for name in source_names(config) if name != used)
    found = []
    for deviation in deviations:
        if config.verify:
            another = f"choose another source with dataset.sources=[{others}]" if others else ""
            remedies = ", ".join(filter(None, ("repair the data", another, deviation.remedy)))
            msg = f"{deviation.text}; {remedies}, or accept and record the deviation with dataset.verify=false"
            raise DeviationError(msg)
        found.append(deviation.text)
    return tuple(found)


def _deviations(
    config: DatasetConfig, dataset: Dataset, survey: Survey | None, learned: Learned | None = None
) -> Iterator[_Deviation]:
    """Yield deviations; those of documents only if the corpus has been surveyed."""
    known = {query.id for query in dataset.queries}
    if unknown := [query_id for query_id in dataset.qrels if query_id not in known]:
        where = _where(config, dataset, unknown[0], next(iter(dataset.qrels[unknown[0]])))
        yield _Deviation(
            f"dataset {dataset.name}: got judgements of {len(unknown)} unknown queries (the first is {unknown[0]!r}, "
            f"{where}), wanted every judged query among the queries"
        )
    if not any(grade > 0 for judged in dataset.qrels.values() for grade in judged.values()):
        got = f"{sum(map(len, dataset.qrels.values())):,} judgements without a relevance above 0"
        file = f" in {qrels_file(Path(config.path), dataset.split)}" if config.path else ""
        yield _Deviation(f"dataset {dataset.name}: got {got}{file}, wanted at least one: every metric would be 0")
    if survey and len(survey.missing) != config.counts.missing:
        yield _missing(config, dataset, frozenset(survey.missing))
    for query_id, judged in dataset.qrels.items():
        for document_id, grade in judged.items():
            if grade not in GRADES:
                where = _where(config, dataset, query_id, document_id)
                yield _Deviation(
                    f"dataset {dataset.name}: got relevance {grade} for document {document_id!r} ({where}), "
                    f"wanted {GRADES.start} to {GRADES.stop - 1}"
                )
    judgements = sum(map(len, dataset.qrels.values()))
    for measured, published, what in (
        (len(dataset.queries), config.counts.queries, "queries with judgements"),
        (judgements, config.counts.judgements, "judgements"),
        (survey.documents if survey else None, config.counts.documents, "documents"),
    ):
        if measured is not None and published is not None and measured != published:
            yield _Deviation(
                f"dataset {dataset.name}: got {measured:,} {what} from {dataset.source}, "
                f"wanted {published:,} as published"
            )
    if survey:
        yield from _checksum_deviation(config, dataset, survey, learned)


def _checksum_deviation(
    config: DatasetConfig, dataset: Dataset, survey: Survey, learned: Learned | None
) -> Iterator[_Deviation]:
    """Yield a deviation if a corpus's checksum is not the config's or, if that has none, not the first read's."""
    wanted = config.checksum or (learned.checksum if learned else None)
    if wanted is None or survey.checksum == wanted:
        return
    got = f"dataset {dataset.name}: got a corpus of checksum {survey.checksum} from {dataset.source}, wanted {wanted}"
    meaning = "so some id, title or text differs, or their order"
    if config.checksum or learned is None:
        yield _Deviation(f"{got}, {meaning}")
    else:
        remedy = f"delete {learned.path} if the first copy was the wrong one"
        yield _Deviation(f"{got}, which the first complete read had, {meaning}", remedy)


def _missing(config: DatasetConfig, dataset: Dataset, missing: frozenset[str]) -> _Deviation:
    """Return the deviation that the number of judged documents missing from the corpus is not the published one."""
    known = config.counts.missing
    wanted = f"{known} as published" if known else "every judged document in it"
    first = ""
    if missing:
        query_id, document_id = next(
            (query_id, document_id)
            for query_id, judged in dataset.qrels.items()
            for document_id in judged
            if document_id in missing
        )
        first = f" (the first is {document_id!r}, {_where(config, dataset, query_id, document_id)})"
        wanted += _spelling(missing, (document.id for document in dataset.corpus.documents()))
    condition = "lacks these too" if missing else "has them all"
    return _Deviation(
        f"dataset {dataset.name}: got judgements of {len(missing)} documents that the corpus from {dataset.source} "
        f"lacks{first}, wanted {wanted}",
        f"set dataset.counts.missing={len(missing)} if the published corpus {condition}",
    )


def _spelling(wanted: Collection[str], ids: Iterable[str]) -> str:
    """Return the hint that an id is only spelled in another way; reads the ids until it is found."""
    if (pair := other_spelling(wanted, ids)) is None:
        return ""
    return f"; ids differ only by Unicode normalisation, got {pair[0]!a}, wanted {pair[1]!a}"


def _where(config: DatasetConfig, dataset: Dataset, query_id: str, document_id: str) -> str:
    """Return the place of a judgement for messages: its line in a folder's file, else its query."""
    if config.path:
        return judgement_line(Path(config.path), dataset.split, query_id, document_id)
    return f"judged for query {query_id!r}"
