"""Every dataset of the card: its config composes, its facts agree with the package's, and its files open.

The files are laid where and how ir-datasets keeps the real ones, a few lines each, and read in a process of its own
whose proxy is a closed port (see test_irds_reader).
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import huggingface_hub.constants
import ir_datasets
import pytest
import yaml
from shared_material import shared_data
from test_hub_copies import lines, table

from evalkit import datasets
from evalkit.bm25.analyzers import ANALYZERS, LUCENE_DEPARTURES
from evalkit.config.compose import compose
from evalkit.config.settings import Bm25Config, DatasetConfig, EncoderConfig, group_names
from evalkit.datasets import GRADES
from evalkit.datasets.folder import qrels_file, read_qrels, read_queries
from evalkit.errors import ConfigError, DatasetError

CARD = [name for name in group_names("dataset") if name.split("/")[0] in ("beir", "msmarco", "miracl", "mmarco")]
MMARCO_FILES = {
    "ar": "arabic",
    "de": "german",
    "es": "spanish",
    "fr": "french",
    "hi": "hindi",
    "id": "indonesian",
    "it": "italian",
    "ja": "japanese",
    "nl": "dutch",
    "pt": "portuguese",
    "ru": "russian",
    "vi": "vietnamese",
    "zh": "chinese",
}
PROBE = """
import json, sys
from evalkit import datasets
from evalkit.config.compose import compose

found = {}
for name in sys.argv[2:]:
    dataset = datasets.load(compose(["dataset=" + name, "dataset.verify=false"]).dataset)
    found[name] = {
        "documents": [document.joined() for document in dataset.corpus.documents()],
        "queries": dataset.queries,
        "qrels": dataset.qrels,
        "source": dataset.source,
        "on disk": datasets.on_disk(compose(["dataset=" + name]).dataset),
    }
json.dump(found, open(sys.argv[1], "w"))
"""


def lay(home: Path) -> None:
    about = dict.fromkeys(("url", "pubmed_id", "stance", "query", "narrative", "description"), "")
    about |= {"authors": [], "year": 2000, "cited_by": [], "references": []}
    for name in (name for name in CARD if name.startswith("beir/")):
        folder = home / name
        zipped = folder / "v2" if name == "beir/webis-touche2020" else folder
        for place in {folder, zipped}:
            place.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(place / "source.zip", "w") as file:
                stem = folder.name
                entry = {"_id": "d1", "title": "T", "text": "x", "metadata": about}
                file.writestr(f"{stem}/corpus.jsonl", json.dumps(entry) + "\n")
                file.writestr(f"{stem}/queries.jsonl", json.dumps({"_id": "q1", "text": "q", "metadata": about}) + "\n")
                file.writestr(f"{stem}/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    for name in (name for name in CARD if name.startswith("miracl/")):
        folder = home / "miracl" / "v1.0" / name.partition("/")[2]
        (folder / "docs").mkdir(parents=True)
        (folder / "dev").mkdir()
        for number in range(66):  # English has the most files
            # Yoruba's only file is kept as number 1.
            first = number == int(name == "miracl/yo")
            content = json.dumps({"docid": "d0", "title": "T", "text": "x"}).encode() + b"\n" if first else b""
            (folder / "docs" / f"docs-{number}.jsonl.gz").write_bytes(gzip.compress(content))
        (folder / "dev" / "topics.tsv").write_text("q1\tq\n", encoding="utf-8")
        (folder / "dev" / "qrels.tsv").write_text("q1\tQ0\td0\t1\n", encoding="utf-8")
    tables = home / "mmarco" / "v2"
    tables.mkdir(parents=True)
    for language in MMARCO_FILES.values():
        (tables / f"{language}_collection.tsv").write_text("d1\tx\n", encoding="utf-8")
        (tables / f"{language}.queries.dev.tsv").write_text("q1\tq\n", encoding="utf-8")
    (home / "mmarco" / "qrels.dev.small.tsv").write_text("q1\t0\td1\t1\n", encoding="utf-8")
    marco = home / "msmarco-passage"
    (marco / "dev" / "small").mkdir(parents=True)
    (marco / "irds_version.txt").write_text("v2", encoding="utf-8")
    (marco / "collection.tsv").write_text("d1\tx\n", encoding="utf-8")
    (marco / "dev" / "small" / "queries.tsv").write_text("q1\tq\n", encoding="utf-8")
    (marco / "dev" / "small" / "qrels").write_text("q1\t0\td1\t1\n", encoding="utf-8")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("ir_datasets")
    lay(home)
    environment = {
        **os.environ,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
        "IR_DATASETS_HOME": str(home),
        "IR_DATASETS_TMP": str(home / "tmp"),
        "IR_DATASETS_DL_TRIES": "1",
        "HF_HUB_OFFLINE": "1",
    }
    result = home / "found.json"
    subprocess.run([sys.executable, "-c", PROBE, str(result), *CARD], env=environment, check=True, timeout=600)
    read: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("name", CARD)
def test_every_dataset_of_the_card_opens_from_its_files(found: dict[str, Any], name: str) -> None:
    """Documents with their titles where there are any, judged queries, judgements, all through the config's id."""
    read = found[name]
    assert read["documents"] == ["T x" if name.startswith(("beir/", "miracl/")) and has_titles(name) else "x"]
    assert read["queries"] == [["q1", "q"]]
    assert list(read["qrels"]) == ["q1"]
    assert read["source"].startswith("ir_datasets ")
    assert read["on disk"] == "ir_datasets"


