"""Configuration at the door: every config composes, every wrong word is named with what is nearest to it."""

import os

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


@pytest.mark.parametrize(
    "name", [name for name in group_names("dataset") if name not in ("folder", "ir-datasets", "demo")]
)
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
        (["~model"], "got '~model', wanted setting=value; settings cannot be removed"),
        (["results_dir="], r"results_dir='': wanted a folder, for example results_dir=/data/results"),
        (["results_dir=' '"], r"results_dir=' ': wanted a folder, for example results_dir=/data/results"),
        (["engine.threads=0"], "engine.threads=0: wanted null or a number of threads from 1 to 1024"),
        (["engine.threads=-1"], "engine.threads=-1: wanted null or a number of threads from 1 to 1024"),
        (["engine.threads=100000"], "engine.threads=100000: wanted null or a number of threads from 1 to 1024"),
        (["engine.tokenizer_workers=100000"], "tokenizer_workers=100000: wanted auto, 0 or up to 1024 threads"),
        (["results_dir=~nouser-x/r"], "results_dir='~nouser-x/r': ~nouser-x has no home folder here; wanted a path"),
        (["dataset.path=~nouser-x/r"], "dataset.path='~nouser-x/r': ~nouser-x has no home folder here"),
        (["dataset=folder", "dataset.path=a,b"], "path=a,b gives several values; add -m .* or quote a comma that is"),
        (["results_dir=a${HOME}b"], r"results_dir: Interpolation key 'HOME' not found; .* written \${oc.env:NAME}"),
        (["results_dir=\udcff"], "got 'results_dir=.udcff', wanted text in UTF-8; rename the file or folder"),
        (["model.checkpoints.x.path=/a"], "model.checkpoints.x: wanted a dim, a whole number"),
        (
            ["model=demo dim=64"],
            r"got 'model=demo dim=64', wanted setting=value in Hydra's grammar \(.*\); quote",
        ),
        (["metrics=[recal@5]"], r"metric 'recal@5' unknown; did you mean recall\?, each with a cutoff"),
        (["metrics=hits"], "metric 'hits' unknown; "),
        (
            ["metrics=recall@1000"],
            r"recall@1000: got a cutoff above the 100 documents .*search\.depth=1000 keeps enough",
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


@pytest.mark.parametrize(
    "path", ["/data/größe", "/a=b", "/a (1)/b", "/it's", "/плод/x:y", "/a b", "a\\b", "a\\", "a\\'", 'a"b']
)
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


def test_a_sweep_over_lists_of_dims_is_one_pass_over_all_of_them():
    assert check_overrides(["dim=[128,96],[64,96]"], sweep=True) == ["dim=[128,96,64]"]


def test_a_name_in_other_capitals_is_near():
    with pytest.raises(ConfigError, match="model 'BM25' unknown; did you mean bm25"):
        compose(["model=BM25"])


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
    "name", ["2026_09_24", "true", "1_0", "1.10", "null", "1e5", "123", "[a]", "{a}", "0x10", "???"]
)
def test_a_folder_may_be_called_like_a_value_of_another_kind(name):
    config = compose([f"results_dir={name}", f"cache_dir={name}"])
    assert (str(config.results_dir), str(config.cache_dir)) == (name, name)


def test_a_comma_in_quotes_is_part_of_a_path():
    assert compose(["dataset=folder", "dataset.path='a,b'"]).dataset.path == "a,b"


@pytest.mark.parametrize("setting", ["model.name", "dataset.name", "dataset.split"])
@pytest.mark.parametrize(
    "name", ["../../x", "..", "/x", "a/../b", "", "a b", "[/x]", "\x1b[2J", "-x", ".x", "=cmd()", "a|b"]
)
def test_a_name_that_would_lead_elsewhere_or_be_markup_is_refused(setting, name):
    with pytest.raises(ConfigError, match="wanted letters, digits and") as caught:
        compose(["model=bm25", f"++{setting}='{name}'"])
    assert str(caught.value).startswith(f"{setting}=")
    assert "\x1b" not in str(caught.value)


