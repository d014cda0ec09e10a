"""Experiments that list sweeps: which cells they stand for, and what a word beside them does."""

from functools import cache

import pytest
import yaml

from evalkit.config import compose
from evalkit.config.settings import configs_dir, group_names
from evalkit.errors import ConfigError

PUBLISHED = configs_dir().parent / "results" / "published"
CARD = ("beir", "msmarco", "miracl", "mmarco", "matryoshka", "matryoshka-msmarco")


@cache
def system(*words):
    """The name and dims of a model that some words choose, on whatever dataset."""
    config = compose.compose(words)
    return config.model.name, config.dims


def cells(words):
    """The cells (system, dim, dataset) of a selection."""
    found = []
    for combination in compose.combinations(words):
        name, dims = system(*(word for word in combination if word.startswith(("model=", "dim="))))
        (dataset,) = [word.partition("=")[2] for word in combination if word.startswith("dataset=")]
        found += [(name, dim, dataset) for dim in dims]
    return found


def published(tables):
    """The cells of some published tables whose system has a config."""
    found = set()
    for table in tables:
        values = yaml.safe_load((PUBLISHED / f"{table}.yaml").read_text(encoding="utf-8"))
        for row in values["systems"]:
            if row["system"] in group_names("model"):
                found |= {(row["system"], row["dim"], dataset) for dataset in row["values"]}
    return found


def test_the_experiment_card_is_every_cell_of_the_cards_tables_once():
    found = cells(["experiment=card"])
    assert len(found) == len(set(found))
    assert set(found) == published(CARD)


def test_the_experiment_dims_is_the_matryoshka_table_with_one_combination_for_each_dataset():
    assert set(cells(["experiment=dims"])) == published(("matryoshka", "matryoshka-msmarco"))
    assert len(compose.combinations(["experiment=dims"])) == 6


def test_the_experiment_quick_runs_the_model_that_is_named_beside_it():
    found = cells(["experiment=quick", "model=bm25"])
    assert found == [("bm25", None, name) for name in group_names("dataset") if name.startswith("nanobeir/")]
    assert len(found) == 13


def test_a_word_replaces_what_the_experiment_says_of_the_same_setting():
    found = cells(["experiment=dims", "dataset=beir/nq", "dim=64"])
    assert found == [("jina-colbert-v2", 64, "beir/nq")]


def test_an_experiment_keeps_its_other_settings_beside_a_sweep():
    assert len(cells(["experiment=load", "dataset=demo,beir/fiqa", "dim=[128,64]"])) == 2 * 2
    config = compose.compose(["experiment=load", "dim=64"])
    assert (config.dataset.demo.documents, config.store.shard_tokens) == (100_000, 500_000)


def test_experiments_that_are_sweeps_by_themselves_are_run_one_by_one():
    with pytest.raises(ConfigError, match=r"experiment=quick,load: got 2 experiments, of which one lists sweeps"):
        compose.combinations(["experiment=quick,load"])


@pytest.mark.parametrize("name", group_names("experiment"))
def test_an_experiment_lists_sweeps_or_settings_and_not_both(name):
    values = yaml.safe_load((configs_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert ("sweeps" in values) == (list(values) == ["sweeps"])


@pytest.mark.parametrize("name", ["card", "dims", "quick"])
def test_every_combination_of_an_experiment_composes_by_itself(name):
    for combination in compose.combinations([f"experiment={name}"]):
        datasets = [word.partition("=")[2] for word in combination if word.startswith("dataset=")]
        assert [compose.compose(combination).dataset.name] == datasets


def test_one_combination_of_an_experiment_needs_no_flag():
    config = compose.compose(["experiment=dims", "dataset=beir/nq"])
    assert (config.model.name, config.dims, config.dataset.name) == ("jina-colbert-v2", (128, 96, 64), "beir/nq")


def test_an_experiment_that_is_a_sweep_wants_the_flag():
    with pytest.raises(ConfigError) as caught:
        compose.compose(["experiment=quick", "model=bm25"])
    assert str(caught.value) == "experiment=quick is a sweep; add -m to run its combinations"