def hub_only(name: str) -> DatasetConfig:
    return compose([f"dataset={name}", "dataset.sources=[hub]", "dataset.verify=false"]).dataset


COPIES = [
    name
    for name in group_names("dataset")
    if name not in ("folder", "demo", "ir-datasets") and "hub" in compose([f"dataset={name}"]).dataset.sources
    if not name.startswith("nanobeir/")  # its two copies have a layout of their own (test_nanobeir)
]


def lay_copy(cache: Path, names: list[str]) -> None:
    """Lay one repository as its datasets' configs name it: each with its own rows, the judgements beside other splits.

    A repository of one dataset has JSON lines under names of their own, as BEIR's have; one of several has numbered
    Parquet files in a folder for each config, as MIRACL's and XQuAD's.
    """
    configs = []
    for config in map(hub_only, names):
        copy = config.hub
        assert copy is not None
        folder = cache / f"datasets--{copy.repo.replace('/', '--')}" / "snapshots" / str(copy.revision)
        wanted = copy.split or config.split
        parts = {
            copy.corpus: {wanted: [{"_id": "d1", "title": "T", "text": f"document of {config.name}"}]},
            copy.queries: {wanted: [{"_id": "q1", "text": f"query of {config.name}"}]},
            copy.qrels: {
                split: [{"query-id": "q1", "corpus-id": "d1", "score": 1 if split == wanted else 2}]
                for split in ("train", "validation", "dev", "test")
            },
        }
        assert len(parts) == 3
        for name, rows_by_split in parts.items():
            data_files = []
            for split, rows in rows_by_split.items():
                stem = f"{name}/{split}"
                path = f"{stem}.jsonl" if len(names) == 1 else f"{stem}-00000-of-00001.parquet"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(lines(rows) if len(names) == 1 else table(rows))
                data_files.append({"split": split, "path": path if len(names) == 1 else f"{stem}-*"})
            configs.append({"config_name": name, "data_files": data_files})
    assert len({entry["config_name"] for entry in configs}) == 3 * len(names)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("hub")
    repositories: dict[str, list[str]] = {}
    for name in COPIES:
        copy = hub_only(name).hub
        assert copy is not None
        repositories.setdefault(f"{copy.repo}@{copy.revision}", []).append(name)
    for names in repositories.values():
        lay_copy(cache, names)
    return cache


def test_a_copy_is_named_for_all_but_twelve_languages_of_mmarco() -> None:
    assert set(CARD) - set(COPIES) == {name for name in CARD if name.startswith("mmarco/")} - {"mmarco/nl"}
    assert len(COPIES) == 37