def test_names_of_files_are_bounded_and_only_datasets_have_parts():
    assert compose(["dataset.name='a/b-1/ü'"]).dataset.name == "a/b-1/ü"
    for setting in ("model.name", "dataset.split"):
        with pytest.raises(ConfigError, match=f"{setting}='a/b': wanted letters"):
            compose([f"{setting}=a/b"])
    with pytest.raises(ConfigError, match=r"model.name='x{72}…': got 300 bytes, wanted 72 at most"):
        compose([f"model.name={'x' * 300}"])


def test_only_harmless_variables_are_read_into_settings(monkeypatch):
    monkeypatch.setenv("EVALKIT_LICENCE", "MIT")
    monkeypatch.setenv("MY_SECRET", "hunter-2-hunter")
    assert compose(["dataset.licence='${oc.env:EVALKIT_LICENCE}'"]).dataset.licence == "MIT"
    assert compose(["dataset.licence='${oc.env:EVALKIT_NONE,none}'"]).dataset.licence == "none"
    with pytest.raises(
        ConfigError,
        match=r"^dataset\.licence: got \${oc.env:MY_SECRET}, a variable that may not be read into settings",
    ):
        compose(["dataset.licence='${oc.env:MY_SECRET}'"])
    with pytest.raises(ConfigError, match=r"^results_dir: got \${oc.env:MY_SECRET}, a variable that may not be read"):
        compose(["results_dir=${oc.env:MY_SECRET}/a"])
    with pytest.raises(
        ConfigError, match=r"^dataset\.licence: got \${oc.env:EVALKIT_NONE}, but EVALKIT_NONE is not set; set it"
    ):
        compose(["dataset.licence='${oc.env:EVALKIT_NONE}'"])


def test_a_secret_in_a_setting_is_refused_without_being_told(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("EVALKIT_X", "hf_abcdefghij")
    for word in (
        "dataset.licence=hf_abcdefghij",
        "dataset.licence='${oc.env:EVALKIT_X}'",
        "results_dir=/a/hf_abcdefghij",
    ):
        with pytest.raises(ConfigError, match="got the value of HF_TOKEN, which is a secret") as caught:
            compose([word])
        assert "hf_abc" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"the value of HF_TOKEN"):
        check_overrides(["model=bm25", "dataset.licence=hf_abcdefghij,x"], sweep=True)


def test_checkpoints_given_as_a_whole_are_all_that_the_model_has():
    model = compose(["model.checkpoints={128: {path: /mine}}"]).model
    assert {dim: source.path for dim, source in model.checkpoints.items()} == {"128": "/mine"}
    assert compose(["model=bm25", "model.analyzer={default: french}", "dataset.language=es"]).model.analyzer == "french"


def test_one_checkpoint_given_as_a_whole_keeps_nothing_of_the_one_before():
    model = compose(["model.checkpoints.128={repo: o/mine}"]).model
    assert model.dims == (128, 96, 64)
    source = model.checkpoints["128"]
    assert (source.repo, source.package, source.path, source.revision) == ("o/mine", None, None, None)


def test_a_repository_that_is_named_is_the_one_that_is_read_whatever_package_the_config_names():
    source = compose(["model.checkpoints.128.repo=o/mine", "model.checkpoints.128.revision=abc"]).model.checkpoints[
        "128"
    ]
    assert (source.repo, source.package, source.revision) == ("o/mine", None, "abc")


def test_some_settings_of_a_side_are_changed_and_the_others_stay():
    rules = compose(["model.query={max_tokens: 48}"]).model.query
    assert (rules.max_tokens, rules.marker, rules.expansion) == (48, "[QueryMarker]", True)


def test_a_model_without_vectors_takes_no_checkpoints():
    with pytest.raises(ConfigError, match=r"setting model\.checkpoints unknown"):
        compose(["model=bm25", "model.checkpoints={128: {path: /mine}}"])


