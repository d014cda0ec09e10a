"""Configuration at the door: every config composes, every wrong word is named with what is nearest to it."""

import pytest

from evalkit.config.compose import all_settings, check_overrides, combinations, compose
from evalkit.config.settings import Bm25Config, EncoderConfig, group_names
from evalkit.errors import ConfigError, nearest


def test_nothing_said_runs_the_demo_at_every_dim(monkeypatch):
    monkeypatch.delenv("EVALKIT_CACHE", raising=False)
    config = compose([])
    assert (config.model.name, config.dataset.name, config.dims) == ("demo", "demo", (128, 96, 64))


@pytest.mark.parametrize("name", group_names("model"))
def test_every_model_config_is_valid_and_named_like_its_file(name):
    config = compose([f"model={name}"])
    assert config.model.name == name
    assert isinstance(config.model, (EncoderConfig, Bm25Config))


@pytest.mark.parametrize("name", [name for name in group_names("dataset") if name != "folder"])
def test_every_dataset_config_is_valid_and_named_like_its_file(name, tmp_path):
    assert compose([f"dataset={name}", f"dataset.path={tmp_path}"]).dataset.name == name


def test_the_card_has_its_45_datasets():
    names = [name for name in group_names("dataset") if name.split("/")[0] in ("beir", "msmarco", "miracl", "mmarco")]
    assert len(names) == 13 + 1 + 18 + 13


@pytest.mark.parametrize(
    ("word", "dims"),
    [("dim=64", (64,)), ("dim=[64,128]", (64, 128)), ("dim=96,64", (96, 64)), ("dim=null", (128, 96, 64))],
)
def test_dim_takes_one_value_or_a_list(word, dims):
    assert compose([word]).dims == dims


def test_a_model_without_vectors_has_no_dim_and_ignores_the_selector():
    assert compose(["model=bm25", "dim=64"]).dims == (None,)


def test_a_known_dataset_is_read_from_a_folder(tmp_path):
    config = compose(["dataset=beir/nfcorpus", f"dataset.path={tmp_path}"]).dataset
    assert (config.name, config.path, config.counts.documents) == ("beir/nfcorpus", str(tmp_path), 3633)


