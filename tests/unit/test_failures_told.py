"""How what could not be fetched is told: in three lines, in few words, and in a sweep once."""

import pytest

from evalkit.config import compose
from evalkit.errors import ModelError, Tried
from evalkit.report.listing import listing
from evalkit.report.terminal import PlainConsole, folded
from evalkit.storage import network


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(compose, "_last_reason", [])


def failure(what, why="no network"):
    return ModelError.unobtainable(Tried(what, why, "fetch it elsewhere"))


def test_a_sweep_tells_a_reason_in_three_lines_and_the_same_reason_once():
    said = []
    compose._say_failed("model=a", failure("o/a@main"), said.append)
    compose._say_failed("model=b", failure("o/b@main"), said.append)
    compose._say_failed("model=c", failure("o/c@main", "gated"), said.append)
    compose._say_failed("model=d", ModelError("no such dim"), said.append)
    compose._say_failed("", failure("o/e@main", "gated"), said.append)
    assert said == [
        "model=a: could not be fetched",
        "  tried: o/a@main",
        "  failed: no network",
        "  to do: fetch it elsewhere",
        "model=b: could not be fetched, for the same reason; tried: o/b@main",
        "model=c: could not be fetched",
        "  tried: o/c@main",
        "  failed: gated",
        "  to do: fetch it elsewhere",
        "model=d: no such dim",
        "tried: o/e@main",
        "failed: gated",
        "to do: fetch it elsewhere",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Cannot find X and outgoing traffic has been disabled. Set", "nothing there, and HF_HUB_OFFLINE is set"),
        ("ConnectionPool(host='a.org', port=443): Max retries exceeded", "OSError: no connection to a.org"),
        ("ConnectionPool(host='a', port=1): Failed to resolve 'a'", "OSError: no network, a could not be resolved"),
        ("disk quota", "OSError: disk quota"),
    ],
)
def test_a_librarys_page_about_the_network_becomes_a_phrase(text, told):
    assert network.reason(OSError(text), most=100) == told


def test_a_terminal_breaks_lines_between_words_and_a_pipe_does_not(capsys):
    assert folded("  failed: one two three", 20) == "  failed: one two\n    three"
    PlainConsole(width=20).print("one two three four five six", soft_wrap=True)
    assert capsys.readouterr().out == "one two three four five six\n"


def test_every_experiment_is_listed_with_what_it_is(tmp_path):
    rows = [line for line in listing("experiments", results_dir=tmp_path).lines() if line.startswith("quick")]
    assert rows[0].split(maxsplit=1)[1].startswith("NanoBEIR's 13 sets, every dim of the model in one pass each")