@pytest.mark.parametrize("word", ["metrics=[map,recall@50]", "metrics=map,recall@50"])
def test_metrics_are_added_to_those_of_every_result(word):
    assert compose([word]).metrics == ("ndcg@10", "mrr@10", "recall@100", "map", "recall@50")
    assert compose([]).metrics == compose(["metrics=mrr@10"]).metrics == ("ndcg@10", "mrr@10", "recall@100")
    assert compose(["metrics=recall@1000", "search.depth=1000"]).metrics[-1] == "recall@1000"
    assert combinations([word, "model=demo,bm25"]) == [(word, "model=demo"), (word, "model=bm25")]


def test_without_home_the_cache_is_where_the_user_database_says(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("EVALKIT_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", "/home/of-somebody"))
    assert str(compose([]).cache_dir) == "/home/of-somebody/.cache/evalkit"


def test_without_any_home_only_the_cache_must_be_named(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("EVALKIT_CACHE", raising=False)
    with pytest.raises(ConfigError, match=r"got neither EVALKIT_CACHE nor a home folder; set cache_dir=DIR or EVALKI"):
        compose([])
    assert str(compose(["cache_dir=here"]).cache_dir) == "here"
    monkeypatch.setenv("EVALKIT_CACHE", "there")
    assert str(compose([]).cache_dir) == "there"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.workers=2"], "engine.workers=2 is a setting of engine=ray, got engine=local; add engine=ray"),
        (["engine.address=auto"], "engine.address=auto is a setting of engine=ray, got engine=local; add engine=ray"),
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


@pytest.mark.parametrize("setting", ["query.max_tokens", "document.max_tokens"])
def test_a_length_is_a_datasets_own_else_its_familys_else_the_default(tmp_path, setting):
    word = f"++model.{setting}={{default:32,beir:64,beir/nq:48,folder:96,folder/mine:80}}"

    def length(*dataset):
        model = compose(["model=jina-colbert-v1-en", word, *dataset]).model
        return (model.query if setting.startswith("query") else model.document).max_tokens

    assert [length(f"dataset={name}") for name in ("beir/nq", "beir/fiqa", "demo")] == [48, 64, 32]
    folders = [("dataset=folder", f"dataset.path={tmp_path / name}") for name in ("mine", "other")]
    assert [length(*folder) for folder in folders] == [80, 96]


@pytest.mark.parametrize(
    ("model", "setting", "value"),
    [
        ("jina-colbert-v1-en", "query.max_tokens", 32),
        ("jina-colbert-v1-en", "document.max_tokens", 300),
        ("bm25", "k1", 0.9),
        ("bm25", "b", 0.4),
    ],
)
def test_a_value_for_a_dataset_that_nothing_names_is_refused(model, setting, value):
    word = f"++model.{setting}={{default:{value},beir/arguanna:{value}}}"
    with pytest.raises(ConfigError) as caught:
        compose([f"model={model}", word, "dataset=beir/nq"])
    assert str(caught.value) == (
        f"model.{setting}: got a value for 'beir/arguanna', wanted a dataset, a family of datasets or `default` as its "
        "key; did you mean beir/arguana or nanobeir/arguana or beir/quora?"
    )


def test_values_per_dataset_may_name_ones_own_datasets(tmp_path, monkeypatch):
    """Their files, the folders of these, and, if a word gives the name, the present one."""
    (tmp_path / "dataset" / "law").mkdir(parents=True)
    text = "name: law/civil\nsources: [folder]\npath: /nowhere\nsplit: test\nlanguage: en\ndrop_self: false\n"
    (tmp_path / "dataset" / "law" / "civil.yaml").write_text(f"{text}main_metric: ndcg@10\n", encoding="utf-8")
    monkeypatch.setenv("EVALKIT_CONFIGS", str(tmp_path))
    word = "++model.k1={default:1,law:3,law/civil:4}"
    assert compose(["model=bm25", word, "dataset=law/civil"]).model.k1 == 4
    given = "++model.k1={default:1,law:3,given:5}"
    assert compose(["model=bm25", given, "dataset=demo", "dataset.name=given/b"]).model.k1 == 5
    monkeypatch.delenv("EVALKIT_CONFIGS")
    with pytest.raises(ConfigError, match=r"model\.k1: got a value for 'law', wanted a dataset"):
        compose(["model=bm25", word, "dataset=demo"])
