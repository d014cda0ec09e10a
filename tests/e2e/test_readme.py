"""What the READMEs say: every command in them is one that evalkit takes, and every path that they name is there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evalkit.cli import app
from evalkit.config.compose import check_overrides
from evalkit.report import table
from evalkit.storage.results import read_all

ROOT = Path(__file__).parents[2]
HEADLINE = ("system", "dim", "dataset", "ndcg@10", "published", "source", "verdict")
README = (ROOT / "README.md").read_text("utf-8")
FOLDERS = ("configs", "evalkit", "results", "results/bench", "scripts", "tests")
READMES = {
    name: (ROOT / name / "README.md").read_text("utf-8")
    for name in ("", *FOLDERS)
    if (ROOT / name / "README.md").is_file()
}
CODE = [
    "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for name, text in READMES.items()
    if name != "configs"  # whose commands name configs of the reader's own: test_configs_readme.py runs them
]
COMMANDS = [command for code in CODE for command in re.findall(r"^evalkit [^#\n]+", code, re.MULTILINE)]
SCRIPTS = [
    line for code in CODE for line in re.findall(r"^(?:PYTHONPATH=\. )?python (scripts/[^#\n]+)", code, re.MULTILINE)
]


def test_the_readme_has_commands():
    assert len(COMMANDS) > 6


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_is_valid_word_for_word(command):
    verb, *words = shlex.split(command)[1:]
    groups = {info.name: info.typer_instance for info in app.registered_groups}
    commands = app.registered_commands
    if verb in groups:
        commands, (inner, *words) = groups[verb].registered_commands, words
    assert (inner if verb in groups else verb) in {info.name or info.callback.__name__ for info in commands}
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)]
    assert len(check_overrides(overrides, sweep="-m" in words or verb == "fetch")) == len(overrides)
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    if verb != "run":
        listed = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
        assert all(flag in listed for flag in flags)


def test_no_word_of_a_command_is_a_pattern_to_zsh():
    """zsh stops at an unquoted word in which brackets, braces or stars match no file."""
    shown = [line.partition(" #")[0] for text in READMES.values() for line in text.splitlines()]
    commands = [line for line in shown if line.startswith("evalkit ")]
    assert len(commands) > len(COMMANDS)
    assert [line for line in commands if re.search(r"[\[\](){}*?]", re.sub(r"'[^']*'", "", line))] == []


def test_make_has_the_readmes_two_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_the_readmes_stay_short():
    assert len(README.splitlines()) <= 200
    assert {
        name: len(text.splitlines()) for name, text in READMES.items() if name and len(text.splitlines()) > 70
    } == {}


def test_the_pictures_of_the_readmes_are_there_and_the_timings_stand_in_the_first():
    pictures = {name: re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text) for name, text in READMES.items()}
    assert "results/bench/bench.png" in pictures[""]
    assert [path for name, paths in pictures.items() for path in paths if not (ROOT / name / path).is_file()] == []


def test_every_folder_of_the_readmes_tree_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    names = re.findall(r"([a-z0-9_]+/)", tree)
    assert len(names) > 15
    for name in names:
        inside = [ROOT / name, *(ROOT / folder / name for folder in FOLDERS)]
        assert any(path.exists() for path in inside), name


def test_every_room_that_the_packages_readme_names_exists_and_none_is_left_out():
    named = set(re.findall(r"^\| `([a-z0-9_]+)(?:/|\.py)`", READMES["evalkit"], re.MULTILINE))
    there = {
        path.stem for path in (ROOT / "evalkit").iterdir() if path.stem[0] not in "_." and path.suffix in ("", ".py")
    }
    assert named | {"types", "errors"} == there


@pytest.mark.parametrize("line", SCRIPTS)
def test_a_script_that_a_readme_names_exists_and_takes_the_options(line):
    script, *words = shlex.split(line)
    source = (ROOT / script).read_text("utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source, word


def test_the_headline_table_is_what_the_committed_results_say():
    shown = README.split("<!-- evalkit report -->")[1].split("<!-- end -->")[0].strip()
    assert shown == table.markdown(table.rows(read_all(ROOT / "results")), columns=HEADLINE).strip()
