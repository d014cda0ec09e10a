"""The README's words: every command in it is one that evalkit takes, and every path in its tree is there."""

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
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^evalkit [^#\n]+", README, re.MULTILINE)


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


def test_make_has_the_readmes_two_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_every_file_of_the_readmes_tree_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    names = re.findall(r"(?:^|\s{2})([a-z_]+(?:\.py|/))", tree)
    assert len(names) > 20
    for name in names:
        inside = [ROOT / name, ROOT / "evalkit" / name, ROOT / "tests" / name, ROOT / "results" / name]
        assert any(path.exists() for path in inside), name


def test_the_headline_table_is_what_the_committed_results_say():
    shown = README.split("<!-- evalkit report -->")[1].split("<!-- end -->")[0].strip()
    assert shown == table.markdown(table.rows(read_all(ROOT / "results"))).strip()
