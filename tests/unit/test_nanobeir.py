"""NanoBEIR's two copies in the Hub's cache, laid as `datasets` writes them, and the experiment that runs all of it.

The layouts are second-hand: file names as `push_to_hub` gives them, columns and splits as MTEB's tasks and
sentence-transformers' evaluator read them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from rich.console import Console
from test_hub_copies import table

from evalkit import datasets
from evalkit.config.compose import combinations, compose
from evalkit.config.settings import DatasetConfig, HubCopy, group_names
from evalkit.datasets import splits
from evalkit.errors import ConfigError, DatasetError
from evalkit.run import pipeline

NAMES = [name for name in group_names("dataset") if name.startswith("nanobeir/")]
COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def rows_of(name: str) -> dict[str, list[dict[str, Any]]]:
    """Return two documents, two queries and their judgements, in the copies' columns: no title and no score."""
    return {
        "corpus": [{"_id": "d1", "text": f"first of {name}"}, {"_id": "q2", "text": f"second of {name}"}],
        "queries": [{"_id": "q1", "text": f"first of {name}"}, {"_id": "q2", "text": f"second of {name}"}],
        "qrels": [{"query-id": "q1", "corpus-id": "d1"}, {"query-id": "q2", "corpus-id": "q2"}],
    }


def lay(cache: Path, copies: dict[str, HubCopy], revision: str) -> None:
    """Lay one repository that holds these datasets, each in its own split of the configs corpus, queries and qrels."""
    (repo,) = {copy.repo for copy in copies.values()}
    folder = cache / f"datasets--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    configs: dict[str, list[dict[str, str]]] = {}
    for name, copy in copies.items():
        for part, rows in rows_of(name).items():
            file = folder / "snapshots" / revision / part / f"{copy.split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(table(rows))
            configs.setdefault(part, []).append({"split": str(copy.split), "path": f"{part}/{copy.split}-*"})
    header = {"configs": [{"config_name": part, "data_files": files} for part, files in configs.items()]}
    readme = folder / "snapshots" / revision / "README.md"
    readme.write_text(f"---\n{yaml.safe_dump(header)}---\n# Nano\n", encoding="utf-8")


@cache
def config_of(name: str, *words: str) -> DatasetConfig:
    return compose([f"dataset={name}", *words]).dataset


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def lay_originals(cache: Path) -> None:
    for name in NAMES:
        copy = config_of(name).hub
        assert copy is not None
        assert copy.revision is not None
        lay(cache, {name: copy}, copy.revision)


def lay_gathered(cache: Path) -> None:
    lay(cache, {name: copy for name in NAMES if (copy := config_of(name).mirror)}, COMMIT)


def test_there_are_thirteen_sets_with_the_counts_of_their_statistics() -> None:
    assert len(NAMES) == 13
    counts = {name: config_of(name).counts for name in NAMES}
    assert {name: found.queries for name, found in counts.items() if found.queries != 50} == {
        "nanobeir/webis-touche2020": 49
    }
    assert sum(found.documents or 0 for found in counts.values()) == 56723
    assert {config_of(name).main_metric for name in NAMES} == {"ndcg@10"}


@pytest.mark.parametrize("name", NAMES)
def test_a_set_opens_from_its_own_repository(hub: Path, name: str) -> None:
    lay_originals(hub)
    config = config_of(name, "dataset.verify=false")
    dataset = datasets.load(config)
    assert [tuple(document) for document in dataset.corpus.documents()] == [
        ("d1", "", f"first of {name}"),
        ("q2", "", f"second of {name}"),
    ]
    assert dataset.qrels == {"q1": {"d1": 1}, "q2": {"q2": 1}}
    assert config.hub is not None
    assert dataset.source == f"hub {config.hub.repo}@{config.hub.revision}"
    assert datasets.on_disk(config) == "hub"


@pytest.mark.parametrize("name", NAMES)
def test_a_set_opens_from_its_split_of_the_gathered_copy_where_its_own_is_absent(hub: Path, name: str) -> None:
    lay_gathered(hub)
    config = config_of(name, "dataset.verify=false")
    dataset = datasets.load(config)
    assert [document.text for document in dataset.corpus.documents()] == [f"first of {name}", f"second of {name}"]
    assert [query.text for query in dataset.queries] == [f"first of {name}", f"second of {name}"]
    assert dataset.source == f"mirror sentence-transformers/NanoBEIR-en@{COMMIT} (not pinned)"
    assert datasets.on_disk(config) == "mirror"


def test_a_repository_of_one_split_has_no_others(hub: Path) -> None:
    lay_originals(hub)
    assert splits.others(config_of("nanobeir/nq", "dataset.verify=false"), {"q1"}) == ([], [])


def test_the_sets_in_one_repository_are_no_splits_of_each_other(hub: Path) -> None:
    lay_gathered(hub)
    assert splits.others(config_of("nanobeir/nq", "dataset.verify=false"), {"q1"}) == ([], [])


def test_a_copy_of_other_counts_is_refused(hub: Path) -> None:
    lay_originals(hub)
    with pytest.raises(DatasetError, match=r"nanobeir/arguana: got 2 queries with judgements from hub .* wanted 50"):
        datasets.load(config_of("nanobeir/arguana"))


def test_a_missing_mirror_is_named_with_what_to_set(hub: Path) -> None:
    with pytest.raises(DatasetError, match=r"nanobeir/nq: got no mirror, wanted repo, .*; set dataset\.mirror, or "):
        datasets.load(config_of("nanobeir/nq", "dataset.mirror=null", "dataset.sources=[mirror]"))


def test_quick_is_all_thirteen_sets() -> None:
    found = [dict(word.split("=") for word in words) for words in combinations(["experiment=quick", "model=bm25"])]
    assert sorted(words["dataset"] for words in found) == NAMES
    assert {words["model"] for words in found} == {"bm25"}


def test_a_dataset_that_is_given_comes_before_the_experiments() -> None:
    words = ["experiment=quick", "dataset=nanobeir/nq,nanobeir/fiqa"]
    assert combinations(words) == [("dataset=nanobeir/nq",), ("dataset=nanobeir/fiqa",)]
    assert compose(["experiment=quick", "dataset=nanobeir/nq"]).dataset.name == "nanobeir/nq"


def test_an_experiment_of_several_datasets_wants_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"experiment=quick is a sweep; add -m to run its combinations"):
        compose(["experiment=quick"])


def test_a_document_whose_id_is_the_querys_counts(hub: Path, tmp_path: Path) -> None:
    """As for the evaluators whose means are published: q2 is answered by the document of its own id."""
    lay_originals(hub)
    words = ["dataset=nanobeir/arguana", "dataset.verify=false", "model=bm25"]
    run = compose([*words, f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"])
    (cell,) = pipeline.run(run, console=Console(quiet=True))
    assert cell.metrics["ndcg@10"] == 1.0
    assert cell.counts["kept_self"] == 1