def test_a_setting_that_the_yaml_leaves_out_can_be_given():
    assert compose(["dataset.verify=false"]).dataset.verify is False
    assert compose(["model.rope_theta=20000"]).model.rope_theta == 20000.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=jina-colbert-v3"],
            r"model 'jina-colbert-v3' unknown; did you mean jina-colbert-v2 or .* \(evalkit ls models\)",
        ),
        (["dataset=beir/nfcorpsu"], r"dataset 'beir/nfcorpsu' unknown; did you mean beir/nfcorpus"),
        (["engine=lokal"], "engine 'lokal' unknown; did you mean local"),
        (["dim=127"], r"dim=127 is not a dim of model 'demo'; valid: 128, 96, 64"),
        (["dim=abc"], r"dim='abc' is not a dim"),
        (["dim=[]"], r"dim=\[\] selects nothing"),
        (["dim=[64,64]"], "names a dim twice"),
        (["serach.depth=100"], r"setting 'serach\.depth' unknown; did you mean search\.depth"),
        (["modle=demo"], "setting 'modle' unknown; did you mean model"),
        (["search.depth=10"], r"search\.depth=10: wanted 100 or more"),
        (["search.depth=many"], r"search\.depth='many': wanted a whole number"),
        (["store.keep=all"], r"store\.keep='all' unknown; valid: embeddings, topk"),
        (["store.shard_tokens=1"], r"store\.shard_tokens=1: wanted 1000 to 64000000"),
        (["engine.batch_tokens=0"], r"engine\.batch_tokens=0: wanted a positive number"),
        (["model.dtype=float8"], r"model\.dtype='float8' unknown"),
        (["model.query.max_tokens=2"], "max_tokens=2: wanted at least 4"),
        (["model.query=5"], r"model\.query=5: wanted a group of settings"),
        (["dataset=folder"], r"got no path, wanted dataset\.path=DIR"),
        (["model=demo,bm25"], "model=demo,bm25 gives several values; add -m"),
        (["demo"], "got 'demo', wanted setting=value"),
        (["dataset.verify=maybe"], r"dataset\.verify='maybe': wanted true or false"),
        (["~model"], "got '~model', wanted setting=value; no setting can be taken out"),
        (["results_dir="], r"results_dir='': wanted a folder, for example results_dir=/data/results"),
        (["cache_dir=null"], r"cache_dir=None: wanted a folder, for example cache_dir=/data/cache"),
        (
            ["model=demo dim=64"],
            r"got 'model=demo dim=64', wanted setting=value as Hydra's grammar has it \(.*\); quote",
        ),
        (["zzzzzz=1"], r"setting 'zzzzzz' unknown; valid: cache_dir, .* and \d+ more \(evalkit ls settings\)"),
    ],
)
def test_a_wrong_word_fails_at_once_with_what_is_valid(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(words)
    assert "\n" not in str(caught.value)


def test_words_that_hydra_cannot_parse_are_one_line():
    with pytest.raises(ConfigError) as caught:
        compose(["dim=[64"])
    assert "\n" not in str(caught.value)


def test_a_sweep_over_dims_becomes_one_pass_over_a_list():
    assert check_overrides(["model=demo,bm25", "dim=128,64"], sweep=True) == ["model=demo,bm25", "dim=[128,64]"]


@pytest.mark.parametrize("path", ["/data/größe", "/a=b", "/a (1)/b", "/it's", "/плод/x:y", "/a b"])
def test_a_path_is_read_as_it_is_typed_whatever_hydra_keeps_for_its_grammar(path):
    config = compose(["dataset=folder", f"dataset.path={path}", f"results_dir={path}", f"cache_dir={path}"])
    assert config.dataset.path == path
    assert str(config.results_dir) == str(config.cache_dir) == path


def test_a_tilde_that_the_shell_left_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of-somebody")
    config = compose(["dataset=folder", "dataset.path=~/data", "results_dir=~/results"])
    assert (config.dataset.path, str(config.results_dir)) == ("/home/of-somebody/data", "/home/of-somebody/results")


def test_paths_of_any_letters_can_be_swept():
    words = ["dataset=folder", "dataset.path=/größe/en,/größe/es"]
    assert [compose(words).dataset.path for words in combinations(words)] == ["/größe/en", "/größe/es"]
    with pytest.raises(ConfigError, match="gives several values; add -m"):
        compose(words)


def test_a_pattern_of_names_is_spelled_out_in_sub_folders_too():
    swept = [words[0] for words in combinations(["dataset=glob(xquad/*)"])]
    assert swept == [f"dataset={name}" for name in group_names("dataset") if name.startswith("xquad/")]
    with pytest.raises(ConfigError, match=r"matches no dataset \(evalkit ls datasets\)"):
        combinations(["dataset=glob(beri/*)"])


def test_a_sweep_over_dims_may_be_written_as_a_choice():
    assert check_overrides(["dim=choice(128,64)"], sweep=True) == ["dim=[128,64]"]


def test_a_sweep_checks_every_name_of_the_sweep():
    with pytest.raises(ConfigError, match="model 'bm52' unknown; did you mean bm25"):
        check_overrides(["model=demo,bm52"], sweep=True)


def test_every_setting_is_listed_with_what_it_takes():
    settings = all_settings()
    assert settings["model"] == "a name (evalkit ls models)"
    assert settings["engine.elementwise"] == "one of auto, torch, triton"
    assert settings["engine.batch_tokens"] == "one of auto or a whole number"
    assert settings["dataset.demo.documents"] == settings["search.depth"] == "a whole number"
    assert settings["model.name"] == "text"  # every kind of model has it, it stands once
    assert settings["model.kind"] == "one of late_interaction, single_vector or one of bm25"
    assert all(settings.values())


def test_nearest_names_all_when_none_is_near():
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.workers=2"], "engine.workers=2 is of engine=ray, and the engine is local; add engine=ray"),
        (["engine.address=auto"], "engine.address=auto is of engine=ray, and the engine is local; add engine=ray"),
        (["engine=ray", "engine.workers=0"], "engine.workers=0: wanted a positive number"),
        (["engine=ray", "engine.gpus_per_worker=-1"], "engine.gpus_per_worker=-1.0: wanted a positive number"),
        (
            ["engine=ray", "engine.address=head"],
            "engine.address=head: wanted auto or HOST:PORT, for example 10.0.0.1:6379",
        ),
    ],
)
def test_settings_of_workers_are_checked_before_anything_starts(words, message):
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert str(caught.value) == message
