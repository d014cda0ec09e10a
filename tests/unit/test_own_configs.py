"""Configs of the user's own: found beside evalkit's, listed with where they are, refused where a name would mislead."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import combinations, compose
from evalkit.config.settings import CONFIGS, configs_dir, group_files, group_names
from evalkit.errors import ConfigError
from evalkit.operations import forecast
from evalkit.report.listing import listing


def write(folder: Path, group: str, name: str, like: str, **changed: object) -> Path:
    """Write a config like one of evalkit's under another name."""
    values = yaml.safe_load(group_files(group)[like].read_text("utf-8"))
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**values, "name": name, **changed}), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name a folder of configs, with a sign in its path that Hydra keeps for itself."""
    folder = tmp_path / "my configs, (größe)"
    folder.mkdir()
    monkeypatch.setenv(CONFIGS, str(folder))
    return folder


def test_a_model_and_a_dataset_of_the_users_own_compose_like_evalkits(own):
    write(own, "model", "mine", "bm25-flat", k1=1.5)
    write(own, "dataset", "team/tickets", "demo", language="es")
    config = compose(["model=mine", "dataset=team/tickets", "model.b=0.75"])
    assert (config.model.name, config.model.k1, config.model.b) == ("mine", 1.5, 0.75)
    assert (config.dataset.name, config.dataset.language) == ("team/tickets", "es")


def test_names_of_several_folders_are_found_and_patterns_reach_them(own, tmp_path, monkeypatch):
    second = tmp_path / "second"
    write(own, "dataset", "team/a", "demo")
    write(second, "dataset", "team/b", "demo")
    monkeypatch.setenv(CONFIGS, f"{own}:{second}:")
    assert {"team/a", "team/b", "demo"} <= set(group_names("dataset"))
    assert combinations(["dataset=glob(team/*)"]) == [("dataset=team/a",), ("dataset=team/b",)]
    assert compose(["dataset=team/b"]).dataset.name == "team/b"


def test_a_misspelt_name_is_answered_with_the_users_own(own):
    write(own, "model", "house-colbert", "bm25")
    with pytest.raises(ConfigError, match=r"model 'house-colbret' unknown; did you mean house-colbert\?"):
        compose(["model=house-colbret"])


def test_a_name_that_evalkit_has_too_is_refused_with_both_files(own):
    path = write(own, "model", "bm25", "bm25-flat")
    with pytest.raises(ConfigError, match="model 'bm25': got two files, ") as caught:
        compose(["model=bm25"])
    assert f"{configs_dir() / 'model' / 'bm25.yaml'} and {path}, wanted one; rename your own" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: jina-colbert-v2\nkind: bm25\n",
            r"mine\.yaml: got name 'jina-colbert-v2', wanted 'mine', the name of the file",
        ),
        ("kind: bm25\n", r"mine\.yaml: got name None, wanted 'mine'"),
        ("- a\n", r"mine\.yaml: got a list, wanted the settings of a model, such as name: mine"),
        ("name: [\n", r"mine\.yaml: not YAML \(.*\); wanted the settings of a model"),
        ("name: !!int x\n", r"mine\.yaml: not YAML \(invalid literal for int.*\); wanted the settings of a model"),
        ("[" * 100_000, r"mine\.yaml: not YAML \(brackets nested too deep\); wanted the settings of a model"),
    ],
)
def test_a_config_that_is_not_what_its_file_says_is_refused(own, text, message):
    (own / "model").mkdir()
    (own / "model" / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        compose(["model=mine"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("group", ["model", "dataset"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "not YAML ('utf-8' codec can't decode byte 0xff"),
        (b"a: !!int x", "not YAML (invalid literal for int"),
        (b"[" * 100_000, "not YAML (brackets nested too deep)"),
        (b"", "got a NoneType, wanted the settings of a"),
        (b'{"facts": []}', "not the settings of a"),
    ],
)
def test_a_list_names_a_config_that_is_none_in_one_line(own, group, data, message):
    (own / group).mkdir()
    (own / group / "mine.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        listing(f"{group}s", results_dir=own)
    assert str(caught.value).startswith(f"{own / group / 'mine.yaml'}: {message}")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIGS, str(tmp_path / "gone"))
    with pytest.raises(
        ConfigError, match=r"gone: got no such folder, wanted one with .*check --config-dir and EVALKIT_CON"
    ):
        compose(["model=bm25"])


@pytest.mark.parametrize("place", ["before", "behind", "with ="])
def test_the_folder_may_be_named_on_the_command_line_before_the_verb_or_behind_it(tmp_path, place, monkeypatch):
    monkeypatch.delenv(CONFIGS, raising=False)
    path = write(tmp_path, "model", "mine", "bm25")
    option = [f"--config-dir={tmp_path}"] if place == "with =" else ["--config-dir", str(tmp_path)]
    words = [*option, "ls", "models", "--wide"] if place == "before" else ["ls", *option, "models", "--wide"]
    lines = CliRunner().invoke(app, words, terminal_width=240).output.splitlines()
    rows = {line.split()[0]: line.split() for line in lines}
    assert str(path).startswith(rows["mine"][-1][:20])  # a path longer than the terminal goes on below
    assert rows["bm25"][-1] == "evalkit"
    assert "mine" not in group_names("model")  # in force for the one command


def test_the_folder_reaches_a_sweep(own, tmp_path, monkeypatch):
    write(own, "model", "mine", "bm25")
    ran = []
    monkeypatch.setattr("evalkit.run.pipeline.run", lambda config, **_: ran.append(config.model.name) or [])
    words = ["run", "-m", "model=mine,bm25", f"results_dir={tmp_path / 'r'}", f"cache_dir={tmp_path / 'c'}"]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, ran) == (0, ["mine", "bm25"]), done.output


def test_a_dry_run_and_a_shown_config_know_the_users_own(own):
    write(own, "model", "mine", "bm25")
    ((_, config),) = forecast.combinations(["model=mine"])
    assert config.model.name == "mine"
    shown = CliRunner().invoke(app, ["run", "--cfg", "job", "model=mine"])
    assert shown.exit_code == 0, shown.output


def test_a_dataset_of_the_users_own_is_listed_with_its_counts(own, tmp_path):
    path = write(own, "dataset", "tickets", "folder", path=str(tmp_path), counts={"documents": 12, "queries": 3})
    output = CliRunner().invoke(app, ["ls", "datasets", "--wide"], terminal_width=400).output
    row = next(line.split() for line in output.splitlines() if line.startswith("tickets"))
    assert row[:3] == ["tickets", "12", "3"]
    assert str(path).startswith(row[-1][:12]) or row[-1] in str(path)


def test_a_config_of_the_users_own_is_listed_with_its_file_without_being_asked(own):
    paths = {write(own, "model", "mine", "bm25"), write(own, "dataset", "tickets", "demo")}
    listed = "".join(CliRunner().invoke(app, ["ls", what]).output for what in ("models", "datasets"))
    assert {path for path in paths if str(path) in listed} == paths
    assert "evalkit" not in listed.replace(str(own), "")