@pytest.mark.parametrize("name", COPIES)
def test_every_copy_opens_by_the_names_split_and_revision_of_its_config(
    copies: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its own rows, not those of another language in the same repository, nor another split's judgements."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(copies))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = hub_only(name)
    dataset = datasets.load(config)
    assert [tuple(document) for document in dataset.corpus.documents()] == [("d1", "T", f"document of {name}")]
    assert [tuple(query) for query in dataset.queries] == [("q1", f"query of {name}")]
    assert dataset.qrels == {"q1": {"d1": 1}}
    assert config.hub is not None
    assert dataset.source == f"hub {config.hub.repo}@{config.hub.revision}"
    assert datasets.on_disk(config) == "hub"


def has_titles(name: str) -> bool:
    return name not in ("beir/fiqa", "beir/quora")


@pytest.mark.parametrize("name", CARD)
def test_every_config_has_official_counts_and_says_where_it_comes_from(name: str) -> None:
    """The counts are the package's too, the revision of a Hub copy is a whole commit, and a citation is given."""
    config = compose([f"dataset={name}"]).dataset
    assert config.sources[0] == "ir_datasets"
    assert ("hub" in config.sources) == (config.hub is not None)
    assert config.hub is None or (config.hub.revision is not None and len(config.hub.revision) == 40)
    assert config.ir_datasets_id is not None
    facts = ir_datasets.load(config.ir_datasets_id).metadata()
    known = {what: facts.get(part, {}).get("count") for what, part in (("documents", "docs"), ("judgements", "qrels"))}
    assert config.counts.documents == (known["documents"] or 8841823)
    assert config.counts.judgements == (known["judgements"] or 7437)
    # Of the others the real queries are counted below.
    assert config.counts.queries == {"beir/scifact": 300}.get(name, 6980 if "marco" in name else config.counts.queries)
    assert None not in (config.counts.queries, config.mean_characters)
    assert config.counts.missing == (5 if name == "beir/arguana" else 0)
    assert config.licence
    assert config.citation
    assert config.drop_self == name.startswith("beir/")
    assert config.main_metric == ("mrr@10" if "marco" in name else "ndcg@10")


@pytest.mark.parametrize("name", [name for name in CARD if not name.startswith(("mmarco/", "beir/scifact"))])
def test_real_queries_and_judgements_have_the_configs_counts(name: str) -> None:
    """The official files of 12 BEIR sets, MIRACL in 18 languages and MS MARCO, whose judgements these two lack."""
    lacking = {"beir/trec-covid": 2, "beir/webis-touche2020": 2214 - 932}
    config = compose([f"dataset={name}"]).dataset
    folder = shared_data("topics_qrels") / ("msmarco-passage-dev" if name == "msmarco/dev-small" else name)
    qrels = read_qrels(qrels_file(folder, config.split))
    judged = [query for query in read_queries(folder / "queries.jsonl") if query.id in qrels]
    assert len(judged) == len(qrels) == config.counts.queries
    assert config.counts.judgements == sum(map(len, qrels.values())) + lacking.get(name, 0)
    assert all(grade in GRADES for grades in qrels.values() for grade in grades.values())


@pytest.mark.parametrize(
    ("words", "query", "document"),
    [
        (["dataset=beir/arguana"], 300, 300),
        (["dataset=beir/climate-fever"], 64, 300),
        (["dataset=beir/fiqa"], 32, 300),
        (["dataset=msmarco/dev-small"], 32, 180),
        (["dataset=beir/arguana", "model.query.max_tokens=32"], 32, 300),
    ],
)
def test_published_lengths_per_dataset_reach_the_run(words: list[str], query: int, document: int) -> None:
    """ColBERTv2's on BEIR and MS MARCO; what the command line says comes before them."""
    model = compose(["model=colbertv2", *words]).model
    assert isinstance(model, EncoderConfig)
    assert (model.query.max_tokens, model.document.max_tokens) == (query, document)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["dataset=beir/fiqa"], (0.9, 0.4, ("text", "title"), "english")),
        (["dataset=msmarco/dev-small"], (0.82, 0.68, ("text", "title"), "english")),
        (["dataset=mmarco/de"], (0.82, 0.68, ("text", "title"), "german")),
        (["dataset=miracl/zh"], (0.9, 0.4, ("contents",), "cjk")),
        (["dataset=miracl/sw"], (0.9, 0.4, ("contents",), "whitespace")),
        (["dataset=miracl/yo"], (0.9, 0.4, ("contents",), "english")),
        (["dataset=mmarco/vi"], (0.82, 0.68, ("text", "title"), "english")),
        (["dataset=miracl/zh", "model.k1=1.2", "model.analyzer=standard"], (1.2, 0.4, ("contents",), "standard")),
    ],
)
def test_bm25_follows_the_dataset_and_its_language(words: list[str], settings: tuple[object, ...]) -> None:
    """As the published runs did; what the command line says comes before them."""
    model = compose(["model=bm25", *words]).model
    assert isinstance(model, Bm25Config)
    assert (model.k1, model.b, model.fields, model.analyzer) == settings


def test_values_per_dataset_need_a_default() -> None:
    with pytest.raises(ConfigError, match=r"model\.k1=\{'beir': 1\.2\}: wanted a `default` too, for all others"):
        compose(["model=bm25-flat", "model.k1={beir: 1.2}"])


def test_every_analyzer_can_be_named_and_says_how_it_departs_from_lucene() -> None:
    named = get_args(get_type_hints(Bm25Config)["analyzer"])
    assert sorted(named) == sorted(ANALYZERS) == sorted(LUCENE_DEPARTURES)


def test_a_dataset_needs_a_source() -> None:
    with pytest.raises(
        ConfigError, match="got no source, wanted one or more of folder, ir_datasets, hub, mirror, demo"
    ):
        compose(["dataset=beir/fiqa", "dataset.sources=[]"])


@pytest.mark.parametrize(
    ("name", "split", "remedy"),
    [
        ("demo", "test", "remove dataset.split"),
        ("xquad/en", "test", "remove dataset.split, or set dataset.hub.split too"),
    ],
)
def test_another_name_for_the_only_split_of_a_source_is_refused(name: str, split: str, remedy: str) -> None:
    config = compose([f"dataset={name}", "dataset.split=dev", "model=bm25"]).dataset
    with pytest.raises(DatasetError) as caught:
        datasets.load(config)
    assert str(caught.value) == f"dataset {name}: got split 'dev', wanted '{split}', its only one; {remedy}"
